"""`dmtd-adaptive`: DMTD whose cycles are as long as a linear predictor says.

It reads the hidden state of the cycle's head *(ours; docs/methods.md, section 4)*.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Sequence

import torch
from torch import Tensor

from dmtd_demo.backbone.split import Split
from dmtd_demo.decoders.base import (
    Decoder,
    Options,
    Pass,
    Step,
    Steps,
    Token,
    caution_option,
    option,
)
from dmtd_demo.decoders.clp import accepted_length
from dmtd_demo.decoders.dmtd import split_of, split_option
from dmtd_demo.decoders.stack import Stack, prefill
from dmtd_demo.errors import UserError
from dmtd_demo.sampling import Sampler

if TYPE_CHECKING:
    from dmtd_demo.models.model import Model

MAX_CYCLE = 6


@dataclass(frozen=True)
class AdaptiveOptions(Options):
    threshold: float = caution_option()
    max: int = option(
        MAX_CYCLE,
        int,
        "longest cycle",
        "one token from a full pass and at most this many less one from the late layers alone",
        within=(1, 16, 1),
    )
    split: str = split_option()


class AdaptiveCycles(Decoder[AdaptiveOptions]):
    name = "dmtd-adaptive"
    label = "DMTD, predicted cycles"
    needs = frozenset({"split", "adaptive"})
    Options = AdaptiveOptions
    # the add-on whose default threshold it is
    threshold_of: ClassVar[str] = "adaptive"

    @classmethod
    def model_defaults(cls, model: Model) -> dict[str, Any]:
        return {
            "threshold": model.addon_facts[cls.threshold_of]["threshold"],
            "split": str(model.split or Split.default(model.backbone.layers)),
        }

    @classmethod
    def resolve(cls, options: AdaptiveOptions, model: Model) -> AdaptiveOptions:
        options = super().resolve(options, model)
        split_of(options.split, model)
        longest = model.addons["adaptive"].k + 1
        if options.max > longest:
            raise UserError(
                f"the option max needs a value from 1 to {longest}, the longest cycle that the "
                f"predictor of {model.name} knows; got {options.max}"
            )
        return options

    @torch.inference_mode()
    def steps(self, model: Model, prompt_ids: Sequence[int], sampler: Sampler) -> Steps:
        options = self.resolve(self.options, model)
        stack = Stack(model.backbone, split_of(options.split, model))
        token = yield from prefill(stack, prompt_ids, sampler)
        while True:
            out, runs = stack.full([token.id])
            h = stack.last_hidden(out)
            token = Token.of(sampler.choose(model.backbone.logits(h))[0], "full")
            yield Step((token,), (Pass("full", runs),))
            for _ in range(late_tokens(model, h, options.max, options.threshold)):
                out, runs = stack.late(token.id)
                token = Token.of(
                    sampler.choose(model.backbone.logits(stack.last_hidden(out)))[0], "late"
                )
                yield Step((token,), (Pass("late", runs),))


def late_tokens(model: Model, h: Tensor, longest: int, threshold: float) -> int:
    """Return how many late-layer-only passes follow a cycle head.

    h [1, hidden]: the head's hidden state after the final norm. longest: tokens of a cycle.
    """
    probabilities = model.addons["adaptive"](h).float().softmax(-1)[0].tolist()
    return accepted_length(probabilities, longest - 1, threshold, "cumulative")
