"""The recipe of MTP heads on a frozen backbone, in Medusa's form.

CLP paper, arXiv 2606.10935; docs/methods.md, section 3.
"""

from __future__ import annotations

from pathlib import Path
from typing import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from dmtd_demo.backbone.qwen import Backbone
from dmtd_demo.backbone.split import Split
from dmtd_demo.models.addons import MTPHeads, save_addon
from dmtd_demo.training.data import IGNORED, Batch
from dmtd_demo.training.loop import Lost, Progress, Recipe
from dmtd_demo.training.masking import frozen_hidden

K = 4
FALL = 0.8  # relative weight of head i: FALL ** (i - 1)


def shifted(targets: Tensor, by: int) -> Tensor:
    """Return the tokens `by` further on than targets [rows, n]; -100 where the row has none."""
    return F.pad(targets[:, by:], (0, by), value=IGNORED)


def heads_loss(
    backbone: Backbone, heads: MTPHeads, h: Tensor, targets: Tensor, read: Tensor
) -> tuple[Tensor, dict[str, float], Tensor]:
    """Return the heads' loss, each head's accuracy, and which heads were right.

    The loss is the cross-entropy of head i against the token at n + 1 + i, summed over the heads.
    h [rows, n, hidden]: the last hidden states; targets [rows, n]; read [rows, n] bool: the
    positions that count. Which were right: [positions, k] bool, those past the answer's end among
    them.
    """
    states = heads(h[read])
    total = states.new_zeros((), dtype=torch.float32)
    figures = {}
    right = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
    for i in range(1, heads.k + 1):
        wanted = shifted(targets, i)[read]
        known = wanted != IGNORED
        if not known.any():
            continue
        logits = backbone.logits(states[known, i - 1]).float()
        total = total + FALL ** (i - 1) * F.cross_entropy(logits, wanted[known])
        right[known, i - 1] = logits.argmax(-1) == wanted[known]
        figures[f"acc{i}"] = right[known, i - 1].float().mean().item()
    return total, figures, right


def recipe(
    backbone: Backbone, split: Split, heads: MTPHeads, name: str, trained: bool
) -> Recipe[Batch]:
    """Return the recipe of the heads alone, at every position that a decoder reads.

    trained: they were trained with the backbone, and go on at a lower rate.
    """

    def loss(batch: Batch, progress: Progress) -> Lost:
        return heads_loss(
            backbone,
            heads,
            frozen_hidden(backbone, split, batch.ids),
            batch.targets,
            batch.phase >= -1,
        )[:2]

    return _recipe("heads", "mtp_heads", heads, loss, name, rate=1e-3 if trained else 1e-2)


def head0_recipe(backbone: Backbone, split: Split, name: str) -> Recipe[Batch]:
    """Return the recipe of head 0 of the heads-only baseline.

    It is one head for token n + 1, where the backbone's own LM head would be.
    """
    head0 = MTPHeads(backbone.hidden_size, 1).to(backbone.device)

    def loss(batch: Batch, progress: Progress) -> Lost:
        # heads_loss reads the token after the next one: targets moved back by one make that the
        # next
        return heads_loss(
            backbone,
            head0,
            frozen_hidden(backbone, split, batch.ids),
            F.pad(batch.targets, (1, 0), value=IGNORED)[:, :-1],
            batch.phase >= -1,
        )[:2]

    return _recipe("head0", "head0", head0, loss, name, rate=1e-2)


def _recipe(
    recipe: str,
    method: str,
    heads: MTPHeads,
    loss: Callable[[Batch, Progress], Lost],
    name: str,
    rate: float,
) -> Recipe[Batch]:
    """Return the recipe of these heads, which are saved as `method` of the model `name`."""

    def save(output: Path) -> None:
        save_addon(output / "model" / "addons", method, heads, name, heads.weight.shape[-1])

    return Recipe(
        recipe, heads, loss, save, learning_rate=rate, warm_up=0.03, decay=0.6, weight_decay=0.01
    )
