"""The audit: the choices of `ar` after each prefix of a text (docs/methods.md, section 4)."""

from __future__ import annotations

from typing import Sequence

import torch

from dmtd_demo.decoders.stack import PREFILL_CHUNK, Stack
from dmtd_demo.models.model import Model


@torch.inference_mode()
def audit_ids(model: Model, prompt_ids: Sequence[int], ids: Sequence[int]) -> list[bool]:
    """Say for each generated id whether it is the argmax of `ar` given the text before it.

    One pass over the whole text, in chunks, outside every clock. Below float32 the long pass and
    single steps round differently, so there an id within one unit in the last place of the top
    logit agrees too.
    """
    stack = Stack(model.backbone, model.split)
    text = [*prompt_ids, *ids[:-1]]
    agrees: list[bool] = []
    for start in range(0, len(text), PREFILL_CHUNK):
        chunk = text[start : start + PREFILL_CHUNK]
        out, _ = stack.full(chunk)
        # the last prompt position judges the first id
        skip = max(len(prompt_ids) - 1 - start, 0)
        if skip >= len(chunk):
            continue
        logits = model.backbone.logits(model.backbone.final_norm(out[0, skip:]))
        wanted = torch.tensor(
            ids[len(agrees) : len(agrees) + logits.shape[0]], device=logits.device
        )
        best = logits.max(-1)
        agree = best.indices == wanted
        if logits.dtype != torch.float32:
            own = logits.gather(-1, wanted[:, None])[:, 0].float()
            top = best.values.float()
            ulp = torch.finfo(logits.dtype).eps * 2 ** torch.floor(
                torch.log2(top.abs().clamp_min(1e-30))
            )
            agree |= top - own <= ulp
        agrees += agree.tolist()
    return agrees
