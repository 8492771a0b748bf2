"""The audit: the choices of `ar` after each prefix of a text (docs/methods.md, section 4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterator, Sequence

import torch
from torch import Tensor

from dmtd_demo.backbone.fused import FEW
from dmtd_demo.decoders.stack import PREFILL_CHUNK, Stack
from dmtd_demo.models.model import Model

# rows of logits that are turned into probabilities at once: in float32 a row takes 600 KB
ROWS = 32


@dataclass(frozen=True)
class Judged:
    """What `ar` says of one token, given the text before it.

    agrees: whether it would have chosen it. choice: the id of its own choice, the most probable
    token. probability, own: those that it gives to its choice and to the token.
    """

    agrees: bool
    choice: int
    probability: float
    own: float


@torch.inference_mode()
def audit_ids(model: Model, prompt_ids: Sequence[int], ids: Sequence[int]) -> list[Judged]:
    """Judge each generated id by `ar` given the text before it.

    Passes over the whole text, in chunks, outside every clock. Below float32 passes over many
    positions and single steps may round differently, so there an id within one unit in the last
    place of the top logit agrees too.
    """
    parts = logits_before(model, prompt_ids, ids)
    return [judged for logits, wanted in parts for judged in _judge(logits, wanted)]


def logits_before(
    model: Model, prompt_ids: Sequence[int], ids: Sequence[int]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the logits of `ar` [n, vocabulary] before each of n ids, and those ids, in chunks.

    Where a position comes out the same beside FEW others as alone, the text is read as steps read
    it, the prompt first and then so many at a time: near-ties fall as they fell for `ar` itself.
    """
    stack = Stack(model.backbone, model.split)
    text, first = [*prompt_ids, *ids[:-1]], len(prompt_ids) - 1
    if model.alike and model.backbone.dtype != torch.float32:
        starts = [*range(0, len(prompt_ids), PREFILL_CHUNK)]
        starts += range(len(prompt_ids), len(text), FEW)
    else:
        starts = [*range(0, len(text), PREFILL_CHUNK)]
    for start, stop in zip(starts, [*starts[1:], len(text)]):
        out, _ = stack.full(text[start:stop])
        # the last prompt position gives the first id
        if stop <= first:
            continue
        skip = max(first - start, 0)
        logits = model.backbone.logits(model.backbone.final_norm(out[0, skip:]))
        wanted = ids[start + skip - first : stop - first]
        yield logits, torch.tensor(wanted, device=logits.device)


def _judge(logits: Tensor, wanted: Tensor) -> list[Judged]:
    """Judge the ids `wanted` [n] by logits [n, vocabulary]."""
    best = logits.max(-1)
    own = logits.gather(-1, wanted[:, None])[:, 0].float()
    top = best.values.float()
    agree = best.indices == wanted
    if logits.dtype != torch.float32:
        ulp = torch.finfo(logits.dtype).eps * 2 ** torch.floor(
            torch.log2(top.abs().clamp_min(1e-30))
        )
        agree |= top - own <= ulp
    mass = torch.cat([rows.float().logsumexp(-1) for rows in logits.split(ROWS)])
    chances = ((value - mass).exp().tolist() for value in (top, own))
    return [Judged(*row) for row in zip(agree.tolist(), best.indices.tolist(), *chances)]
