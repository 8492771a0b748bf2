"""The most frequent tokens of the conversations that were trained on, as an add-on: drafts are
chosen from the first of them.

    python scripts/smollm2/frequent.py assets/smollm2-135m

The held-out tenth is not counted. The folder has a card already; `bundle.py` calls this too.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dmtd_demo.models.addons import CARD
from dmtd_demo.models.frequent import NAME

# tokens that are listed
ENTRIES = 16384


def counts(path: Path, vocabulary: int, held: bool) -> np.ndarray:
    """How often each token stands in the answers of one part, [vocabulary]."""
    kept = np.load(path)
    tokens, lengths, prompts = kept["tokens"], kept["lengths"].astype(np.int64), kept["prompts"]
    ends = np.cumsum(lengths)
    answers = [
        tokens[end - length + prompt : end]
        for end, length, prompt, out in zip(ends, lengths, prompts, kept["held"])
        if out == held
    ]
    return np.bincount(np.concatenate(answers).astype(np.int64), minlength=vocabulary)


def add(folder: Path, vocabulary: int) -> None:
    """List the most frequent tokens in a folder of add-ons; of equal ones the lower id first."""
    path = folder / "conversations.npz"
    seen, held = (counts(path, vocabulary, part) for part in (False, True))
    ids = np.argsort(-seen, kind="stable")[:ENTRIES]
    save_file({"ids": torch.from_numpy(ids.astype(np.int32))}, folder / f"{NAME}.safetensors")
    (folder / f"{NAME}.safetensors").chmod(0o644)
    card = json.loads((folder / CARD).read_text())
    card["addons"][NAME] = {
        "entries": ENTRIES,
        "data": "answers of the conversations (conversations.npz) that were trained on",
        # share of the held-out answers' tokens that are among the first so many
        "covers": {
            str(n): round(float(held[ids[:n]].sum() / held.sum()), 5)
            for n in (2048, 4096, 8192, ENTRIES)
        },
    }
    (folder / CARD).write_text(json.dumps(card, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--vocabulary", type=int, default=49152, help="tokens that the model knows")
    options = parser.parse_args()
    add(options.folder, options.vocabulary)


if __name__ == "__main__":
    main()
