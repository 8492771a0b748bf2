"""What the lossless decoders share: a draft, one pass over it, and what stands (docs/methods.md, section 2)."""

from __future__ import annotations

from typing import Sequence

import torch
from torch import Tensor

from dmtd_demo.decoders.base import Run, Token
from dmtd_demo.decoders.stack import Stack
from dmtd_demo.sampling import Choice, Sampler


def verify(
    stack: Stack,
    pending: int,
    drafts: Sequence[Choice],
    draft_logits: Tensor | None,
    sampler: Sampler,
    origin: str,
) -> tuple[tuple[Token, ...], tuple[Run, ...], Tensor]:
    """One pass over the pending token and its drafts, every position a head; the KV cache is rolled back to what stands.

    draft_logits [drafts, vocabulary]: what the drafts were drawn from; None where they were not drawn (n-gram drafts). Returns the accepted drafts
    with the pass's own next token after them, the pass's runs, and the last kept position's hidden state after the final norm, [1, hidden].
    """
    before = stack.length
    out, runs = stack.full([pending, *(draft.id for draft in drafts)])
    hidden = stack.backbone.final_norm(out[0])
    logits = stack.backbone.logits(hidden)
    ids = [draft.id for draft in drafts]
    accepted, following = sampler.verify(ids, draft_logits, logits)
    stack.rewind(before + 1 + accepted)
    # no computation drew them: what is recorded of them is the verifier's
    if draft_logits is None and accepted:
        drafts = sampler.describe(
            torch.tensor(ids[:accepted], device=logits.device), logits[:accepted]
        )
    return (
        (*(Token.of(draft, origin) for draft in drafts[:accepted]), Token.of(following, "full")),
        runs,
        hidden[accepted : accepted + 1],
    )
