"""Cyclical masking: Direct Multi-Token Decoding over whole rows at once.

DMTD paper, arXiv 2510.11958, section 3.3; docs/methods.md, section 2.
"""

from __future__ import annotations

import contextlib
import os

import torch
from torch import Tensor

from dmtd_demo.backbone.qwen import Backbone
from dmtd_demo.backbone.split import Split
from dmtd_demo.errors import UserError


def masked_hidden(backbone: Backbone, split: Split, ids: Tensor, heads: Tensor) -> Tensor:
    """Return the hidden states after the final norm, [rows, n, hidden], by the formula of DMTD.

    ids [rows, n]; heads [rows, n] bool: where m = 1 (docs/methods.md, section 2).
    """
    c = backbone.run_layers(backbone.embed(ids), 0, split.early)
    thought = backbone.run_layers(c, split.early, split.late_start)
    at_head = c + thought if split.head_input == "sum" else thought
    u = torch.where(heads[..., None], at_head, c.to(at_head.dtype))
    gated = backbone.adapted_to == split and not bool(heads.all())
    late = backbone.run_layers(u, split.late_start, split.layers, at_head=heads if gated else None)
    return backbone.final_norm(late)


def cyclical_heads(phase: Tensor, tau: int | Tensor) -> Tensor:
    """Return which positions are cycle heads, [rows, n] bool.

    They are the whole prompt, then every tau-th generated position, the first of them included.
    tau: one for all, or one for each row, [rows, 1].
    """
    return (phase < 0) | (phase % tau == 0)


def autocast(device: torch.device) -> torch.autocast:
    """Return autocast to bfloat16 where the device is fast in it, else one that is switched off.

    It is on where `accelerate launch --mixed_precision bf16` asks for it, and else where the device
    has instructions for it: a CPU without them is many times slower in bfloat16 than in float32.
    Raises UserError for other precisions, which would need their gradients scaled.
    """
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if asked not in ("no", "bf16"):
        raise UserError(f"training needs the mixed precision bf16, or no; got {asked}")
    fast = asked == "bf16" or device.type != "cpu" or torch.cpu._is_avx512_bf16_supported()
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=fast)


@torch.no_grad()
def frozen_hidden(backbone: Backbone, split: Split, ids: Tensor, exact: bool = False) -> Tensor:
    """Return the backbone's last hidden states with every position a head, [rows, n, hidden].

    exact: in float32, else under `autocast`.
    """
    with contextlib.nullcontext() if exact else autocast(ids.device):
        return masked_hidden(backbone, split, ids, torch.ones_like(ids, dtype=torch.bool)).float()
