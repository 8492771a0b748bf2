"""The Collocation-Length Predictor of a native MTP head, and its threshold (CLP paper)."""

from __future__ import annotations

from typing import Sequence

import torch
from torch.nn import functional as F

from dmtd_demo.models.addons import CollocationLengthPredictor
from dmtd_demo.training.calibrate import KEPT_AUDIT, KEPT_EXACT_MATCH, follow
from dmtd_demo.training.clp import length_loss, prefix_length
from dmtd_demo.training.data import IGNORED, Row
from dmtd_demo.training.hybrid.judge import Judge
from dmtd_demo.training.hybrid.trainer import DEPTH


def train_predictor(
    judge: Judge, rows: Sequence[Row], seed: int, updates: int
) -> CollocationLengthPredictor:
    """Train a predictor: from the backbone's state to how many drafts are right, 0..DEPTH.

    Right are those that equal the backbone's own greedy tokens; past the answer's end every draft
    is.
    """
    torch.manual_seed(seed)
    predictor = CollocationLengthPredictor(judge.model.config.hidden_size, DEPTH).to(judge.device)
    features, labels = [], []
    for _, h, own, guesses in judge.answers(rows, depth=DEPTH):
        # [m, DEPTH]: what the backbone says after each position
        wanted = F.pad(own, (0, DEPTH), value=IGNORED).unfold(0, DEPTH, 1)[1:]
        labels.append(prefix_length((guesses == wanted) | (wanted == IGNORED)))
        features.append(h)
    h, wanted_length = torch.cat(features), torch.cat(labels)
    optimizer = torch.optim.AdamW(
        predictor.parameters(), lr=5e-3, betas=(0.9, 0.95), weight_decay=0.0
    )
    for step in range(updates):
        falls = min(1.0, (step + 1) / 100, (1 - step / updates) / 0.8)
        optimizer.param_groups[0]["lr"] = 5e-3 * falls
        chosen = torch.randint(len(h), (2048,), device=h.device)
        loss, _ = length_loss(predictor, h[chosen], wanted_length[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():  # as it is stored
        for p in predictor.parameters():
            p.copy_(p.bfloat16().float())
    return predictor.requires_grad_(False)


def spans(
    judge: Judge,
    predictor: CollocationLengthPredictor,
    rows: Sequence[Row],
    thresholds: Sequence[float],
) -> dict[float, dict[str, float]]:
    """Return for each threshold what calibrate.spans gives, on texts that `ar` answers exactly.

    How many `mtp-native` still does, how many of its drafts are right, and its mean span.
    """
    kept, emitted, wrong = ({t: 0 for t in thresholds} for _ in range(3))
    lengths = {t: [0, 0] for t in thresholds}
    right = 0
    limits = torch.tensor(thresholds, device=judge.device)[:, None, None]
    for number, h, own, guesses in judge.answers(rows, depth=DEPTH):
        text = rows[number].ids[rows[number].answer :]
        if own.tolist() != text:
            continue
        right += 1
        # P(length >= s), falling with s: as many as reach the threshold are kept
        at_least = predictor(h[1:]).softmax(-1).flip(-1).cumsum(-1).flip(-1)[:, 1:]
        accepted = (at_least[None] >= limits).sum(-1).tolist()
        drafts = guesses[1:].tolist()
        for index, t in enumerate(thresholds):
            made, failed = follow(text, drafts, accepted[index], lengths[t])
            emitted[t] += made
            wrong[t] += failed
            kept[t] += not failed
    return {
        t: {
            "exact_match_kept": round(kept[t] / max(right, 1), 4),
            "audit": round(1 - wrong[t] / max(emitted[t], 1), 4),
            "mean_span": round(lengths[t][0] / max(lengths[t][1], 1), 3),
        }
        for t in thresholds
    }


def chosen_threshold(found: dict[float, dict[str, float]]) -> float:
    """Return the most generous threshold that keeps exact match and audit, as calibrate does."""
    good = (
        t
        for t, figures in found.items()
        if figures["exact_match_kept"] >= KEPT_EXACT_MATCH and figures["audit"] >= KEPT_AUDIT
    )
    return min(good, default=max(found))
