"""`dmtd`: Direct Multi-Token Decoding: one full pass, then tau - 1 late-layer-only passes.

Luo, Wang and Yan (arXiv 2510.11958, section 3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Sequence

import torch

from dmtd_demo.backbone.split import Split
from dmtd_demo.decoders.base import Decoder, Options, Pass, Step, Steps, Token, option
from dmtd_demo.decoders.stack import Stack, prefill
from dmtd_demo.sampling import Sampler

if TYPE_CHECKING:
    from dmtd_demo.models.model import Model

MAX_TAU = 16


def split_option() -> Any:
    """Declare the split of a decoder with late-layer-only passes; None is the checkpoint's."""
    return option(
        None,
        str,
        "split",
        "early and late layers, such as E0D3; the rest is the middle, which late-layer-only passes "
        "leave out",
    )


@dataclass(frozen=True)
class DMTDOptions(Options):
    tau: int = option(
        None,
        int,
        "cycle length τ",
        "tokens per cycle: one from a full pass, the others from the late layers alone",
        within=(1, MAX_TAU, 1),
    )
    split: str = split_option()


class DirectMultiToken(Decoder[DMTDOptions]):
    name = "dmtd"
    label = "Direct multi-token decoding"
    needs = frozenset({"split"})
    Options = DMTDOptions

    @classmethod
    def model_defaults(cls, model: Model) -> dict[str, Any]:
        return {
            "tau": model.tau or 4,
            "split": str(model.split or Split.default(model.backbone.layers)),
        }

    @classmethod
    def resolve(cls, options: DMTDOptions, model: Model) -> DMTDOptions:
        options = super().resolve(options, model)
        split_of(options.split, model)
        return options

    @torch.inference_mode()
    def steps(self, model: Model, prompt_ids: Sequence[int], sampler: Sampler) -> Steps:
        options = self.resolve(self.options, model)
        stack = Stack(model.backbone, split_of(options.split, model))
        token = yield from prefill(stack, prompt_ids, sampler)
        while True:
            # the phase is anchored to the request: the first generated token is a cycle head
            for position in range(options.tau):
                origin = "full" if position == 0 else "late"
                out, runs = stack.full([token.id]) if position == 0 else stack.late(token.id)
                token = Token.of(
                    sampler.choose(model.backbone.logits(stack.last_hidden(out)))[0], origin
                )
                yield Step((token,), (Pass(origin, runs),))


def split_of(split: str, model: Model) -> Split:
    """Parse a split such as E0D3, with the checkpoint's own form of head input."""
    head_input = model.split.head_input if model.split else "replace"
    return Split.parse(split, model.backbone.layers, head_input)
