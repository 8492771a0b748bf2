"""`mtp-verified`: MTP heads draft, the backbone's next pass verifies: lossless against `ar`.

After Medusa (arXiv 2401.10774; docs/methods.md, section 3).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Sequence

import torch

from dmtd_demo.decoders.base import Pass, Step, Steps
from dmtd_demo.decoders.mtp import HeadsDecoder, checked_heads
from dmtd_demo.decoders.stack import Stack, prefill
from dmtd_demo.decoders.verify import Drafts, verify
from dmtd_demo.sampling import Sampler

if TYPE_CHECKING:
    from dmtd_demo.models.model import Model


class VerifiedHeads(HeadsDecoder):
    name = "mtp-verified"
    label = "Checked heads (lossless)"
    lossless = True
    needs = frozenset({"mtp_heads"})

    @classmethod
    def model_defaults(cls, model: Model) -> dict[str, Any]:
        return {"k": checked_heads(model)}

    @torch.inference_mode()
    def steps(self, model: Model, prompt_ids: Sequence[int], sampler: Sampler) -> Steps:
        options = self.resolve(self.options, model)
        heads, backbone = model.addons["mtp_heads"], model.backbone
        stack = Stack(backbone, model.split)
        token = yield from prefill(stack, prompt_ids, sampler)
        logits = torch.empty(0, backbone.vocab_size, device=backbone.device)
        while True:
            logits = logits[: stack.room - 1]
            drafts = Drafts(sampler.choose(logits) if len(logits) else [], logits, "mtp")
            tokens, runs, h = verify(stack, token.id, drafts, sampler)
            yield Step(tokens, (Pass("verify", runs),))
            token = tokens[-1]
            logits = backbone.logits(heads(h[-1:], options.k)[0])
