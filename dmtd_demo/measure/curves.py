"""`curves`: the bounds of a speed-up over a training run.

The accuracy of each MTP head, and exact match at each cycle length. Both are read from whole rows
at once: a greedy decoder answers exactly where every argmax under its own mask, the reference
before it, is the reference.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Sequence

import torch
from tqdm import tqdm

from dmtd_demo.backbone.split import Split
from dmtd_demo.errors import UserError
from dmtd_demo.models.loading import load
from dmtd_demo.models.model import Model
from dmtd_demo.training.clp import right_guesses
from dmtd_demo.training.data import IGNORED, Row, collate, encode
from dmtd_demo.training.masking import cyclical_heads, masked_hidden
from dmtd_demo.training.world.mix import held_out_examples

CYCLE_LENGTHS = (1, 2, 3, 4, 5, 6)


def held_out_rows(tokenizer: Any, seed: int, count: int) -> list[Row]:
    """Encode held-out examples, prompt and answer in a row."""
    return [encode(tokenizer, example) for _, example in held_out_examples(seed, count)]


@torch.inference_mode()
def head_accuracy(model: Model, rows: Sequence[Row]) -> dict[str, list[float]]:
    """Measure how often the MTP heads are right, along the reference.

    `head`: how often head i, i = 1..k, predicts the backbone's own greedy token. `prefix`: how
    often heads 1 to i all do, the share of steps at which a predictor that knew would accept i.
    Over the generated positions of every row, where the text goes on that far.
    """
    backbone, heads, split = (
        model.backbone,
        model.addons["mtp_heads"],
        model.split or Split.default(model.layers),
    )
    right, prefix, seen = torch.zeros(heads.k), torch.zeros(heads.k), torch.zeros(heads.k)
    for row in tqdm(rows, desc="heads", unit="prompt"):
        batch = collate([row], len(row.ids), 0).to(backbone.device)
        h = masked_hidden(backbone, split, batch.ids, torch.ones_like(batch.ids, dtype=torch.bool))
        # where a decoder reads them
        guesses = right_guesses(backbone, heads, h, batch.targets, backbone.logits(h).argmax(-1))[
            0, row.answer : -1
        ]
        for i in range(min(heads.k, len(guesses) - 1)):
            # past the end every guess counts as right
            within = guesses[: len(guesses) - 1 - i]
            right[i] += within[:, i].sum().item()
            prefix[i] += within[:, : i + 1].all(-1).sum().item()
            seen[i] += len(within)
    return {
        "head": [round(x, 4) for x in (right / seen).tolist()],
        "prefix": [round(x, 4) for x in (prefix / seen).tolist()],
    }


@torch.inference_mode()
def exact_match_by_tau(
    model: Model, rows: Sequence[Row], taus: Sequence[int] = CYCLE_LENGTHS
) -> dict[int, float]:
    """Return the share of the rows that `dmtd` answers exactly, greedy, at each cycle length.

    At 1 that is `ar`.
    """
    split = model.split or Split.default(model.layers)
    right = dict.fromkeys(taus, 0)
    for row in tqdm(rows, desc="cycles", unit="prompt"):
        batch = collate([row], len(row.ids), 0).to(model.backbone.device)
        answer = batch.targets[0, row.answer - 1 :] != IGNORED
        for tau in taus:
            h = masked_hidden(model.backbone, split, batch.ids, cyclical_heads(batch.phase, tau))
            predicted = model.backbone.logits(h[0, row.answer - 1 :]).argmax(-1)
            right[tau] += bool((predicted == batch.targets[0, row.answer - 1 :])[answer].all())
    return {tau: round(count / len(rows), 4) for tau, count in right.items()}


def curves(model: Model, kept: str | None, seed: int, prompts: int) -> dict[str, Any]:
    """Measure a model, and the checkpoints of its training.

    kept: their folder, named by the tokens seen, as `train classroom --keep` leaves them. Raises
    UserError.
    """
    for need in ("split", "mtp_heads"):
        if not model.has(need):
            raise UserError(f"curves needs a model with {need}; {model.name} has none")
    rows = held_out_rows(model.tokenizer, seed, prompts)
    folders = (
        sorted(
            (
                p
                for p in Path(kept).iterdir()
                if re.fullmatch(r"\d+", p.name) and (p / "model").is_dir()
            ),
            key=lambda p: int(p.name),
        )
        if kept and Path(kept).is_dir()
        else []
    )
    if kept and not folders:
        raise UserError(
            "--kept needs a folder with checkpoints named by their tokens, as `train classroom "
            f"--keep` leaves in OUTPUT/kept; {kept} has none"
        )
    over_training = []
    for folder in folders:
        at = load(
            str(folder / "model"),
            dtype=model.dtype,
            device=str(model.device),
            threads=torch.get_num_threads(),
        )
        over_training.append(
            {
                "tokens": int(folder.name),
                "heads": head_accuracy(at, rows)["head"],
                "exact_match": exact_match_by_tau(at, rows),
            }
        )
    return {
        "model": model.name,
        "prompts": len(rows),
        "seed": seed,
        "heads": head_accuracy(model, rows),
        "exact_match": exact_match_by_tau(model, rows),
        "over_training": over_training,
    }
