"""Sampled softmax against the whole one: python benchmarks/sampled_softmax.py --data FILE.jsonl
[--model NAME --rows 200 --updates 300 --threads 1 --json]

Two sets of MTP heads learn from the same draws of the same hidden states, update by update in turn:
one by a softmax over the tokens of the data and a sample of the others (training/features.py), one
by the whole vocabulary. Both are judged over the whole vocabulary, on every tenth text, which
neither saw: each head's share of right tokens, and its cross-entropy in nats. The times are medians
of an update.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if TYPE_CHECKING:
    import torch

    from dmtd_demo.models.model import Model
    from dmtd_demo.training import features
    from dmtd_demo.training.loop import Progress


ROOM = 2**32  # bytes of hidden states


class Learner:
    """Heads that learn by one of the two."""

    def __init__(self, model: Model, labels: torch.Tensor | None) -> None:
        import torch

        from dmtd_demo.training import features

        self.recipe = features.recipe("heads", model, 0, 0, {}, labels)
        self.heads = self.recipe.trainable
        self.optimizer = torch.optim.AdamW(
            self.heads.parameters(),
            lr=self.recipe.learning_rate,
            weight_decay=self.recipe.weight_decay,
        )
        self.seconds: list[float] = []

    def update(self, batch: features.Features, progress: Progress) -> None:
        began = time.perf_counter()
        loss, _ = self.recipe.loss(batch, progress)
        self.optimizer.zero_grad()
        loss.sum().backward()
        self.optimizer.step()
        self.seconds.append(time.perf_counter() - began)


def judged(model: Model, heads: Any, held: features.Features) -> dict[str, list[float]]:
    """Return each head's accuracy and cross-entropy over the whole vocabulary."""
    import torch
    from torch.nn import functional as F

    from dmtd_demo.training.data import IGNORED

    with torch.no_grad():
        right, lost, count = [[0.0] * heads.k for _ in range(3)]
        for h, labels in zip(held.h.split(256), held.labels.split(256)):
            states = heads(h.float())
            for i in range(heads.k):
                known = labels[:, i] != IGNORED
                logits = model.backbone.logits(states[known, i]).float()
                right[i] += (logits.argmax(-1) == labels[known, i]).sum().item()
                lost[i] += F.cross_entropy(logits, labels[known, i], reduction="sum").item()
                count[i] += int(known.sum())
        return {
            "right": [round(a / n, 4) for a, n in zip(right, count)],
            "nats": [round(a / n, 3) for a, n in zip(lost, count)],
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="SmolLM2-135M-Instruct")
    parser.add_argument("--data", required=True, help="conversations, as `train` takes")
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--updates", type=int, default=300)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    # after --help, which needs none of it
    from dmtd_demo.backbone.split import Split
    from dmtd_demo.models.loading import load
    from dmtd_demo.training import features
    from dmtd_demo.training.any_model import HELD_OUT
    from dmtd_demo.training.corpus import read_rows
    from dmtd_demo.training.loop import Position, Progress

    model = load(options.model, quantization="none", dtype="bfloat16", threads=options.threads)
    with tempfile.TemporaryDirectory() as folder:
        answers = Path(folder) / "answers.jsonl"
        rows = read_rows(model, options.data, answers, options.rows, False)
    source = features.Source(model.backbone, model.split or Split.default(model.layers))
    learned = [row for i, row in enumerate(rows) if i % HELD_OUT]
    seen = features.collect("heads", source, learned, ROOM)
    held = features.collect("heads", source, rows[::HELD_OUT], ROOM)
    learners = {"sampled": Learner(model, seen.labels), "whole": Learner(model, None)}
    position = Position(Progress(0, 0, 0.0))
    draws = seen.draws("heads", 0, position)
    for done in range(1, options.updates + 1):
        batch = next(draws)
        for learner in learners.values():
            learner.update(batch, position.progress)
        position.progress = Progress(done, 0, done / options.updates)
        if done % 50 == 0 or done == options.updates:
            found = {
                name: {
                    **judged(model, each.heads, held),
                    "seconds": round(statistics.median(each.seconds), 3),
                }
                for name, each in learners.items()
            }
            print(
                json.dumps({"updates": done, **found})
                if options.json
                else f"{done} updates: {found}",
                flush=True,
            )
    print(
        f"{len(seen.h):,} positions, {len(held.h):,} held out, "
        f"{len(seen.labels.unique()):,} different tokens"
    )


if __name__ == "__main__":
    main()
