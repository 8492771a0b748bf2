"""The recipe of the collocation-length predictor, and its default threshold (CLP paper; methods.md section 3)."""
from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from dmtd_demo.addons import CollocationLengthPredictor, MTPHeads, save_addon
from dmtd_demo.backbone import Backbone
from dmtd_demo.decoders.clp import accepted_length
from dmtd_demo.split import Split
from dmtd_demo.training.data import IGNORED, Batch, encode
from dmtd_demo.training.heads import shifted
from dmtd_demo.training.loop import Progress, Recipe
from dmtd_demo.training.masking import frozen_hidden
from dmtd_demo.training.world.mix import COMPOSITIONAL, draw

VALIDATION_PROMPTS = 2000
THRESHOLDS = tuple(i / 100 for i in range(50, 100)) + (0.992, 0.995, 0.997, 0.999)
KEPT_EXACT_MATCH = 0.997
KEPT_AUDIT = 0.993


@torch.no_grad()
def correct_prefix(backbone: Backbone, heads: MTPHeads, h: Tensor, targets: Tensor, greedy: Tensor) -> Tensor:
    """How many head predictions in a row, from head 1 on, equal the backbone's own greedy tokens: [rows, n], 0..k.

    h [rows, n, hidden]; targets [rows, n], -100 outside the answer; greedy [rows, n], the backbone's argmax at each position.
    """
    alive = torch.ones_like(targets, dtype=torch.bool)
    length = torch.zeros_like(targets)
    rows, n, hidden = h.shape
    states = heads(h.reshape(-1, hidden)).view(rows, n, heads.k, hidden)
    for i in range(1, heads.k + 1):
        wanted = shifted(torch.where(targets == IGNORED, IGNORED, greedy), i)
        alive = alive & (backbone.logits(states[:, :, i - 1]).argmax(-1) == wanted)
        length = length + alive
    return length


def recipe(backbone: Backbone, split: Split, heads: MTPHeads, name: str) -> Recipe:
    """Cross-entropy against the length of the correct prefix; rare lengths weigh a little more."""
    predictor = CollocationLengthPredictor(backbone.hidden_size, heads.k).to(backbone.device)
    counts = torch.ones(heads.k + 1, device=backbone.device)

    def loss(batch: Batch, progress: Progress) -> tuple[Tensor, dict[str, float]]:
        h = frozen_hidden(backbone, split, batch.ids)
        with torch.no_grad():
            labels = correct_prefix(backbone, heads, h, batch.targets, backbone.logits(h).argmax(-1))
        read = (batch.phase >= -1) & (batch.targets != IGNORED)
        labels = labels[read]
        counts.add_(torch.bincount(labels, minlength=heads.k + 1))
        weights = (counts.sum() / counts) ** 0.1
        logits = predictor(h[read])
        accuracy = (logits.argmax(-1) == labels).float().mean().item()
        return F.cross_entropy(logits, labels, weight=weights), {"acc": accuracy, "mean": labels.float().mean().item()}

    def save(output: Path) -> None:
        save_addon(output / "model" / "addons", "clp", predictor, name, backbone.hidden_size, threshold=0.99)   # until it is calibrated

    return Recipe("clp", predictor, loss, save, learning_rate=2e-2, warm_up=0.05, decay=0.7, weight_decay=0.0)


@torch.no_grad()
def calibrate(backbone: Backbone, split: Split, heads: MTPHeads, predictor: CollocationLengthPredictor, tokenizer: Any, prompts: int = VALIDATION_PROMPTS) -> dict[str, Any]:
    """The most generous threshold that keeps exact match and audit agreement (methods.md section 3), on prompts of the training contents.

    Along `ar`'s own text the hidden states of `clp` are the same, whatever the threshold, up to its first wrong token: so one pass over each
    prompt that `ar` answers exactly tells, for every threshold, whether `clp` would have left that text, and which tokens it would have emitted.
    """
    rng = random.Random("validation")
    kept = {t: 0 for t in THRESHOLDS}
    accepted = {t: 0 for t in THRESHOLDS}
    wrong = {t: 0 for t in THRESHOLDS}
    spans = {t: [0, 0] for t in THRESHOLDS}
    right = 0
    for index in tqdm(range(prompts), desc="calibrate", unit="prompt"):
        example = encode(tokenizer, draw(COMPOSITIONAL[index % len(COMPOSITIONAL)], rng, wanted=False))
        ids, answer = example.ids, example.answer
        row = torch.tensor([ids], device=backbone.device)
        h = frozen_hidden(backbone, split, row, exact=True)
        if not bool((backbone.logits(h[0, answer - 1:-1]).argmax(-1) == row[0, answer:]).all()):
            continue
        right += 1
        guesses = backbone.logits(heads(h[0, answer:-1])).argmax(-1).tolist()       # [n, k], read at the generated positions
        lengths = predictor(h[0, answer:-1]).softmax(-1).tolist()
        text = ids[answer:]
        for threshold in THRESHOLDS:
            left = _first_wrong(text, guesses, lengths, threshold, heads.k, spans[threshold])
            accepted[threshold] += left[0]
            wrong[threshold] += left[1]
            kept[threshold] += not left[1]
    if not right:
        raise RuntimeError(f"calibrating CLP needs prompts that ar answers exactly; of {prompts} there were none: the backbone is not trained enough, threshold stays at its most careful")
    results = {t: {"exact_match_kept": kept[t] / right, "audit": 1 - wrong[t] / max(accepted[t], 1), "mean_span": spans[t][0] / max(spans[t][1], 1)} for t in THRESHOLDS}
    good = [t for t, r in results.items() if r["exact_match_kept"] >= KEPT_EXACT_MATCH and r["audit"] >= KEPT_AUDIT]
    chosen = min(good, default=max(THRESHOLDS))
    return {"threshold": chosen, "validation": {"prompts": prompts, "answered_exactly_by_ar": right, **{k: round(v, 4) for k, v in results[chosen].items()}}}


def _first_wrong(text: list[int], guesses: list[list[int]], lengths: list[list[float]], threshold: float, k: int, span: list[int]) -> tuple[int, int]:
    """Follow `clp` along `text` until its first wrong token: MTP tokens emitted, and 1 if one was wrong. Adds to span: tokens, full passes."""
    position, emitted = 1, 0   # the prefill gave text[0]
    while position < len(text):
        s = accepted_length(lengths[position - 1], k, threshold, "cumulative")
        span[1] += 1
        span[0] += 1
        for i in range(1, s + 1):
            if position + i >= len(text):   # past the end mark: dropped
                return emitted, 0
            emitted += 1
            span[0] += 1
            if guesses[position - 1][i - 1] != text[position + i]:
                return emitted, 1
        position += 1 + s
    return emitted, 0
