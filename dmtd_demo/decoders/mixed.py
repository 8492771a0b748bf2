"""`mixed`: a full pass, then late-layer-only passes, then MTP heads on the last late hidden state.

Ours; docs/methods.md, section 4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Sequence

import torch

from dmtd_demo.decoders.base import Pass, Step, Steps, Token
from dmtd_demo.decoders.clp import accepted_length
from dmtd_demo.decoders.dmtd import split_of
from dmtd_demo.decoders.dmtd_adaptive import AdaptiveCycles, late_tokens
from dmtd_demo.decoders.stack import Stack, prefill
from dmtd_demo.sampling import Sampler

if TYPE_CHECKING:
    from dmtd_demo.models.model import Model


class Mixed(AdaptiveCycles):
    """One text with all three origins.

    `max` counts the full and late tokens of a cycle, whose predictor is as cautious as its own
    default; the MTP tokens come on top, and `threshold` is theirs.
    """

    name = "mixed"
    label = "DMTD, then MTP heads"
    needs = frozenset({"split", "adaptive", "mixed"})
    threshold_of = "mixed"

    @torch.inference_mode()
    def steps(self, model: Model, prompt_ids: Sequence[int], sampler: Sampler) -> Steps:
        options = self.resolve(self.options, model)
        mixed, backbone = model.addons["mixed"], model.backbone
        stack = Stack(backbone, split_of(options.split, model))
        token = yield from prefill(stack, prompt_ids, sampler)
        unread = [token.id]
        while True:
            # the MTP tokens have no late entry yet: they are read as heads, beside the refill
            out, runs = stack.full(unread)
            h = stack.last_hidden(out)
            token = Token.of(sampler.choose(backbone.logits(h))[0], "full")
            yield Step((token,), (Pass("full", runs),))
            unread = [token.id]
            late = late_tokens(model, h, options.max, model.addon_facts["adaptive"]["threshold"])
            for i in range(late):
                out, runs = stack.late(unread[0])
                h = stack.last_hidden(out)
                s = (
                    0
                    if i < late - 1
                    else accepted_length(
                        mixed.lengths(h).float().softmax(-1)[0].tolist(),
                        mixed.k,
                        options.threshold,
                        "cumulative",
                    )
                )
                first, *mtp = sampler.choose(
                    backbone.logits(torch.cat([h, mixed.heads(h, s)[0]]) if s else h)
                )
                tokens = (Token.of(first, "late"), *(Token.of(choice, "mtp") for choice in mtp))
                yield Step(tokens, (Pass("late", runs),))
                unread = [t.id for t in tokens]
