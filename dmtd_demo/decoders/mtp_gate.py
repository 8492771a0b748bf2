"""`mtp-gate`: MTP heads behind a gate network, which CLP replaces by one linear layer.

A baseline of arXiv 2606.10935 (docs/methods.md, section 3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Sequence

import torch

from dmtd_demo.decoders.base import Decoder, Options, Steps, caution_option
from dmtd_demo.decoders.mtp import check_heads, heads_option, unverified_steps
from dmtd_demo.sampling import Sampler

if TYPE_CHECKING:
    from dmtd_demo.models.model import Model


@dataclass(frozen=True)
class GateOptions(Options):
    k: int = heads_option("how many MTP heads may follow the backbone's own token")
    threshold: float = caution_option()


def open_gates(probabilities: Sequence[float], k: int, threshold: float) -> int:
    """Return how many MTP tokens to accept: those before the first of k gates under it.

    A threshold of 1 accepts none: probabilities that round to 1 are no certainty.
    """
    if threshold >= 1:
        return 0
    return next(
        (i for i, p in enumerate(probabilities[:k]) if p < threshold), min(k, len(probabilities))
    )


class GatedHeads(Decoder[GateOptions]):
    name = "mtp-gate"
    label = "MTP heads with a gate network"
    needs = frozenset({"mtp_heads", "gate"})
    Options = GateOptions

    @classmethod
    def model_defaults(cls, model: Model) -> dict[str, Any]:
        return {"k": model.addons["gate"].k, "threshold": model.addon_facts["gate"]["threshold"]}

    @classmethod
    def resolve(cls, options: GateOptions, model: Model) -> GateOptions:
        options = super().resolve(options, model)
        check_heads(options.k, model, min(model.addons["gate"].k, model.addons["mtp_heads"].k))
        return options

    @torch.inference_mode()
    def steps(self, model: Model, prompt_ids: Sequence[int], sampler: Sampler) -> Steps:
        options = self.resolve(self.options, model)
        heads, gate = model.addons["mtp_heads"], model.addons["gate"]

        def logits_of(h: torch.Tensor) -> tuple[torch.Tensor, tuple[float, ...]]:
            s = open_gates(gate(h).float().sigmoid()[0].tolist(), options.k, options.threshold)
            return model.backbone.logits(torch.cat([h, heads(h, s)[0]]) if s else h), ()

        yield from unverified_steps(model, prompt_ids, sampler, logits_of, first="full")
