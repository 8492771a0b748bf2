"""`ar`: the checkpoint's own autoregressive mode, every token from a full pass.

docs/methods.md, section 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Sequence

import torch

from dmtd_demo.decoders.base import Decoder, Options, Pass, Step, Steps, Token
from dmtd_demo.decoders.stack import Stack, prefill
from dmtd_demo.sampling import Sampler

if TYPE_CHECKING:
    from dmtd_demo.models.model import Model


class Autoregressive(Decoder[Options]):
    name = "ar"
    label = "Autoregressive"

    @torch.inference_mode()
    def steps(self, model: Model, prompt_ids: Sequence[int], sampler: Sampler) -> Steps:
        stack = Stack(model.backbone, model.split)
        token = yield from prefill(stack, prompt_ids, sampler)
        while True:
            out, runs = stack.full([token.id])
            token = Token.of(
                sampler.choose(model.backbone.logits(stack.last_hidden(out)))[0], "full"
            )
            yield Step((token,), (Pass("full", runs),))
