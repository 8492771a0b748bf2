"""Tokens per second of `ar` for many texts at once beside one: python benchmarks/batched.py
[--model SmolLM2-135M-Instruct --dtype bfloat16 --quantization none --texts 64 --rounds 4 --json]

By turns, on one prompt, after the prompts are read; the medians of the rounds but the first. Wanted
in bfloat16: 12 times one text's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if TYPE_CHECKING:
    from dmtd_demo.models.model import Model

CONTEXT = 16


def speed(model: Model, texts: int, new: int) -> float:
    """Tokens per second of so many texts of `new` tokens, without the reading of their prompts."""
    from dmtd_demo.decoders.batched import READ, Writing, batched_ar
    from dmtd_demo.measure.bench import bench_prompt

    ids = bench_prompt(model, CONTEXT)
    steps: list[tuple[float, int]] = []
    how = Writing(batch=texts, ends=frozenset())
    for _ in batched_ar(
        model, [ids] * texts, new, how, lambda made: steps.append((time.perf_counter(), made))
    ):
        pass
    # prompts are read READ at a time, before all texts go on together
    read = -(-texts // READ)
    return sum(made for _, made in steps[read + 1 :]) / (steps[-1][0] - steps[read][0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="SmolLM2-135M-Instruct")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--quantization", default="none")
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--new", type=int, default=48, help="tokens of each text")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    from dmtd_demo.models.loading import load

    model = load(
        options.model,
        dtype=options.dtype,
        quantization=options.quantization,
        threads=options.threads,
    )
    found: dict[int, list[float]] = {1: [], options.texts: []}
    for _ in range(options.rounds):
        for texts, speeds in found.items():
            speeds.append(round(speed(model, texts, options.new), 1))
    one, many = (statistics.median(speeds[1:]) for speeds in found.values())
    facts = {"one": found[1], "many": found[options.texts], "times": round(many / one, 2)}
    print(
        json.dumps(facts)
        if options.json
        else f"{many:.0f} with {options.texts} texts, {one:.1f} with one: {many / one:.2f} times"
    )


if __name__ == "__main__":
    main()
