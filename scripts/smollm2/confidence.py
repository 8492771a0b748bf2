"""The reader of confidences for `clp:rule=confidence`, from the shipped heads and conversations.

    python scripts/smollm2/confidence.py --texts 30 --learned 100

On a CPU, by the app's model in bfloat16: at positions of texts that were trained on it learns, from
how sure the LM head is of the next token and of two guesses, how many of the guesses are right; the
threshold is read off held-out texts.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from bundle import DATA, NAME
from held_out import rows

from dmtd_demo.decoders.clp import accepted_length
from dmtd_demo.models.addons import ConfidenceReader, save_addon
from dmtd_demo.models.loading import load
from dmtd_demo.models.model import Model
from dmtd_demo.training.calibrate import by_share
from dmtd_demo.training.clp import prefix_length
from dmtd_demo.training.data import Row
from dmtd_demo.training.masking import masked_hidden

FOLDER = ROOT / "assets" / "smollm2-135m"
K, WANTED = 2, 0.97
EPOCHS, DRAWN, RATE = 30, 256, 3e-3


@torch.inference_mode()
def seen(model: Model, texts: list[Row], most: int) -> tuple[Tensor, Tensor]:
    """Figures, [m, 3 (K + 1)], and right guesses in a row, [m], at up to `most` places a text."""
    found = []
    for row in texts:
        ids = torch.tensor([row.ids])
        everywhere = torch.ones_like(ids, dtype=torch.bool)
        h = masked_hidden(model.backbone, model.split, ids, everywhere)[0]
        greedy = model.backbone.logits(h[row.answer :]).argmax(-1)
        places = torch.randperm(len(greedy) - K)[:most]
        state = h[row.answer + places]
        guessed = model.addons["mtp_heads"](state, K)
        logits = model.backbone.logits(torch.cat([state[:, None], guessed], 1))
        wanted = torch.stack([greedy[places + i] for i in range(1, K + 1)], -1)
        right = prefix_length(logits[:, 1:].argmax(-1) == wanted)
        found.append((ConfidenceReader.figures(logits), right))
    figures, right = (torch.cat(parts) for parts in zip(*found))
    return figures, right


def learn(figures: Tensor, right: Tensor) -> ConfidenceReader:
    """A reader trained by cross-entropy; the figures' means and scales go into its weights."""
    torch.manual_seed(0)
    reader = ConfidenceReader(0, K)
    mean, scale = figures.mean(0), figures.std(0) + 1e-3
    x = (figures - mean) / scale
    optimizer = torch.optim.AdamW(reader.parameters(), lr=RATE, weight_decay=0.02)
    steps = EPOCHS * len(x) // DRAWN
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, 20 * step / steps + 0.01, 2 * (1 - step / steps))
        drawn = torch.randint(len(x), (DRAWN,))
        loss = F.cross_entropy(reader(x[drawn]), right[drawn])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        reader.inner.bias -= reader.inner.weight @ (mean / scale)
        reader.inner.weight /= scale
    return reader.to(torch.bfloat16).requires_grad_(False)


def judged(reader: ConfidenceReader, figures: Tensor, right: Tensor) -> dict[str, object]:
    """The threshold and what it gives, as a card has it."""
    chances = reader(figures).softmax(-1).tolist()
    return by_share(
        chances,
        right.tolist(),
        K,
        lambda p, k, t: accepted_length(p, k, t, "cumulative"),
        WANTED,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--texts", type=int, default=30, help="held-out conversations")
    parser.add_argument("--learned", type=int, default=100, help="it learns from these")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    options = parser.parse_args()
    threads = torch.get_num_threads()
    model = load(NAME, dtype="bfloat16", threads=threads, addons=str(options.folder))
    draw = random.Random(7)
    held, learned = (
        draw.sample(rows(True), options.texts),
        draw.sample(rows(False), options.learned),
    )
    reader = learn(*seen(model, learned, 64))
    found = judged(reader, *seen(model, held, 10**6))
    hidden = model.backbone.hidden_size
    save_addon(options.folder, "confidence", reader, model.base, hidden, data=DATA, **found)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
