"""The reading of one text by an MTP head that reads its drafts, for the decoders with one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generator, Sequence

import torch
from torch import Tensor

from dmtd_demo.backbone.cache import KVCache
from dmtd_demo.decoders.base import Step, Token, option
from dmtd_demo.decoders.mtp import MAX_K
from dmtd_demo.decoders.stack import Stack, prefill
from dmtd_demo.sampling import Choice, Sampler

if TYPE_CHECKING:
    from dmtd_demo.models.model import Model

# a draft's share of a full pass from which on, and under which, k changes
DEAR, CHEAP = 0.25, 0.1


def drafts_option(help: str) -> Any:
    """Declare the option k: how often the head is applied; None is by the cost of a draft."""
    return option(None, int, "drafts k", help, within=(1, MAX_K, 1))


def usual_k(model: Model) -> int:
    """Return how many drafts are worth their cost: 1 for small models.

    Their LM head is a large part of them.
    """
    layers, lm_head = model.backbone.weight_bytes()
    head = sum(p.numel() * p.element_size() for p in model.addons["native_mtp"].parameters())
    share = (lm_head + head) / (sum(layers) + lm_head)
    return 1 if share > DEAR else 2 if share > CHEAP else 3


class NativeText:
    """The head's own cache of one text.

    It holds a pair (h_t, x_(t+1)) for each position whose next token is known. States wait in
    `unpaired` until it is.
    """

    def __init__(self, model: Model) -> None:
        self.backbone = model.backbone
        self.head = model.addons["native_mtp"]
        self.cache = KVCache(1)
        # [positions, hidden] each
        self.unpaired: list[Tensor] = []

    def saw(self, states: Tensor) -> None:
        """Take in states after the final norm, [positions, hidden], in the order of the text."""
        self.unpaired.append(states)

    def pair(self, ids: Sequence[int]) -> Tensor:
        """Take in as many pairs as there are ids, each the token that followed a waiting state.

        Returns the last pair's m, [1, hidden], which the LM head reads for the token after the last
        id.
        """
        states = torch.cat(self.unpaired) if len(self.unpaired) > 1 else self.unpaired[0]
        rest = states[len(ids) :]
        self.unpaired = [rest] if len(rest) else []
        return self.head.run(states[: len(ids)], self.backbone.embed(list(ids))[0], self.cache)

    def drafts(self, m: Tensor, k: int, sampler: Sampler) -> tuple[list[Choice], Tensor]:
        """Draw k tokens one after another, the head applied again to its own output.

        Returns them and the logits [k, vocabulary] that they were drawn from; the cache holds no
        more than before.
        """
        pairs = self.cache.length(0)
        rows: list[Tensor] = []
        ids: list[Tensor] = []
        # nothing here waits for the device
        for depth in range(k):
            if depth:
                m = self.head.run(m, self.backbone.embed(ids[-1][None])[0], self.cache)
            rows.append(self.backbone.logits(m))
            ids.append(sampler.draw(rows[-1]))
        self.cache.crop(pairs)
        logits = torch.cat(rows)
        return sampler.describe(torch.cat(ids), logits), logits


def native_prefill(
    stack: Stack, text: NativeText, prompt_ids: Sequence[int], sampler: Sampler
) -> Generator[Step, None, Token]:
    """Read the prompt as `prefill` does, the head along with it, chunk by chunk.

    The last state is left out: its next token is the one that is returned.
    """
    done = 0

    def read(out: Tensor) -> None:
        nonlocal done
        text.saw(stack.backbone.final_norm(out[0]))
        following = prompt_ids[done + 1 : done + 1 + out.shape[1]]
        done += out.shape[1]
        if following:
            text.pair(following)

    return (yield from prefill(stack, prompt_ids, sampler, read))
