"""Whole steps on a CUDA device under each quantization, by turns in one process.

    python benchmarks/cuda_steps.py [--model Qwen3-4B] [--context 1024] [--new 256] [--rounds 3]

Prints a line of JSON for each quantization and panel: tokens per second, the share of what reading
an array gives, and how many times bfloat16's and its own `ar`'s they are; then `ar` with launches
that overlap and without, and the first token at which a verified decoder is not `ar`'s. Weights are
random: only speed is measured.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
from collections import defaultdict
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

if TYPE_CHECKING:
    from dmtd_demo.measure.bench import Timed
    from dmtd_demo.models.model import Model

VERIFIED = ("prompt-lookup", "dmtd-spec:tau=4")


def timed(model: Model, panel: str, context: int, new: int) -> Timed:
    """One run, with the garbage of those before out of its way."""
    import torch

    from dmtd_demo.measure.bench import bench_prompt, timed_panel
    from dmtd_demo.race.panels import parse_panel

    gc.collect()
    with torch.inference_mode():
        return timed_panel(model, parse_panel(panel), bench_prompt(model, context), new)


def by_turns(
    models: dict[str, Model], panels: list[str], context: int, new: int, rounds: int
) -> None:
    """Every panel of every model in each round; a round before the first counts for nothing."""
    import torch

    from dmtd_demo.measure.limits import memory_bandwidth

    roof = memory_bandwidth(torch.device("cuda"))
    print(f"{torch.cuda.get_device_name()}, {roof / 1e12:.3f} TB/s, PyTorch {torch.__version__}")
    speeds: dict[tuple[str, str], list[float]] = defaultdict(list)
    read: dict[tuple[str, str], float] = {}
    for number in range(rounds + 1):
        for quantization, model in models.items():
            for panel in panels:
                found = timed(model, panel, context, new)
                if number:
                    speeds[quantization, panel].append(found.tokens_per_second)
                    read[quantization, panel] = found.bytes_per_token
    for (quantization, panel), each in speeds.items():
        middle = statistics.median(each)
        row = {
            "quantization": quantization,
            "panel": panel,
            "tokens_per_second": round(middle, 1),
            "all": [round(speed, 1) for speed in each],
            "share_of_roof": round(middle * read[quantization, panel] / roof, 3),
        }
        if "none" in models:
            row["over_bfloat16"] = round(middle / statistics.median(speeds["none", panel]), 3)
        row["over_first_panel"] = round(
            middle / statistics.median(speeds[quantization, panels[0]]), 3
        )
        print(json.dumps(row), flush=True)


def overlapping(model: Model, context: int, new: int) -> dict[bool, list[float]]:
    """Tokens per second of `ar` without and with launches that overlap, twice by turns; the graphs
    are captured anew each time. Where Triton is not there, of the products alone."""
    from dmtd_demo.backbone import cuda_packed

    overlaps: list[Any] = [cuda_packed]
    if find_spec("triton"):
        overlaps.append(import_module("dmtd_demo.backbone.kernels"))
    found: dict[bool, list[float]] = {False: [], True: []}
    for on in (False, True, False, True):
        for module in overlaps:
            module.OVERLAP = on
        model.backbone.__dict__.pop("_passes", None)
        timed(model, "ar", context, new)
        found[on].append(round(timed(model, "ar", context, new).tokens_per_second, 1))
    return found


def parting(model: Model, new: int) -> dict[str, int | None]:
    """The first token of each verified decoder that is not `ar`'s, on a prompt that repeats."""
    import torch

    from dmtd_demo.measure.bench import bench_prompt, timed_panel
    from dmtd_demo.race.panels import parse_panel

    prompt = (bench_prompt(model, 64) * 4)[:200]
    ids = {}
    for panel in ("ar", *VERIFIED):
        with torch.inference_mode():
            ids[panel] = timed_panel(model, parse_panel(panel), prompt, new).ids
    return {
        panel: next((i for i, (a, b) in enumerate(zip(ids[panel], ids["ar"])) if a != b), None)
        for panel in VERIFIED
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="Qwen3-4B")
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--new", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quantizations", default="none,fast-int8,fast-int4")
    parser.add_argument("--panels", default="ar;dmtd:tau=4")
    options = parser.parse_args()
    # after --help, which needs none of it
    import torch

    from dmtd_demo.models.loading import load_random

    if not torch.cuda.is_available():
        raise SystemExit("benchmarks/cuda_steps.py needs a CUDA device")
    torch.manual_seed(0)
    models = {
        name: load_random(options.model, quantization=name, dtype="bfloat16", device="cuda")
        for name in options.quantizations.split(",")
    }
    by_turns(models, options.panels.split(";"), options.context, options.new, options.rounds)
    for name, model in models.items():
        print(name, "overlapping launches", overlapping(model, options.context, options.new // 2))
    for name, model in models.items():
        print(name, "first token that is not ar's", parting(model, min(128, options.new)))


if __name__ == "__main__":
    main()
