"""What grows with the text, and with the panels: python benchmarks/flat_cost.py [--model classroom
--rounds 5 --json]

A token's cost by `ar` after 64, 1,024 and 4,096 tokens, with and without attention's own part,
which is timed inside the same steps; without it the last should be within 1.3 times the first. And
the memory of a process that races one panel and of one that races four on the same model: should be
under 1.1 times, and what it grows by is their KV caches.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if TYPE_CHECKING:
    import torch

    from dmtd_demo.backbone.fused import FusedLayer


CONTEXTS = (64, 1024, 4096)
STEPS = 32  # timed at each
NEW = 512  # tokens of each panel, where memory is measured


class TimedAttention:
    """FusedLayer's own attention, with a clock."""

    def __init__(self) -> None:
        from dmtd_demo.backbone.fused import FusedLayer

        self.seconds = 0.0
        self.plain = FusedLayer._attention

    def __enter__(self) -> TimedAttention:
        from dmtd_demo.backbone.fused import FusedLayer

        def timed(layer: FusedLayer, *arguments: Any) -> torch.Tensor:
            started = time.perf_counter()
            result = self.plain(layer, *arguments)
            self.seconds += time.perf_counter() - started
            return result

        FusedLayer._attention = timed
        return self

    def __exit__(self, *_: Any) -> None:
        from dmtd_demo.backbone.fused import FusedLayer

        FusedLayer._attention = self.plain


def step_ms(model: Any, context: int) -> tuple[float, float]:
    """A step after so many tokens: all of it, and attention's part. Medians."""
    import torch

    from dmtd_demo.decoders.stack import Stack, prefill
    from dmtd_demo.measure.bench import bench_prompt
    from dmtd_demo.sampling import Sampler

    with torch.inference_mode():
        stack, sampler = Stack(model.backbone, model.split), Sampler()
        for _ in prefill(stack, bench_prompt(model, context - STEPS // 2), sampler):
            pass
        whole, own = [], []
        with TimedAttention() as attention:
            for _ in range(STEPS):
                attention.seconds, started = 0.0, time.perf_counter()
                sampler.choose(model.backbone.logits(stack.last_hidden(stack.full([5])[0])))
                whole.append(time.perf_counter() - started)
                own.append(attention.seconds)
        return statistics.median(whole) * 1000, statistics.median(own) * 1000


def race_memory(model: Any, panels: int) -> tuple[int, int]:
    """Bytes that this process holds at the end of such a race, and those of its KV caches."""
    import psutil

    from dmtd_demo.measure.bench import bench_prompt
    from dmtd_demo.race.panels import PanelSpec
    from dmtd_demo.race.race import race_ids
    from dmtd_demo.race.settings import RaceSettings

    caches = []
    new_cache = model.backbone.new_cache
    model.backbone.new_cache = lambda *a: caches.append(new_cache(*a)) or caches[-1]
    held = 0
    for _ in race_ids(
        model,
        [PanelSpec("ar")] * panels,
        [bench_prompt(model, 64)] * panels,
        RaceSettings(max_new_tokens=NEW, ignore_eos=True, audit=False),
    ):
        held = max(held, psutil.Process().memory_info().rss)
    return held, sum(cache.nbytes() for cache in caches[-panels:])


def loaded(options: argparse.Namespace) -> Any:
    from dmtd_demo.models.loading import load, load_random

    return (
        load_random(options.random_weights, quantization=options.quantization, threads=1)
        if options.random_weights
        else load(options.model, quantization=options.quantization, threads=1)
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="classroom")
    parser.add_argument("--random-weights", metavar="NAME")
    parser.add_argument("--quantization")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    # in a process of its own: the memory of one race
    parser.add_argument("--panels", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    # after --help, which needs none of it
    from dmtd_demo.machine import describe

    model = loaded(options)
    if options.panels:
        print(json.dumps(race_memory(model, options.panels)))
        return
    rounds = [
        {context: step_ms(model, context) for context in CONTEXTS}
        for _ in range(options.rounds + 1)
    ][1:]
    steps = [
        {
            "context": context,
            "step_ms": round(statistics.median(r[context][0] for r in rounds), 3),
            "attention_ms": round(statistics.median(r[context][1] for r in rounds), 3),
        }
        for context in CONTEXTS
    ]
    rest = [step["step_ms"] - step["attention_ms"] for step in steps]
    memory = {
        panels: json.loads(
            subprocess.run(
                [sys.executable, *sys.argv, "--panels", str(panels)],
                check=True,
                capture_output=True,
                text=True,
            ).stdout
        )
        for panels in (1, 4)
    }
    grown, caches = memory[4][0] - memory[1][0], memory[4][1] - memory[1][1]
    result = {
        "machine": describe("cpu"),
        "model": model.name,
        "steps": steps,
        "without_attention": round(rest[-1] / rest[0], 3),
        "memory": {panels: held for panels, (held, _) in memory.items()},
        "four_over_one": round(memory[4][0] / memory[1][0], 3),
        "grown": grown,
        "kv_caches": caches,
    }
    if options.json:
        print(json.dumps(result))
        return
    for step, ms in zip(steps, rest):
        print(
            f"after {step['context']:5} tokens: {step['step_ms']:.2f} ms a step, "
            f"{step['attention_ms']:.2f} of them attention, {ms:.2f} without"
        )
    print(f"without attention, the last over the first: {result['without_attention']} (bar: 1.3)")
    print(
        f"memory of the process, four panels over one: {result['four_over_one']} (bar: 1.1); "
        f"{grown / 2**20:.1f} MiB more, their KV caches {caches / 2**20:.1f} MiB"
    )


if __name__ == "__main__":
    main()
