"""`dmtd-spec`: self-speculative DMTD, lossless (docs/methods.md, section 2).

The late layers draft a cycle, one pass of all layers verifies it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Sequence

import torch

from dmtd_demo.decoders.base import Pass, Step, Steps
from dmtd_demo.decoders.dmtd import DirectMultiToken, split_of
from dmtd_demo.decoders.stack import Stack, prefill
from dmtd_demo.decoders.verify import Drafts, verify
from dmtd_demo.sampling import Choice, Sampler

if TYPE_CHECKING:
    from dmtd_demo.models.model import Model


class SelfSpeculative(DirectMultiToken):
    name = "dmtd-spec"
    label = "DMTD, checked (lossless)"
    lossless = True

    @torch.inference_mode()
    def steps(self, model: Model, prompt_ids: Sequence[int], sampler: Sampler) -> Steps:
        options = self.resolve(self.options, model)
        stack = Stack(model.backbone, split_of(options.split, model))
        # it counts as the first cycle's head: drafting starts right after it
        token = yield from prefill(stack, prompt_ids, sampler)
        while True:
            drafts: list[Choice] = []
            rows: list[torch.Tensor] = []
            last = token.id
            stack.cache.keep(stack.length)
            while len(drafts) < options.tau - 1 and stack.room > 1:
                out, runs = stack.late(last)
                logits = model.backbone.logits(stack.last_hidden(out))
                drafts.append(sampler.choose(logits)[0])
                rows.append(logits)
                last = drafts[-1].id
                # a chance to stop: nothing is emitted before it is verified
                yield Step((), (Pass("late", runs),))
            # the drafts' entries, made with m = 0
            stack.rewind(stack.length - len(drafts))
            drafted = Drafts(drafts, torch.cat(rows) if rows else None, "late")
            tokens, runs, _ = verify(stack, token.id, drafted, sampler)
            yield Step(tokens, (Pass("verify", runs),))
            token = tokens[-1]
