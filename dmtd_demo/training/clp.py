"""The recipes of the collocation-length predictor and of the gate it replaces, both on trained MTP heads (CLP paper; methods.md section 3)."""
from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from dmtd_demo.addons import CollocationLengthPredictor, MTPHeads, SpanGate, save_addon
from dmtd_demo.backbone import Backbone
from dmtd_demo.split import Split
from dmtd_demo.training.data import IGNORED, Batch
from dmtd_demo.training.heads import shifted
from dmtd_demo.training.loop import Progress, Recipe
from dmtd_demo.training.masking import frozen_hidden

CAREFUL = 0.99   # the threshold that is saved before it is calibrated


@torch.no_grad()
def right_guesses(backbone: Backbone, heads: MTPHeads, h: Tensor, targets: Tensor, greedy: Tensor) -> Tensor:
    """Whether the prediction of head i at position n equals the backbone's own greedy token n + 1 + i: [rows, n, k] bool.

    h [rows, n, hidden]; targets [rows, n], -100 outside the answer; greedy [rows, n], the backbone's argmax at each position.
    """
    rows, n, hidden = h.shape
    states = heads(h.reshape(-1, hidden)).view(rows, n, heads.k, hidden)
    own = torch.where(targets == IGNORED, IGNORED, greedy)
    return torch.stack([backbone.logits(states[:, :, i - 1]).argmax(-1) == shifted(own, i) for i in range(1, heads.k + 1)], dim=-1)


def prefix_length(right: Tensor) -> Tensor:
    """right [..., k] bool: how many are true in a row from the first on, 0..k."""
    return right.long().cumprod(-1).sum(-1)


def weighted(counts: Tensor, labels: Tensor) -> Tensor:
    """Class weights for lengths seen so far (counts, updated here): rare lengths weigh a little more."""
    counts.add_(torch.bincount(labels, minlength=len(counts)))
    return (counts.sum() / counts) ** 0.1


def recipe(backbone: Backbone, split: Split, heads: MTPHeads, name: str) -> Recipe:
    """CLP: cross-entropy against the length of the correct prefix."""
    predictor = CollocationLengthPredictor(backbone.hidden_size, heads.k).to(backbone.device)
    counts = torch.ones(heads.k + 1, device=backbone.device)

    def loss(batch: Batch, progress: Progress) -> tuple[Tensor, dict[str, float]]:
        h, right = _features(backbone, split, heads, batch)
        labels = prefix_length(right)
        logits = predictor(h)
        accuracy = (logits.argmax(-1) == labels).float().mean().item()
        return F.cross_entropy(logits, labels, weight=weighted(counts, labels)), {"acc": accuracy, "mean": labels.float().mean().item()}

    def save(output: Path) -> None:
        save_addon(output / "model" / "addons", "clp", predictor, name, backbone.hidden_size, threshold=CAREFUL)

    return Recipe("clp", predictor, loss, save, learning_rate=2e-2, warm_up=0.05, decay=0.7, weight_decay=0.0)


def gate_recipe(backbone: Backbone, split: Split, heads: MTPHeads, name: str) -> Recipe:
    """The gate: for each head, binary cross-entropy against whether its prediction is the backbone's own token."""
    gate = SpanGate(backbone.hidden_size, heads.k).to(backbone.device)

    def loss(batch: Batch, progress: Progress) -> tuple[Tensor, dict[str, float]]:
        h, right = _features(backbone, split, heads, batch)
        logits = gate(h)
        return F.binary_cross_entropy_with_logits(logits, right.float()), {"acc": ((logits > 0) == right).float().mean().item()}

    def save(output: Path) -> None:
        save_addon(output / "model" / "addons", "gate", gate, name, backbone.hidden_size, threshold=CAREFUL)

    return Recipe("gate", gate, loss, save, learning_rate=3e-3, warm_up=0.05, decay=0.7, weight_decay=0.01)


@torch.no_grad()
def _features(backbone: Backbone, split: Split, heads: MTPHeads, batch: Batch) -> tuple[Tensor, Tensor]:
    """Hidden states that a decoder reads, [m, hidden], and which heads are right there, [m, k]."""
    h = frozen_hidden(backbone, split, batch.ids)
    read = (batch.phase >= -1) & (batch.targets != IGNORED)
    return h[read], right_guesses(backbone, heads, h, batch.targets, backbone.logits(h).argmax(-1))[read]
