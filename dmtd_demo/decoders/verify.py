"""The pass of the lossless decoders: drafts, one full pass over them, and the tokens that stand.

docs/methods.md, section 2, "Self-speculative DMTD".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dmtd_demo.decoders.base import Run, Token
from dmtd_demo.decoders.stack import Stack
from dmtd_demo.sampling import Choice, Sampler


@dataclass(frozen=True)
class Drafts:
    """Tokens to be verified.

    logits: the distributions that they were drawn from, as `Drafting` has them, [drafts,
    vocabulary] at a temperature; None where they were not drawn (n-gram drafts). origin: of those
    that stand.
    """

    choices: Sequence[Choice]
    logits: Tensor | None
    origin: str


def verify(
    stack: Stack, pending: int, drafts: Drafts, sampler: Sampler
) -> tuple[tuple[Token, ...], tuple[Run, ...], Tensor]:
    """Verify drafts by one full pass over the pending token and them; roll back the KV cache.

    Returns the accepted drafts with the pass's own next token after them, the pass's runs, and the
    kept positions' hidden states after the final norm, [1 + accepted, hidden].
    """
    before = stack.length
    choices = drafts.choices
    ids = [draft.id for draft in choices]
    stack.cache.keep(before if ids else None)
    out, runs = stack.full([pending, *ids])
    hidden = stack.backbone.final_norm(out[0])
    logits = stack.backbone.logits(hidden)
    accepted, following = sampler.verify(ids, drafts.logits, logits)
    stack.rewind(before + 1 + accepted)
    # no computation drew them: their record is the verifier's
    if drafts.logits is None and accepted:
        choices = sampler.describe(
            torch.tensor(ids[:accepted], device=logits.device), logits[:accepted]
        )
    return (
        (
            *(Token.of(draft, drafts.origin) for draft in choices[:accepted]),
            Token.of(following, "full"),
        ),
        runs,
        hidden[: accepted + 1],
    )
