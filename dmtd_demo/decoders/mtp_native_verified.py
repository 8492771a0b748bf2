"""`mtp-native-verified`: an MTP head reads its own drafts, the next pass verifies: lossless."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Sequence

import torch

from dmtd_demo.decoders.base import Decoder, Options, Pass, Step, Steps
from dmtd_demo.decoders.draft_tree import check_tree, tree_of_drafts, tree_option, verify_tree
from dmtd_demo.decoders.drafting import Drafting
from dmtd_demo.decoders.native import (
    Likely,
    NativeText,
    drafts_option,
    native_prefill,
    p_min_option,
    usual_k,
    usual_p_min,
)
from dmtd_demo.decoders.stack import Stack
from dmtd_demo.decoders.verify import Drafts, verify
from dmtd_demo.sampling import Sampler

if TYPE_CHECKING:
    from dmtd_demo.models.model import Model


@dataclass(frozen=True)
class VerifiedNativeOptions(Options):
    k: int = drafts_option("how often the head is applied at most: tokens drafted for one pass")
    p_min: float = p_min_option()
    tree: int = tree_option()


class VerifiedNativeHead(Decoder[VerifiedNativeOptions]):
    """The decoding of Qwen3.5 in llama.cpp, vLLM and SGLang."""

    name = "mtp-native-verified"
    label = "Own drafts (lossless)"
    lossless = True
    needs = frozenset({"native_mtp"})
    Options = VerifiedNativeOptions

    @classmethod
    def model_defaults(cls, model: Model) -> dict[str, Any]:
        return {"k": usual_k(model), "p_min": usual_p_min(model)}

    @classmethod
    def resolve(cls, options: VerifiedNativeOptions, model: Model) -> VerifiedNativeOptions:
        options = super().resolve(options, model)
        check_tree(options.tree, model)
        return options

    @torch.inference_mode()
    def steps(self, model: Model, prompt_ids: Sequence[int], sampler: Sampler) -> Steps:
        options = self.resolve(self.options, model)
        stack, text = Stack(model.backbone, model.split), NativeText(model)
        drafting = Drafting(model, sampler)
        token = yield from native_prefill(stack, text, prompt_ids, sampler)
        new = [token.id]
        while True:
            m = text.pair(new)
            k = min(options.k, stack.room - 1)
            if options.tree and k > 0:
                tree = tree_of_drafts(text, m, k, options.tree, options.p_min, drafting)
                step, states = verify_tree(stack, new[-1], tree, drafting)
            else:
                choices, logits = text.drafts(m, k, drafting, Likely(options.p_min))
                drafts = Drafts(choices, logits, "mtp")
                tokens, runs, states = verify(stack, new[-1], drafts, sampler)
                step = Step(tokens, (Pass("verify", runs),))
            text.saw(states)
            yield step
            new = [t.id for t in step.tokens]
