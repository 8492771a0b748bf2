"""What a draft of a model's own MTP head costs: python benchmarks/native_head.py --model MODEL

Milliseconds, medians, after 64 tokens: of passes of 1, 2, 3 and 5 positions, with the log that a
rewind needs and with the rewind to the first; of the LM head; of one pair through the MTP head; and
of drafts as the decoders draw them. --random-weights takes the name of a catalog's Qwen3.5.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if TYPE_CHECKING:
    import torch

    from dmtd_demo.models.model import Model


PROMPT = list(range(5, 69))


def milliseconds(step: Callable[[], object], device: torch.device, rounds: int) -> float:
    import torch

    times = []
    for _ in range(rounds + 2):
        started = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return round(1000 * statistics.median(times[2:]), 3)


def costs(model: Model, rounds: int) -> dict[str, float]:
    import torch

    from dmtd_demo.decoders.drafting import Drafting
    from dmtd_demo.decoders.native import NativeText
    from dmtd_demo.sampling import Sampler

    with torch.inference_mode():
        backbone, device = model.backbone, model.backbone.device
        n, cache, text = backbone.layers, backbone.new_cache(), NativeText(model)
        out = backbone.run_layers(backbone.embed(PROMPT), 0, n, cache)
        text.saw(backbone.final_norm(out[0]))
        state, embedded = text.unpaired[0][-1:], backbone.embed(PROMPT[-1:])[0]
        m = text.pair(PROMPT[1:])

        def passes(positions: int, log: bool, back: bool = False) -> Callable[[], object]:
            def step() -> None:
                before = cache.length(0)
                cache.keep(before if log else None)
                backbone.run_layers(backbone.embed(PROMPT[:positions]), 0, n, cache)
                if back:
                    cache.crop(before + 1)

            return step

        def pair() -> None:
            pairs = text.cache.length(0)
            text.head.run(state, embedded, text.cache)
            text.cache.crop(pairs)

        steps = {"pass of 1": passes(1, False)}
        for q in (2, 3, 5):
            steps |= {
                f"pass of {q}": passes(q, True),
                f"and back to 1 of {q}": passes(q, True, True),
            }
        steps["LM head"] = lambda: backbone.logits(state)
        steps["MTP head, one pair"] = pair
        for k in (1, 2, 3):
            steps[f"{k} drafts"] = lambda k=k: text.drafts(
                m, k, Drafting(model, Sampler(device=device))
            )
        return {name: milliseconds(step, device, rounds) for name, step in steps.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model")
    parser.add_argument("--random-weights", default="Qwen3.5-0.8B")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--rounds", type=int, default=12)
    options = parser.parse_args()
    # after --help, which needs none of it
    from dmtd_demo.models.loading import load, load_random

    settings = dict(dtype=options.dtype, device=options.device, threads=options.threads)
    if options.model:
        model = load(options.model, **settings)
    else:
        model = load_random(options.random_weights, quantization="none", **settings)
    print(json.dumps({"model": model.name, **costs(model, options.rounds)}, indent=1))


if __name__ == "__main__":
    main()
