"""`mtp-native`: Backbone-as-Architect on a head that reads its drafts (CLP, arXiv 2606.10935)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Sequence

import torch
from torch import Tensor

from dmtd_demo.decoders.base import Decoder, Options, Pass, Step, Steps, Token, option
from dmtd_demo.decoders.clp import accepted_length, folded_lengths
from dmtd_demo.decoders.drafting import Drafting
from dmtd_demo.decoders.native import NativeText, drafts_option, native_prefill
from dmtd_demo.decoders.stack import Stack
from dmtd_demo.errors import UserError
from dmtd_demo.sampling import Choice, Sampler

if TYPE_CHECKING:
    from dmtd_demo.models.model import Model

NATIVE_RULES = ("cumulative", "argmax", "probability")
# the threshold where no predictor is trained and the head's card names none
LIKELY = 0.9


@dataclass(frozen=True)
class NativeOptions(Options):
    k: int = drafts_option("how many drafts of the head may follow the backbone's own token")
    threshold: float = option(
        None,
        float,
        "caution",
        "keep as many drafts as are held right with at least this probability",
        within=(0.0, 1.0, 0.0001),
    )
    rule: str = option(
        None,
        str,
        "rule",
        "cumulative and argmax: by a length predictor, as in clp; probability: "
        "as long as each draft's own probability reaches caution",
        choices=NATIVE_RULES,
    )


class NativeHead(Decoder[NativeOptions]):
    """The backbone makes the first token of every step; drafts of the head are kept unchecked, as
    far as a collocation-length predictor says, or, where none is trained, while they are likely."""

    name = "mtp-native"
    label = "An MTP head's own drafts"
    needs = frozenset({"native_mtp"})
    Options = NativeOptions

    @classmethod
    def model_defaults(cls, model: Model) -> dict[str, Any]:
        facts = model.addon_facts.get("native_clp")
        if facts is None:
            own = model.addon_facts.get("native_mtp", {})
            return {"k": 1, "threshold": LIKELY, **own, "rule": "probability"}
        return {"k": facts["k"], "threshold": facts["threshold"], "rule": "cumulative"}

    @classmethod
    def resolve(cls, options: NativeOptions, model: Model) -> NativeOptions:
        options = super().resolve(options, model)
        if options.rule != "probability":
            predictor = model.addons.get("native_clp")
            if predictor is None:
                raise UserError(
                    f"the rule {options.rule} needs a length predictor trained for the "
                    f"MTP head of {model.name}; none is there: take probability"
                )
            if options.k > predictor.k:
                raise UserError(
                    f"the option k needs a value from 1 to {predictor.k}, the drafts "
                    f"that the predictor knows; got {options.k}"
                )
        return options

    @torch.inference_mode()
    def steps(self, model: Model, prompt_ids: Sequence[int], sampler: Sampler) -> Steps:
        options = self.resolve(self.options, model)
        backbone = model.backbone
        stack, text = Stack(backbone, model.split), NativeText(model)
        drafting = Drafting(model, sampler)
        token = yield from native_prefill(stack, text, prompt_ids, sampler)
        emitted, waiting = [token.id], [token.id]
        while True:
            out, runs = stack.full(emitted)
            states = backbone.final_norm(out[0])
            text.saw(states)
            first = sampler.choose(backbone.logits(states[-1:]))[0]
            waiting.append(first.id)
            drafts: list[Choice] = []
            longest, lengths = self._length(model, states[-1:], options)
            longest = min(longest, stack.room - 1)
            if (
                longest > 0
                and options.rule == "probability"
                and not text.worth_drafting(first.id, options.threshold)
            ):
                longest = 0
            # where nothing is drafted the pairs wait for a step that drafts
            if longest > 0:
                drafts = self._drafts(text, text.pair(waiting), longest, options, drafting)
                waiting = [draft.id for draft in drafts]
            emitted = [first.id, *(draft.id for draft in drafts)]
            yield Step(
                (Token.of(first, "full"), *(Token.of(draft, "mtp") for draft in drafts)),
                (Pass("full", runs),),
                lengths,
            )

    @staticmethod
    def _length(
        model: Model, state: Tensor, options: NativeOptions
    ) -> tuple[int, tuple[float, ...]]:
        """Return how many drafts to make after a state [1, hidden], and the probabilities."""
        if options.rule == "probability":
            # as in `accepted_length`: what rounds to 1 is no certainty
            return options.k if options.threshold < 1 else 0, ()
        predictor = model.addons["native_clp"]
        probabilities = predictor(state).float().softmax(-1)[0].tolist()
        longest = accepted_length(probabilities, options.k, options.threshold, options.rule)
        return longest, folded_lengths(probabilities, options.k)

    @staticmethod
    def _drafts(
        text: NativeText, m: Tensor, longest: int, options: NativeOptions, drafting: Drafting
    ) -> list[Choice]:
        if options.rule != "probability":
            return text.drafts(m, longest, drafting)[0]
        # each by itself, where `Likely` looks at all together: none is drawn where not even the
        # likeliest token is likely enough
        drafts, _ = text.drafts(
            m,
            longest,
            drafting,
            lambda row: row.float().softmax(-1).amax().item() >= options.threshold,
        )
        likely = [math.exp(draft.logprob) >= options.threshold for draft in drafts]
        return drafts[: (likely + [False]).index(False)]
