"""Late-layer-only argmax against the model's own, on held-out conversations, by the app's model.

    python scripts/smollm2/judge.py --texts 64 [--dtype float32] [--quantization fast-int4] \
        [--untrained]

The figures that `train.py` logs, for the layers as they ship and as the app loads them, or, with
--untrained, for the model's own late layers at the same split.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path
from typing import Any, Sequence

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from held_out import rows

from dmtd_demo.models.loading import load
from dmtd_demo.models.model import Model
from dmtd_demo.training.data import Row
from dmtd_demo.training.masking import cyclical_heads, masked_hidden


@torch.inference_mode()
def agreement(model: Model, texts: Sequence[Row], taus: Sequence[int]) -> dict[str, Any]:
    """For each tau: late and full, the shares of positions in the last answers whose argmax is the
    model's own; nats, the text's negative log-probability at full passes, nats_own the model's."""
    assert model.split is not None
    sums = {tau: torch.zeros(6, dtype=torch.float64) for tau in taus}
    for row in texts:
        ids = torch.tensor([row.ids])
        phase = torch.arange(len(row.ids))[None] - row.answer
        everywhere = torch.ones_like(phase, dtype=torch.bool)
        plain = model.backbone.logits(masked_hidden(model.backbone, model.split, ids, everywhere))
        judged = slice(row.answer, len(row.ids) - 1)
        following = ids[0, row.answer + 1 :, None]
        own = plain[0, judged].float().log_softmax(-1)
        for tau in taus:
            at_head = cyclical_heads(phase, tau)
            h = masked_hidden(model.backbone, model.split, ids, at_head)[0, judged]
            ours = model.backbone.logits(h).float().log_softmax(-1)
            same, full = (ours.argmax(-1) == own.argmax(-1)), at_head[0, judged]
            nats = [-x.gather(-1, following)[:, 0] * full for x in (ours, own)]
            counted = (same & ~full, ~full, same & full, full, *nats)
            sums[tau] += torch.stack([x.double().sum() for x in counted])
    found = {}
    for tau, values in sums.items():
        late_right, late, full_right, full, nats, own = values.tolist()
        found[f"C{tau}"] = {
            "late": round(late_right / late, 4),
            "full": round(full_right / full, 4),
            "nats": round(nats / full, 4),
            "nats_own": round(own / full, 4),
            "late_positions": int(late),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--dtype")
    parser.add_argument("--quantization")
    parser.add_argument("--untrained", action="store_true")
    options = parser.parse_args()
    model = load(
        "SmolLM2-135M-Instruct",
        dtype=options.dtype,
        quantization=options.quantization,
        threads=torch.get_num_threads(),
    )
    if options.untrained:
        model.backbone.adapted_to = None
    texts = random.Random(0).sample(rows(True), options.texts)
    print(json.dumps(agreement(model, texts, (2, 3, 4, 6)), indent=1))


if __name__ == "__main__":
    main()
