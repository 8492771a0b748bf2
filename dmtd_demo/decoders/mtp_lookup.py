"""`mtp-lookup`: n-gram drafts where the text repeats, MTP drafts elsewhere; verified, so lossless.

docs/methods.md, section 4.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Sequence

import torch

from dmtd_demo.decoders.base import Decoder, Options, Pass, Step, Steps, option
from dmtd_demo.decoders.drafting import Drafting
from dmtd_demo.decoders.mtp import checked_heads
from dmtd_demo.decoders.prompt_lookup import Lookup
from dmtd_demo.decoders.stack import Stack, prefill
from dmtd_demo.decoders.verify import Drafts, verify
from dmtd_demo.sampling import Choice, Sampler

if TYPE_CHECKING:
    from dmtd_demo.models.model import Model


@dataclass(frozen=True)
class MTPLookupOptions(Options):
    ngram: int = option(
        3,
        int,
        "n-gram",
        "so many last tokens have to stand earlier in the text for a draft from there",
        within=(1, 8, 1),
    )
    k: int = option(
        7,
        int,
        "draft length k",
        "how many tokens to draft from the text; MTP heads draft as many of them as they are",
        within=(1, 16, 1),
    )


class LookupOrHeads(Decoder[MTPLookupOptions]):
    """The longer of two drafts: heads draft no more tokens than they are, the text k."""

    name = "mtp-lookup"
    label = "Lookup, else heads (lossless)"
    lossless = True
    needs = frozenset({"mtp_heads"})
    Options = MTPLookupOptions

    @torch.inference_mode()
    def steps(self, model: Model, prompt_ids: Sequence[int], sampler: Sampler) -> Steps:
        options = self.resolve(self.options, model)
        heads, drafting = model.addons["mtp_heads"], Drafting(model, sampler)
        stack, lookup = Stack(model.backbone, model.split), Lookup(options.ngram)
        token = yield from prefill(stack, prompt_ids, sampler)
        lookup.extend([*prompt_ids, token.id])
        # of the position before the token; none after the prefill
        hidden = None
        nothing = Drafts([], None, "draft")
        while True:
            most = min(options.k, stack.room - 1)
            known = lookup.draft(most, shortest=options.ngram)
            drafts = replace(nothing, choices=[Choice(i, 0.0) for i in known])
            by_heads = 0 if hidden is None else min(most, checked_heads(model))
            if by_heads > len(known):
                drafts = Drafts(*drafting.choose(heads(hidden, by_heads)[0]), "mtp")
            tokens, runs, h = verify(stack, token.id, drafts, sampler)
            yield Step(tokens, (Pass("verify", runs),))
            token, hidden = tokens[-1], h[-1:]
            lookup.extend([t.id for t in tokens])
