"""`clp`: MTP heads whose tokens are accepted as far as a collocation-length predictor says.

The Backbone-as-Architect rule of Xie and Zhou (arXiv 2606.10935; docs/methods.md, section 3).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Sequence, cast

import torch

from dmtd_demo.decoders.base import Decoder, Options, Steps, caution_option, option
from dmtd_demo.decoders.mtp import check_heads, heads_option, unverified_steps
from dmtd_demo.errors import UserError
from dmtd_demo.sampling import Sampler

if TYPE_CHECKING:
    from dmtd_demo.models.model import Model

RULES = ("cumulative", "argmax", "confidence")


@dataclass(frozen=True)
class CLPOptions(Options):
    k: int = heads_option("how many MTP heads may follow the backbone's own token")
    threshold: float = caution_option()
    rule: str = option(
        "cumulative",
        str,
        "rule",
        "cumulative: the largest s with P(length ≥ s) ≥ caution; argmax: the likeliest length; "
        "confidence: cumulative, by how sure the heads are in place of the hidden state",
        choices=RULES,
    )


def folded_lengths(probabilities: Sequence[float], k: int) -> tuple[float, ...]:
    """Fold P(length = 0..K) into P(length = 0..k): the classes above k count as k."""
    return (*probabilities[:k], sum(probabilities[k:]))


def accepted_length(probabilities: Sequence[float], k: int, threshold: float, rule: str) -> int:
    """Return how many MTP tokens to accept, from P(length = 0..K) (docs/methods.md, section 3).

    A k below K folds the upper classes into k. A threshold of 1 accepts none: probabilities that
    round to 1 are no certainty.
    """
    folded = folded_lengths(probabilities, k)
    if rule == "argmax":
        return max(range(k + 1), key=folded.__getitem__)
    if threshold >= 1:
        return 0
    at_least = 0.0
    # P(length >= s) only grows as s falls: the first one over the threshold is the largest s
    for s in range(k, 0, -1):
        at_least += folded[s]
        if at_least >= threshold:
            return s
    return 0


class CollocationLength(Decoder[CLPOptions]):
    name = "clp"
    label = "MTP heads with CLP"
    needs = frozenset({"mtp_heads", "clp"})
    Options = CLPOptions

    @classmethod
    def model_defaults(cls, model: Model) -> dict[str, Any]:
        return {"k": model.addons["clp"].k, "threshold": model.addon_facts["clp"]["threshold"]}

    @classmethod
    def resolve(cls, options: CLPOptions, model: Model) -> CLPOptions:
        reader = model.addons.get("confidence" if options.rule == "confidence" else "clp")
        if options.rule == "confidence":
            if reader is None:
                raise UserError(
                    "the rule confidence needs a reader of confidences trained for "
                    f"{model.name}; none is there: take cumulative"
                )
            threshold = model.addon_facts["confidence"]["threshold"]
            options = replace(
                options,
                k=reader.k if options.k is None else options.k,
                threshold=threshold if options.threshold is None else options.threshold,
            )
        options = super().resolve(options, model)
        check_heads(options.k, model, min(model.addons["mtp_heads"].k, cast(Any, reader).k))
        return options

    @torch.inference_mode()
    def steps(self, model: Model, prompt_ids: Sequence[int], sampler: Sampler) -> Steps:
        options = self.resolve(self.options, model)
        heads, backbone = model.addons["mtp_heads"], model.backbone
        sure = options.rule == "confidence"
        predictor = model.addons["confidence" if sure else "clp"]

        # the backbone's own token first, then one per accepted head
        def logits_of(h: torch.Tensor) -> tuple[torch.Tensor, tuple[float, ...]]:
            guessed = None
            if sure:
                guessed = backbone.logits(torch.cat([h, heads(h, predictor.k)[0]]))
                lengths = predictor(predictor.figures(guessed[None]))
            else:
                lengths = predictor(h)
            probabilities = lengths.float().softmax(-1)[0].tolist()
            s = accepted_length(
                probabilities, options.k, options.threshold, "cumulative" if sure else options.rule
            )
            if guessed is None:
                logits = backbone.logits(torch.cat([h, heads(h, s)[0]]) if s else h)
            else:
                logits = guessed[: s + 1]
            return logits, folded_lengths(probabilities, options.k)

        yield from unverified_steps(model, prompt_ids, sampler, logits_of, first="full")
