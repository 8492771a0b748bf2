"""The predictor that says before a draft of the fed-back head is made whether it would be kept.

    python scripts/smollm2/acceptance.py --learned 60000 --judged 16000

On a CPU, by the frozen model in bfloat16, on answers in all texts that ship: it learns, from a
state and the token after it, which of its LEVELS the probability of the head's likeliest first
draft reaches. The held-out texts show what is found of the drafts that would be kept, and how often
a draft is made for it.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from corpus import Batches, Corpus
from heads import FeedBackHead
from longer import FOLDER, ROOM, opened
from model import Stack

from dmtd_demo.decoders.native import WORTH
from dmtd_demo.models.acceptance import LEVELS, AcceptancePredictor
from dmtd_demo.models.addons import CARD, save_addon
from dmtd_demo.models.frequent import ENTRIES

EPOCHS, DRAWN, RATE = 12, 512, 2e-3


@torch.no_grad()
def seen(
    stack: Stack, head: FeedBackHead, corpus: Corpus, held: bool, positions: int, ids: Tensor
) -> tuple[Tensor, Tensor]:
    """Inputs [m, 2 hidden] and probabilities of the first draft [m], at places of answers.

    ids: of the tokens that drafts are chosen from.
    """
    among = stack.weights.embedding[ids]
    found = []
    for batch in Batches(corpus, held, 4096, torch.device("cpu"), ROOM).some(positions):
        h, n = stack.hidden(batch.ids), batch.ids.shape[1]
        at = torch.arange(n)
        inside = (at >= batch.prompts[:, None] - 1) & (at < batch.lengths[:, None] - 2)
        index = inside.flatten().nonzero()[:, 0]
        token = stack.embed(batch.ids[index // n, index % n + 1])
        m = head(stack, batch.ids, h, 1)[0].flatten(0, 1)[index].to(h.dtype)
        best = torch.cat([F.linear(x, among).float().softmax(-1).amax(-1) for x in m.split(1024)])
        found.append((torch.cat([h.flatten(0, 1)[index], token], -1).float(), best))
    x, chance = (torch.cat(parts) for parts in zip(*found))
    return x, chance


def learn(x: Tensor, chance: Tensor) -> AcceptancePredictor:
    """A predictor trained by cross-entropy; means and scales of its inputs go into its weights."""
    torch.manual_seed(0)
    predictor = AcceptancePredictor(x.shape[1] // 2)
    wanted = (chance[:, None] >= torch.tensor(LEVELS)).float()
    mean, scale = x.mean(0), x.std(0) + 1e-3
    optimizer = torch.optim.AdamW(predictor.parameters(), lr=RATE, weight_decay=0.05)
    steps = EPOCHS * len(x) // DRAWN
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, 20 * step / steps + 0.01) * (1 - step / steps)
        drawn = torch.randint(len(x), (DRAWN,))
        logits = predictor((x[drawn] - mean) / scale)
        loss = F.binary_cross_entropy_with_logits(logits, wanted[drawn])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        predictor.inner.bias -= predictor.inner.weight @ (mean / scale)
        predictor.inner.weight /= scale
    return predictor.to(torch.bfloat16).requires_grad_(False)


def judged(predictor: AcceptancePredictor, x: Tensor, chance: Tensor) -> dict[str, Any]:
    """By level: share of first drafts that would be kept, share of these that is found, and of
    places where one is made."""
    worth = torch.sigmoid(predictor(x.bfloat16()).float()) >= WORTH
    shares = {}
    for level, made in zip(LEVELS, worth.unbind(-1)):
        kept = chance >= level
        found = (kept & made).sum() / kept.sum().clamp(min=1)
        parts = {"kept": kept.float().mean(), "found": found, "made": made.float().mean()}
        shares[str(level)] = {name: round(part.item(), 4) for name, part in parts.items()}
    return shares


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--learned",
        type=int,
        default=60_000,
        help="positions of each kind of texts, prompts among them",
    )
    parser.add_argument("--judged", type=int, default=16_000, help="held-out positions of each")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    stack, corpora = opened()
    head = FeedBackHead(stack)
    named = load_file(options.folder / "fed_back.safetensors")
    head.load_state_dict({name.removeprefix("mtp."): t for name, t in named.items()})
    ids = load_file(options.folder / "frequent.safetensors")["ids"].long()[:ENTRIES]
    parts = [seen(stack, head, c, False, options.learned, ids) for c in corpora.values()]
    predictor = learn(*(torch.cat(part) for part in zip(*parts)))
    found = {
        name: judged(predictor, *seen(stack, head, corpus, True, options.judged, ids))
        for name, corpus in corpora.items()
    }
    learned = sum(len(x) for x, _ in parts)
    base = json.loads((options.folder / CARD).read_text())["base_model"]
    save_addon(
        options.folder,
        "acceptance",
        predictor,
        base,
        stack.shape.hidden,
        data="answers in " + ", ".join(f"{name}.npz" for name in corpora),
        positions=learned,
        validation=found,
    )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
