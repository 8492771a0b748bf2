"""`mtp-verified`: MTP heads draft, the backbone's next pass verifies: lossless against `ar`.

After Medusa (arXiv 2401.10774; docs/methods.md, section 3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Sequence

import torch

from dmtd_demo.decoders.base import Decoder, Pass, Step, Steps
from dmtd_demo.decoders.draft_tree import check_tree, tree_of_heads, tree_option, verify_tree
from dmtd_demo.decoders.drafting import Drafting
from dmtd_demo.decoders.mtp import HeadsOptions, check_heads, checked_heads
from dmtd_demo.decoders.stack import Stack, prefill
from dmtd_demo.decoders.verify import Drafts, verify
from dmtd_demo.sampling import Sampler

if TYPE_CHECKING:
    from dmtd_demo.models.model import Model


@dataclass(frozen=True)
class VerifiedHeadsOptions(HeadsOptions):
    tree: int = tree_option()


class VerifiedHeads(Decoder[VerifiedHeadsOptions]):
    name = "mtp-verified"
    label = "Checked heads (lossless)"
    lossless = True
    needs = frozenset({"mtp_heads"})
    Options = VerifiedHeadsOptions

    @classmethod
    def model_defaults(cls, model: Model) -> dict[str, Any]:
        return {"k": checked_heads(model)}

    @classmethod
    def resolve(cls, options: VerifiedHeadsOptions, model: Model) -> VerifiedHeadsOptions:
        options = super().resolve(options, model)
        check_heads(options.k, model, model.addons["mtp_heads"].k)
        check_tree(options.tree, model)
        return options

    @torch.inference_mode()
    def steps(self, model: Model, prompt_ids: Sequence[int], sampler: Sampler) -> Steps:
        options = self.resolve(self.options, model)
        heads = model.addons["mtp_heads"]
        stack = Stack(model.backbone, model.split)
        drafting = Drafting(model, sampler)
        token = yield from prefill(stack, prompt_ids, sampler)
        # none of the position before the token after the prefill
        hidden = None
        while True:
            k = 0 if hidden is None else min(options.k, stack.room - 1)
            if options.tree and k > 0:
                tree = tree_of_heads(heads(hidden, k)[0], options.tree, drafting)
                step, h = verify_tree(stack, token.id, tree, drafting)
            else:
                choices, logits = drafting.choose(heads(hidden, k)[0]) if k > 0 else ([], None)
                drafts = Drafts(choices, logits, "mtp")
                tokens, runs, h = verify(stack, token.id, drafts, sampler)
                step = Step(tokens, (Pass("verify", runs),))
            yield step
            token, hidden = step.tokens[-1], h[-1:]
