"""`prompt-lookup`: the drafts are the tokens that followed the same n-gram earlier in the text.

They are verified, so the decoder is lossless, and it needs no training at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Sequence

import torch

from dmtd_demo.decoders.base import Decoder, Options, Pass, Step, Steps, option
from dmtd_demo.decoders.stack import Stack, prefill
from dmtd_demo.decoders.verify import Drafts, verify
from dmtd_demo.sampling import Choice, Sampler

if TYPE_CHECKING:
    from dmtd_demo.models.model import Model


@dataclass(frozen=True)
class LookupOptions(Options):
    ngram: int = option(
        3,
        int,
        "n-gram",
        "the longest ending of the text to look for earlier in it; shorter ones are tried after it",
        within=(1, 8, 1),
    )
    k: int = option(
        4,
        int,
        "draft length k",
        "how many tokens to draft from what followed it there",
        within=(1, 16, 1),
    )


class Lookup:
    """The places where each n-gram of a growing text was last followed by something."""

    def __init__(self, longest: int) -> None:
        self.longest = longest
        self.ids: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}

    def extend(self, ids: Sequence[int]) -> None:
        """Append tokens to the text."""
        for token in ids:
            for n in range(1, min(self.longest, len(self.ids)) + 1):
                # the latest place wins
                self._after[tuple(self.ids[-n:])] = len(self.ids)
            self.ids.append(token)

    def draft(self, k: int, shortest: int = 1) -> list[int]:
        """Return the k ids that followed the longest known ending of the text earlier in it.

        Where they reach the text's end they go on with themselves. Empty where no ending of at
        least `shortest` tokens is known.
        """
        for n in range(min(self.longest, len(self.ids)), shortest - 1, -1):
            start = self._after.get(tuple(self.ids[-n:]))
            if start is not None:
                period = len(self.ids) - start
                return [self.ids[start + i % period] for i in range(k)]
        return []


class PromptLookup(Decoder[LookupOptions]):
    name = "prompt-lookup"
    label = "Prompt lookup (lossless)"
    lossless = True
    Options = LookupOptions

    @torch.inference_mode()
    def steps(self, model: Model, prompt_ids: Sequence[int], sampler: Sampler) -> Steps:
        options = self.resolve(self.options, model)
        stack, lookup = Stack(model.backbone, model.split), Lookup(options.ngram)
        token = yield from prefill(stack, prompt_ids, sampler)
        lookup.extend([*prompt_ids, token.id])
        while True:
            ids = lookup.draft(min(options.k, stack.room - 1))
            drafts = Drafts([Choice(i, 0.0) for i in ids], None, "draft")
            tokens, runs, _ = verify(stack, token.id, drafts, sampler)
            yield Step(tokens, (Pass("verify", runs),))
            token = tokens[-1]
            lookup.extend([t.id for t in tokens])
