"""The adaptive predictor for shipped DMTD layers, and the thresholds of CLP, gate and adaptive.

    python scripts/smollm2/calibrate.py --texts 120 --learned 300

On a CPU, by the app's model in bfloat16, over the shipped conversations: the predictor learns from
some of those trained on, thresholds are read off held-out ones. A threshold is the most generous at
which the wanted share of the tokens taken along are the model's own choices.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from bundle import DATA, NAME
from held_out import rows

from dmtd_demo.decoders.clp import accepted_length
from dmtd_demo.decoders.mtp_gate import open_gates
from dmtd_demo.models.addons import CollocationLengthPredictor, save_addon
from dmtd_demo.models.loading import load
from dmtd_demo.models.model import Model
from dmtd_demo.training.calibrate import by_share
from dmtd_demo.training.clp import length_loss, prefix_length, right_guesses
from dmtd_demo.training.cycles import LONGEST
from dmtd_demo.training.data import IGNORED, Row, collate
from dmtd_demo.training.features import Source, collect
from dmtd_demo.training.masking import masked_hidden

FOLDER = ROOT / "assets" / "smollm2-135m"
UPDATES, DRAWN = 1500, 2048
# shares of the tokens taken along that have to be the model's own choices
WANTED = {"clp": 0.97, "gate": 0.97, "adaptive": 0.9}


@torch.inference_mode()
def guesses(model: Model, texts: list[Row]) -> tuple[Tensor, Tensor]:
    """At every position that a decoder reads: h, and which MTP heads are right there, [m, k]."""
    found = []
    for row in texts:
        batch = collate([row], len(row.ids), 0)
        everywhere = torch.ones_like(batch.ids, dtype=torch.bool)
        h = masked_hidden(model.backbone, model.split, batch.ids, everywhere)
        greedy = model.backbone.logits(h).argmax(-1)
        right = right_guesses(model.backbone, model.addons["mtp_heads"], h, batch.targets, greedy)
        read = (batch.phase >= 0) & (batch.targets != IGNORED)
        found.append((h[read], right[read]))
    h, right = (torch.cat(parts) for parts in zip(*found))
    return h, right


def learn(h: Tensor, labels: Tensor) -> CollocationLengthPredictor:
    torch.manual_seed(0)
    predictor = CollocationLengthPredictor(h.shape[1], LONGEST - 1)
    optimizer = torch.optim.AdamW(predictor.parameters(), lr=5e-3, weight_decay=0.0)
    for step in range(UPDATES):
        share = step / UPDATES
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 * min(1.0, 20 * share + 0.01, 5.05 * (1 - share) + 0.01)
        drawn = torch.randint(len(h), (DRAWN,))
        loss, _ = length_loss(predictor, h[drawn].float(), labels[drawn])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return predictor.requires_grad_(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--texts", type=int, default=120, help="held-out conversations")
    parser.add_argument(
        "--learned", type=int, default=300, help="adaptive learns from these; 0: not"
    )
    parser.add_argument("--folder", type=Path, default=FOLDER)
    options = parser.parse_args()
    model = load(
        NAME, dtype="bfloat16", threads=torch.get_num_threads(), addons=str(options.folder)
    )
    hidden, facts = model.backbone.hidden_size, model.addon_facts
    draw = random.Random(0)
    texts = draw.sample(rows(True), options.texts)

    def keep(name: str, module: torch.nn.Module, found: dict[str, Any]) -> None:
        more = {k: v for k, v in facts.get(name, {"data": DATA}).items() if k != "k"}
        save_addon(options.folder, name, module, model.base, hidden, **{**more, **found})
        print(name, json.dumps(found), flush=True)

    h, right = guesses(model, texts)
    labels = prefix_length(right)
    for name, accept in (
        ("clp", lambda p, k, t: accepted_length(p, k, t, "cumulative")),
        ("gate", open_gates),
    ):
        module = model.addons[name]
        out = module(h).float()
        chance = (out.softmax(-1) if name == "clp" else out.sigmoid()).tolist()
        keep(name, module, by_share(chance, labels.tolist(), module.k, accept, WANTED[name]))
    if not options.learned:
        return
    learned = draw.sample(rows(False), options.learned)
    seen = collect("adaptive", Source(model.backbone, model.split), learned, 2**30)
    held = collect("adaptive", Source(model.backbone, model.split, seed=1), texts, 2**30)
    predictor = learn(seen.h, seen.labels)
    chance = predictor(held.h.float()).softmax(-1).tolist()
    found = by_share(
        chance,
        held.labels.tolist(),
        LONGEST - 1,
        lambda p, k, t: accepted_length(p, k, t, "cumulative"),
        WANTED["adaptive"],
    )
    keep("adaptive", predictor, {**found, "positions": seen.tokens})


if __name__ == "__main__":
    main()
