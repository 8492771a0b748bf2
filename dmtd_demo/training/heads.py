"""The recipe of MTP heads on a frozen backbone (CLP paper; Medusa's form; methods.md section 3)."""
from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from dmtd_demo.addons import MTPHeads, save_addon
from dmtd_demo.backbone import Backbone
from dmtd_demo.split import Split
from dmtd_demo.training.classroom import masked_hidden
from dmtd_demo.training.data import IGNORED, Batch
from dmtd_demo.training.loop import Progress, Recipe

K = 4
FALL = 0.8   # relative weight of head i: FALL ** (i - 1)


def shifted(targets: Tensor, by: int) -> Tensor:
    """targets [rows, n] (the next token) to the token `by` further on; -100 where the row has none."""
    return F.pad(targets[:, by:], (0, by), value=IGNORED)


@torch.no_grad()
def frozen_hidden(backbone: Backbone, split: Split, ids: Tensor, exact: bool = False) -> Tensor:
    """The backbone's last hidden states with every position a head, [rows, n, hidden]. exact: float32, else bfloat16 autocast."""
    with torch.autocast(ids.device.type, dtype=torch.bfloat16, enabled=not exact):
        return masked_hidden(backbone, split, ids, torch.ones_like(ids, dtype=torch.bool)).float()


def recipe(backbone: Backbone, split: Split, name: str, k: int = K) -> Recipe:
    """Cross-entropy of head i against the token at n + 1 + i, at every position that a decoder reads."""
    heads = MTPHeads(backbone.hidden_size, k).to(backbone.device)

    def loss(batch: Batch, progress: Progress) -> tuple[Tensor, dict[str, float]]:
        read = batch.phase >= -1
        h = frozen_hidden(backbone, split, batch.ids)[read]
        states = heads(h)
        total = h.new_zeros(())
        figures = {}
        for i in range(1, k + 1):
            wanted = shifted(batch.targets, i)[read]
            known = wanted != IGNORED
            logits = backbone.logits(states[known, i - 1])
            total = total + FALL ** (i - 1) * F.cross_entropy(logits, wanted[known])
            figures[f"acc{i}"] = (logits.argmax(-1) == wanted[known]).float().mean().item()
        return total, figures

    def save(output: Path) -> None:
        save_addon(output / "model" / "addons", "mtp_heads", heads, name, backbone.hidden_size)

    return Recipe("heads", heads, loss, save, learning_rate=1e-2, warm_up=0.03, decay=0.6, weight_decay=0.01)


