"""The recipes of predictors within cycles: lengths for `dmtd-adaptive`, late heads for `mixed`.

*(ours; docs/methods.md, section 4)*
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from dmtd_demo.backbone.qwen import Backbone
from dmtd_demo.backbone.split import Split
from dmtd_demo.models.addons import CollocationLengthPredictor, LateHeads, save_addon
from dmtd_demo.training.clp import CAREFUL, REPEATS, Seen, length_loss, prefix_length, right_guesses
from dmtd_demo.training.data import IGNORED, Batch
from dmtd_demo.training.heads import FALL, shifted
from dmtd_demo.training.loop import Lost, Progress, Recipe
from dmtd_demo.training.masking import autocast, frozen_hidden, masked_hidden

LONGEST = 6
WHOLE = 0.6  # share of the cycles that are as long as can be: those the labels are read from
LATE_K = 2


def random_cycles(rng: random.Random, phase: Tensor) -> tuple[Tensor, Tensor]:
    """Draw cycles of changing lengths after each row's prompt. phase: see Batch.

    Returns which positions are cycle heads (the prompt among them), and which of them begin a cycle
    of LONGEST that ends within the row, both [rows, n] bool.
    """
    heads, whole = phase < 0, torch.zeros_like(phase, dtype=torch.bool)
    n = phase.shape[1]
    for row, start in enumerate((phase < 0).sum(1).tolist()):
        while start < n:
            length = LONGEST if rng.random() < WHOLE else rng.randint(1, LONGEST - 1)
            heads[row, start] = True
            whole[row, start] = length == LONGEST and start + LONGEST <= n
            start += length
    return heads, whole


@torch.no_grad()
def _both(
    backbone: Backbone, split: Split, batch: Batch, heads: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return hidden states under the mask, the argmax there, and `ar`'s argmax."""
    with autocast(batch.ids.device):
        h = masked_hidden(backbone, split, batch.ids, heads).float()
    return (
        h,
        backbone.logits(h).argmax(-1),
        backbone.logits(frozen_hidden(backbone, split, batch.ids)).argmax(-1),
    )


def late_prefix(late: Tensor, greedy: Tensor, targets: Tensor) -> Tensor:
    """Return how many late-layer-only tokens after each position would be `ar`'s own.

    For each position as a head: on how many of the LONGEST - 1 positions from the next one on the
    late-layer-only argmax is the argmax of tau = 1, in a row: [rows, n], 0..LONGEST-1. Positions
    past the answer's end count as agreeing: what they emit is dropped.
    """
    agree = ((late == greedy) | (targets == IGNORED)).long()
    return prefix_length(torch.stack([shifted(agree, by) != 0 for by in range(1, LONGEST)], dim=-1))


def adaptive_recipe(backbone: Backbone, split: Split, name: str, seed: int) -> Recipe[Batch]:
    """Return the recipe of a linear predictor of cycle lengths.

    It is cross-entropy against the longest prefix that late-layer-only passes get right.
    """
    predictor = CollocationLengthPredictor(backbone.hidden_size, LONGEST - 1).to(backbone.device)
    seen = Seen()
    rng = random.Random(f"cycles:{seed}")

    def loss(batch: Batch, progress: Progress) -> Lost:
        heads, whole = random_cycles(rng, batch.phase)
        h, late, greedy = _both(backbone, split, batch, heads)
        read = whole & (batch.targets != IGNORED)
        seen.add(h[read], late_prefix(late, greedy, batch.targets)[read])
        return again()

    def again() -> Lost:
        return length_loss(predictor, *seen.draw())

    def save(output: Path) -> None:
        save_addon(
            output / "model" / "addons",
            "adaptive",
            predictor,
            name,
            backbone.hidden_size,
            threshold=CAREFUL,
        )

    return Recipe(
        "adaptive",
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


def mixed_recipe(
    backbone: Backbone, split: Split, module: LateHeads, name: str, seed: int, trained: bool
) -> Recipe[Batch]:
    """Return the recipe of MTP heads on late hidden states, and of their lengths beside them.

    The heads learn the tokens to come, the lengths how many of the heads' tokens are right at the
    time. trained: the heads were trained with the backbone, and go on at a lower rate.
    """
    module = module.to(backbone.device)
    rng = random.Random(f"cycles:{seed}")

    def loss(batch: Batch, progress: Progress) -> Lost:
        heads, _ = random_cycles(rng, batch.phase)
        h, _, greedy = _both(backbone, split, batch, heads)
        read = ~heads & (batch.targets != IGNORED)
        states = module.heads(h[read])
        total = h.new_zeros(())
        for i in range(1, LATE_K + 1):
            wanted = shifted(batch.targets, i)[read]
            total = total + FALL ** (i - 1) * F.cross_entropy(
                backbone.logits(states[:, i - 1]), wanted, ignore_index=IGNORED
            )
        labels = prefix_length(right_guesses(backbone, module.heads, h, batch.targets, greedy))[
            read
        ]
        lengths, figures = length_loss(module.lengths, h[read], labels)
        return total + lengths, figures

    def save(output: Path) -> None:
        save_addon(
            output / "model" / "addons",
            "mixed",
            module,
            name,
            backbone.hidden_size,
            threshold=CAREFUL,
        )

    return Recipe(
        "mixed",
        module,
        loss,
        save,
        learning_rate=1e-3 if trained else 1e-2,
        warm_up=0.03,
        decay=0.6,
        weight_decay=0.01,
    )
