"""`ar`: the checkpoint's own autoregressive mode, every position a head (docs/methods.md, section 1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Iterator, Sequence

import torch

from dmtd_demo.decoders.base import Decoder, Pass, Step, Token
from dmtd_demo.decoders.stack import Stack, prefill
from dmtd_demo.sampling import Sampler

if TYPE_CHECKING:
    from dmtd_demo.models.model import Model


class Autoregressive(Decoder):
    name = "ar"
    label = "Autoregressive"

    @torch.inference_mode()
    def steps(self, model: Model, prompt_ids: Sequence[int], sampler: Sampler) -> Iterator[Step]:
        stack = Stack(model.backbone, model.split)
        token = yield from prefill(stack, prompt_ids, sampler)
        while True:
            out, runs = stack.full([token.id])
            token = Token.of(
                sampler.choose(model.backbone.logits(stack.last_hidden(out)))[0], "full"
            )
            yield Step((token,), (Pass("full", runs),))
