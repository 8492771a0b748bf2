"""The recipes of the collocation-length predictor and of the gate, both on trained MTP heads.

CLP paper, arXiv 2606.10935; docs/methods.md, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from dmtd_demo.backbone.qwen import Backbone
from dmtd_demo.backbone.split import Split
from dmtd_demo.models.addons import CollocationLengthPredictor, MTPHeads, SpanGate, save_addon
from dmtd_demo.models.native_mtp import NativeMTP
from dmtd_demo.training.data import IGNORED, Batch
from dmtd_demo.training.heads import K, shifted
from dmtd_demo.training.loop import Lost, Progress, Recipe
from dmtd_demo.training.masking import frozen_hidden

REPEATS = 20  # updates for each batch
DRAWN = 2048  # positions of an update
CAREFUL = 0.99  # the threshold that is saved before it is calibrated


@torch.no_grad()
def right_guesses(
    backbone: Backbone, heads: MTPHeads, h: Tensor, targets: Tensor, greedy: Tensor
) -> Tensor:
    """Return whether head i's prediction at position n is the backbone's own token n + 1 + i.

    h [rows, n, hidden]; targets [rows, n], -100 outside the answer; greedy [rows, n], the
    backbone's argmax at each position. Returns [rows, n, k] bool. Past the answer's end every guess
    is right: what a step emits after the end mark is dropped.
    """
    rows, n, hidden = h.shape
    states = heads(h.reshape(-1, hidden)).view(rows, n, heads.k, hidden)
    own = torch.where(targets == IGNORED, IGNORED, greedy)
    wanted = [shifted(own, i) for i in range(1, heads.k + 1)]
    return torch.stack(
        [
            (backbone.logits(states[:, :, i]).argmax(-1) == token) | (token == IGNORED)
            for i, token in enumerate(wanted)
        ],
        dim=-1,
    )


@dataclass(frozen=True)
class OwnHead:
    """A model's own MTP head in the place of trained ones: k drafts after each position."""

    head: NativeMTP
    k: int = K

    def right(self, h: Tensor, ids: Tensor, targets: Tensor, greedy: Tensor) -> Tensor:
        """As `right_guesses`, of one row: h [1, n, hidden]; ids, targets and greedy [1, n]."""
        guesses = F.pad(self.head.guesses(h[0], ids[0], self.k), (0, 0, 0, 1), value=IGNORED)[None]
        own = torch.where(targets == IGNORED, IGNORED, greedy)
        wanted = torch.stack([shifted(own, i) for i in range(1, self.k + 1)], dim=-1)
        return (guesses == wanted) | (wanted == IGNORED)


def prefix_length(right: Tensor) -> Tensor:
    """Return how many of right [..., k] bool are true in a row from the first on, 0..k."""
    return right.long().cumprod(-1).sum(-1)


class Seen:
    """Features and labels of every batch so far.

    A predictor of a few thousand parameters needs many updates, and its features cost a forward
    pass.
    """

    def __init__(self) -> None:
        self._kept: list[tuple[Tensor, Tensor]] = []
        self._all: tuple[Tensor, Tensor] | None = None

    def add(self, features: Tensor, labels: Tensor) -> None:
        """Keep a batch's features, [m, hidden], and labels, [m] or [m, k]."""
        self._kept.append((features, labels))
        self._all = None

    def draw(self, count: int = DRAWN) -> tuple[Tensor, Tensor]:
        """Draw `count` positions at random, [count, hidden], and their labels."""
        if self._all is None:
            features, labels = zip(*self._kept)
            self._all = torch.cat(features), torch.cat(labels)
        chosen = torch.randint(len(self._all[0]), (count,), device=self._all[0].device)
        return self._all[0][chosen], self._all[1][chosen]


def recipe(
    backbone: Backbone,
    split: Split,
    heads: MTPHeads,
    predictor: CollocationLengthPredictor,
    name: str,
) -> Recipe[Batch]:
    """Return CLP's recipe: cross-entropy against the length of the correct prefix."""
    seen = Seen()

    def loss(batch: Batch, progress: Progress) -> Lost:
        h, right = _features(backbone, split, heads, batch)
        seen.add(h, prefix_length(right))
        return again()

    def again() -> Lost:
        return length_loss(predictor, *seen.draw())

    def save(output: Path) -> None:
        save_addon(
            output / "model" / "addons",
            "clp",
            predictor,
            name,
            backbone.hidden_size,
            threshold=CAREFUL,
        )

    return Recipe(
        "clp",
        predictor,
        loss,
        save,
        again=again,
        learning_rate=5e-3,
        warm_up=0.05,
        decay=0.8,
        weight_decay=0.0,
        repeats=REPEATS,
    )


def length_loss(predictor: CollocationLengthPredictor, h: Tensor, labels: Tensor) -> Lost:
    """Return the cross-entropy of the predicted lengths, rare ones weighing a little more.

    h [n, hidden]; labels [n], 0..k.
    """
    counts = torch.bincount(labels, minlength=predictor.k + 1) + 1
    logits = predictor(h)
    accuracy = (logits.argmax(-1) == labels).float().mean().item()
    return F.cross_entropy(logits, labels, weight=(counts.sum() / counts) ** 0.1), {
        "acc": accuracy,
        "mean": labels.float().mean().item(),
    }


def gate_recipe(backbone: Backbone, split: Split, heads: MTPHeads, name: str) -> Recipe[Batch]:
    """Return the gate's recipe.

    For each head it is binary cross-entropy against whether its prediction is the backbone's own
    token.
    """
    gate = SpanGate(backbone.hidden_size, heads.k).to(backbone.device)
    seen = Seen()

    def loss(batch: Batch, progress: Progress) -> Lost:
        seen.add(*_features(backbone, split, heads, batch))
        return again()

    def again() -> Lost:
        h, right = seen.draw()
        logits = gate(h)
        return F.binary_cross_entropy_with_logits(logits, right.float()), {
            "acc": ((logits > 0) == right).float().mean().item()
        }

    def save(output: Path) -> None:
        save_addon(
            output / "model" / "addons", "gate", gate, name, backbone.hidden_size, threshold=CAREFUL
        )

    return Recipe(
        "gate",
        gate,
        loss,
        save,
        again=again,
        learning_rate=2e-3,
        warm_up=0.05,
        decay=0.8,
        weight_decay=0.01,
        repeats=REPEATS,
    )


@torch.no_grad()
def _features(
    backbone: Backbone, split: Split, heads: MTPHeads, batch: Batch
) -> tuple[Tensor, Tensor]:
    """Return the states that a decoder reads, [m, hidden], and which heads are right, [m, k]."""
    h = frozen_hidden(backbone, split, batch.ids)
    read = (batch.phase >= -1) & (batch.targets != IGNORED)
    return h[read], right_guesses(backbone, heads, h, batch.targets, backbone.logits(h).argmax(-1))[
        read
    ]
