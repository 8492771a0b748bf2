"""The recipe of MTP heads on a frozen backbone (CLP paper; Medusa's form; methods.md section 3)."""
from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from dmtd_demo.addons import MTPHeads, save_addon
from dmtd_demo.backbone import Backbone
from dmtd_demo.split import Split
from dmtd_demo.training.data import IGNORED, Batch
from dmtd_demo.training.loop import Progress, Recipe
from dmtd_demo.training.masking import frozen_hidden

K = 4
FALL = 0.8   # relative weight of head i: FALL ** (i - 1)


def shifted(targets: Tensor, by: int) -> Tensor:
    """targets [rows, n] (the next token) to the token `by` further on; -100 where the row has none."""
    return F.pad(targets[:, by:], (0, by), value=IGNORED)


def heads_loss(backbone: Backbone, heads: MTPHeads, h: Tensor, targets: Tensor, read: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Cross-entropy of head i against the token at n + 1 + i, summed over the heads, and each head's accuracy.

    h [rows, n, hidden]: the last hidden states; targets [rows, n]; read [rows, n] bool: the positions that count.
    """
    states = heads(h[read])
    total = states.new_zeros((), dtype=torch.float32)
    figures = {}
    for i in range(1, heads.k + 1):
        wanted = shifted(targets, i)[read]
        known = wanted != IGNORED
        logits = backbone.logits(states[known, i - 1]).float()
        total = total + FALL ** (i - 1) * F.cross_entropy(logits, wanted[known])
        figures[f"acc{i}"] = (logits.argmax(-1) == wanted[known]).float().mean().item()
    return total, figures


def recipe(backbone: Backbone, split: Split, heads: MTPHeads, name: str) -> Recipe:
    """The heads alone, at every position that a decoder reads."""

    def loss(batch: Batch, progress: Progress) -> tuple[Tensor, dict[str, float]]:
        return heads_loss(backbone, heads, frozen_hidden(backbone, split, batch.ids), batch.targets, batch.phase >= -1)

    def save(output: Path) -> None:
        save_addon(output / "model" / "addons", "mtp_heads", heads, name, backbone.hidden_size)

    return Recipe("heads", heads, loss, save, learning_rate=1e-2, warm_up=0.03, decay=0.6, weight_decay=0.01)
