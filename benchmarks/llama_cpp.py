"""llama.cpp beside this app: python benchmarks/llama_cpp.py --llama-bench PATH [--model FILE.gguf
--threads 1 --threads 2 --rounds 5 --panel dmtd:tau=4 --json]

Both read the same GGUF file and make 48 tokens after 64, by turns: `llama-bench` in a process of
its own, then `ar` and every panel under `fast-int4` in this one, with each number of threads in every round.
Medians, what of llama.cpp's speed each panel makes, and what of `ar`'s. `--random-weights NAME` in
place of `--model` writes a catalog model's shape first: matrices in `--kind`, and the table, which
is the LM head too, in `--table`, as llama.cpp's own quantizer leaves a tied one of 896 columns. The
tests' writer does it, so that one needs the development requirements.

`llama-bench` is part of llama.cpp: `cmake -B build -DGGML_NATIVE=ON && cmake --build build --target
llama-bench`; its sources come along with `pip download --no-deps --no-binary :all:
llama-cpp-python`, in `vendor/llama.cpp`.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

sys.path.extend(
    str(Path(__file__).resolve().parents[1] / folder) for folder in ("tests/models", "")
)


LLAMA = "llama.cpp"


def file_of(name: str) -> Path:
    """Return the GGUF file of a path or of a catalog model."""
    from dmtd_demo.models.catalog import CATALOG
    from dmtd_demo.models.fetch import at_hand

    if name not in CATALOG:
        return Path(name)
    found = at_hand(CATALOG[name].source, CATALOG[name].archive)
    if found is None:
        raise SystemExit(f"run `python -m dmtd_demo get {name}` first")
    return found


def random_file(folder: str, name: str, kind: str, table: str) -> Path:
    """Write a catalog model's shape with random weights. kind, table: names of GGUF types."""
    import torch
    from gguf import GGMLQuantizationType

    from dmtd_demo.models.catalog import CATALOG
    from dmtd_demo.models.config import CLASSES
    from dmtd_demo.models.loading import load
    from gguf_files import write

    entry = CATALOG[name]
    config_cls, cls = CLASSES[entry.family]
    torch.manual_seed(0)
    module: Any = cls(config_cls.from_dict(entry.shape))
    kinds = {True: GGMLQuantizationType[table], False: GGMLQuantizationType[kind]}
    return write(
        Path(folder) / f"{name}.{kind}.gguf",
        module,
        entry.family,
        # any will do that leaves the other rows of the table unused
        tokenizer=load("classroom").tokenizer,
        kinds=lambda stored: kinds[stored.startswith(("token_embd", "output."))],
    )


def llama(binary: str, file: Path, threads: int, context: int, new: int) -> dict[str, Any]:
    """Run `llama-bench` once, and return its own record."""
    asked = {"-m": file, "-p": 0, "-n": new, "-d": context, "-r": 1, "-t": threads, "-o": "json"}
    command = [binary, *(str(part) for pair in asked.items() for part in pair)]
    ran = subprocess.run(command, check=True, capture_output=True, text=True)
    (record,) = json.loads(ran.stdout)
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--llama-bench", required=True, metavar="PATH")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--model", default="SmolLM2-135M-Instruct", help="FILE.gguf, or a name")
    source.add_argument("--random-weights", metavar="NAME", help="a catalog model's shape")
    parser.add_argument("--kind", default="Q4_0")
    parser.add_argument("--table", default="Q8_0")
    parser.add_argument("--threads", type=int, action="append")
    parser.add_argument("--context", type=int, default=64)
    parser.add_argument("--new", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--panel", action="append")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = (
            random_file(folder, options.random_weights, options.kind, options.table)
            if options.random_weights
            else file_of(options.model)
        )
        found = measured(options, file)
    if options.json:
        print(json.dumps(found))
        return
    print(f"{found['file']}, {found['machine']['processor']}, llama.cpp {found['llama.cpp']}")
    for row in found["rows"]:
        print(
            f"{row['threads']} threads, {row['name']}: {row['tokens_per_second']} tokens/s "
            f"({row['spread'][0]} to {row['spread'][1]}), {row['over_llama']} of llama.cpp's, "
            f"{row['over_ar']} of ar's"
        )


def measured(options: argparse.Namespace, file: Path) -> dict[str, Any]:
    """Run all by turns; a round before the first warms up and does not count."""
    from dmtd_demo.machine import describe
    from dmtd_demo.measure.bench import bench_prompt, timed_panel
    from dmtd_demo.models.loading import load
    from dmtd_demo.models.threads import choose
    from dmtd_demo.race.panels import parse_panel

    model = load(str(file), quantization="fast-int4", device="cpu", threads=1)
    prompt = bench_prompt(model, options.context)
    panels = [parse_panel(text) for text in ["ar", *(options.panel or ())]]
    counts = options.threads or [1, 2]
    speeds: dict[tuple[int, str], list[float]] = defaultdict(list)
    for number in range(options.rounds + 1):
        for threads in counts:
            record = llama(options.llama_bench, file, threads, options.context, options.new)
            took = {LLAMA: record["avg_ts"]}
            choose(model, threads)
            for panel in panels:
                gc.collect()
                run = timed_panel(model, panel, prompt, options.new)
                took[str(panel)] = run.tokens_per_second
            if number:
                for name, speed in took.items():
                    speeds[threads, name].append(speed)
    middles = {key: statistics.median(each) for key, each in speeds.items()}
    return {
        "file": file.name,
        "machine": describe("cpu"),
        "llama.cpp": f"build {record['build_number']}, {record['build_commit']}",
        "context": options.context,
        "new": options.new,
        "rounds": options.rounds,
        "rows": [
            {
                "threads": threads,
                "name": name,
                "tokens_per_second": round(middle, 1),
                "spread": [round(end(speeds[threads, name]), 1) for end in (min, max)],
                "over_llama": round(middle / middles[threads, LLAMA], 3),
                "over_ar": round(middle / middles[threads, "ar"], 3),
            }
            for (threads, name), middle in middles.items()
        ],
    }


if __name__ == "__main__":
    main()
