"""The choice of drafts: by the rows of the LM head that are for them, where a folder lists them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dmtd_demo.sampling import Choice, Sampler

if TYPE_CHECKING:
    from dmtd_demo.models.model import Model


class Drafting:
    """Drafts for one text.

    Chosen from the entries of `models/frequent.py` where the model has them, else from the whole
    vocabulary; probabilities are over what they are chosen from.
    """

    def __init__(self, model: Model, sampler: Sampler) -> None:
        self.backbone, self.sampler = model.backbone, sampler
        self._frequent = model.addons.get("frequent")
        # at a temperature logits are of the whole vocabulary, as the rejection rule reads them
        self._few = self._frequent is not None and sampler.sampling.temperature == 0

    def logits(self, states: Tensor) -> Tensor:
        """Return logits to draw from, of states after the final norm, [n, hidden].

        [n, vocabulary], -inf for what is never drafted; greedy, [n, entries].
        """
        if self._frequent is None:
            return self.backbone.logits(states)
        logits: Tensor = self._frequent(states)
        if self._few:
            return logits
        whole = logits.new_full((len(logits), self.backbone.vocab_size), -torch.inf)
        return whole.index_copy_(1, self._frequent.ids, logits)

    def ids(self, drawn: Tensor) -> Tensor:
        """Return the token ids [n] of what the sampler drew from such logits."""
        if not self._few:
            return drawn
        assert self._frequent is not None
        found: Tensor = self._frequent.ids[drawn]
        return found

    def describe(self, drawn: Tensor, logits: Tensor) -> list[Choice]:
        """Say what was drawn, with probabilities, as `Sampler.describe` does."""
        choices = self.sampler.describe(drawn, logits)
        if not self._few:
            return choices
        assert self._frequent is not None
        names = self._frequent.names
        return [
            Choice(
                names[choice.id],
                choice.logprob,
                tuple((names[i], p) for i, p in choice.top),
            )
            for choice in choices
        ]

    def choose(self, states: Tensor) -> tuple[list[Choice], Tensor]:
        """Draw a token for each state [n, hidden], independently; returns the logits too."""
        logits = self.logits(states)
        return self.describe(self.sampler.draw(logits), logits), logits
