"""`mtp-verified`: MTP heads draft, the backbone's next pass verifies (Medusa-style; docs/methods.md, section 3): lossless against `ar`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Iterator, Sequence

import torch

from dmtd_demo.decoders.base import Pass, Step
from dmtd_demo.decoders.mtp import HeadsDecoder
from dmtd_demo.decoders.stack import Stack, prefill
from dmtd_demo.decoders.verify import verify
from dmtd_demo.sampling import Sampler

if TYPE_CHECKING:
    from dmtd_demo.models.model import Model


class VerifiedHeads(HeadsDecoder):
    name = "mtp-verified"
    label = "Verified MTP heads (lossless)"
    needs = frozenset({"mtp_heads"})

    @torch.inference_mode()
    def steps(self, model: Model, prompt_ids: Sequence[int], sampler: Sampler) -> Iterator[Step]:
        options = self.resolve(self.options, model)
        heads, backbone = model.addons["mtp_heads"], model.backbone
        stack = Stack(backbone, model.split)
        token = yield from prefill(stack, prompt_ids, sampler)
        logits = None
        while True:
            drafts = [] if logits is None else sampler.choose(logits[: stack.room - 1])
            tokens, runs, h = verify(
                stack, token.id, drafts, logits[: len(drafts)] if drafts else None, sampler, "mtp"
            )
            yield Step(tokens, (Pass("verify", runs),))
            token = tokens[-1]
            logits = backbone.logits(heads(h, options.k)[0])
