"""What rounding costs on real text: python benchmarks/perplexity.py --data FILE.jsonl [--model NAME
--as bfloat16 --as fast-int4 … --tokens 10000 --threads 1 --json]

For the answers of held-out conversations, as `scripts/smollm2/held_out.py` prints them: perplexity
under each dtype or quantization, how many nats a token it is above the first one's, with the
standard error of that difference over the texts, and how often the likeliest token is the same. The
models are loaded one after another.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if TYPE_CHECKING:
    from torch import Tensor

    from dmtd_demo.measure.evaluation import Task
    from dmtd_demo.models.model import Model


WAYS = ("bfloat16", "float32", "fast-int8", "fast-int4", "int8", "nf4")


@dataclass(frozen=True)
class Told:
    """What a model says of one text: negative log-probabilities, float64, and the likeliest id of
    each position, both [tokens]."""

    nats: Tensor
    best: Tensor


def told(model: Model, tasks: list[Task], tokens: int) -> list[Told]:
    """Judge the answers of the tasks, one after another, until there are so many tokens."""
    import torch

    from dmtd_demo.models.chat import encode_chat
    from dmtd_demo.race.audit import logits_before

    with torch.inference_mode():
        found: list[Told] = []
        assert model.tokenizer is not None
        for _, messages, answer in tasks:
            ids = model.tokenizer(answer, add_special_tokens=False).input_ids
            parts = [
                (
                    -logits.float().log_softmax(-1).gather(-1, wanted[:, None])[:, 0].double(),
                    logits.argmax(-1),
                )
                for logits, wanted in logits_before(
                    model, encode_chat(model.tokenizer, messages), ids
                )
            ]
            found.append(Told(*(torch.cat(each) for each in zip(*parts))))
            tokens -= len(ids)
            if tokens <= 0:
                break
        return found


def compared(own: list[Told], first: list[Told]) -> dict[str, float]:
    """Compare with the first way. The error takes the texts as the sample, not their tokens."""
    count = sum(len(text.nats) for text in own)
    nats = sum(text.nats.sum().item() for text in own) / count
    above = [(a.nats - b.nats).sum().item() for a, b in zip(own, first)]
    mean = sum(above) / count
    left = sum((x - mean * len(text.nats)) ** 2 for x, text in zip(above, own))
    same = sum((a.best == b.best).sum().item() for a, b in zip(own, first))
    return {
        "perplexity": round(math.exp(nats), 4),
        "nats_above": round(mean, 5),
        "standard_error": round(math.sqrt(left * len(own) / max(len(own) - 1, 1)) / count, 5),
        "same_best": round(same / count, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", default="SmolLM2-135M-Instruct")
    parser.add_argument("--as", dest="ways", action="append", help=f"of {', '.join(WAYS)}")
    parser.add_argument("--tokens", type=int, default=10000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    # after --help, which needs none of it
    from dmtd_demo.machine import describe
    from dmtd_demo.measure.evaluation import read_tasks
    from dmtd_demo.models.loading import load
    from dmtd_demo.models.placement import DTYPES

    tasks = read_tasks(options.data, options.tokens)
    first: list[Told] = []
    for way in options.ways or WAYS:
        dense = way in DTYPES
        model = load(
            options.model,
            quantization="none" if dense else way,
            dtype=way if dense else None,
            device="cpu",
            threads=options.threads,
        )
        began = time.perf_counter()
        own = told(model, tasks, options.tokens)
        first = first or own
        row = {
            "way": way,
            "dtype": model.dtype,
            "texts": len(own),
            "tokens": sum(len(text.nats) for text in own),
            **compared(own, first),
            "seconds": round(time.perf_counter() - began, 1),
        }
        print(
            json.dumps(row)
            if options.json
            else f"{way} ({row['dtype']}): perplexity {row['perplexity']:.3f}, "
            f"{row['nats_above']:+.5f} ± {row['standard_error']:.5f} nats a token, "
            f"{row['same_best']:.2%} the same; {row['texts']} texts, {row['tokens']:,} tokens, "
            f"{row['seconds']} s",
            flush=True,
        )
        del model
        gc.collect()
    print(f"{options.model}; {describe('cpu')['processor']}", file=sys.stderr)


if __name__ == "__main__":
    main()
