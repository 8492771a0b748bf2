"""Where verified decoders part from `ar`: python benchmarks/near_ties.py [--model NAME
--quantization fast-int4 --dtype bfloat16 --data FILE.jsonl --prompts 64 --max-new-tokens 128
--panel mtp-verified … --json]

In exact arithmetic a lossless decoder writes what `ar` writes. Below float32 a pass over several
positions may round otherwise than a pass over one, and a near-tie of the two most probable tokens
then falls the other way. For each panel: how many prompts' greedy texts part from `ar`'s, after how
many tokens, and the gap there between `ar`'s two best choices, in nats.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if TYPE_CHECKING:
    from dmtd_demo.models.model import Model
    from dmtd_demo.race.panels import PanelSpec


PROMPTS = Path(__file__).resolve().parents[1] / "dmtd_demo" / "training" / "prompts.txt"
PANELS = ("mtp-verified", "dmtd-spec", "prompt-lookup")


def texts(
    model: Model, panels: list[PanelSpec], messages: list[dict[str, str]], new: int
) -> list[list[Any]]:
    """Race the panels; return the tokens of each, as records of a step have them."""
    from dmtd_demo.race.race import race
    from dmtd_demo.race.settings import RaceSettings

    found: list[list[Any]] = [[] for _ in panels]
    settings = RaceSettings(max_new_tokens=new, audit=False, top=2)
    for batch in race(model, panels, [messages] * len(panels), settings):
        for record in batch:
            if record["type"] == "step":
                found[record["panel"]].extend(record["tokens"])
            elif record["type"] == "summary" and record["stop"] == "error":
                raise SystemExit(f"near_ties: {record['message']}")
    return found


def parting(plain: list[Any], verified: list[Any]) -> tuple[int, float | None] | None:
    """Return after how many tokens two texts part, and the gap there; None where they are equal."""
    for at, (own, other) in enumerate(zip_longest(plain, verified)):
        if own is None or other is None or own["id"] != other["id"]:
            best = [p for *_, p in (own or {}).get("top") or []]
            return at, math.log(best[0] / max(best[1], 1e-5)) if len(best) > 1 else None
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="SmolLM2-135M-Instruct")
    parser.add_argument("--quantization", default=None)
    parser.add_argument("--dtype", default=None)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--data", default=None, help="conversations, as `eval` takes")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--panel", action="append")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    # after --help, which needs none of it
    from dmtd_demo.machine import describe
    from dmtd_demo.measure.evaluation import read_tasks
    from dmtd_demo.models.loading import load
    from dmtd_demo.race.panels import parse_panel

    model = load(
        options.model,
        quantization=options.quantization,
        dtype=options.dtype,
        threads=options.threads,
    )
    if options.data:
        asked = [messages for _, messages, _ in read_tasks(options.data, options.prompts)]
    else:
        lines = PROMPTS.read_text(encoding="utf-8").splitlines()[: options.prompts]
        asked = [[{"role": "user", "content": line}] for line in lines]
    panels = [parse_panel(text) for text in ["ar", *(options.panel or PANELS)]]
    partings: dict[str, list[tuple[int, float | None]]] = {str(p): [] for p in panels[1:]}
    tokens = 0
    for done, messages in enumerate(asked, 1):
        plain, *others = texts(model, panels, messages, options.max_new_tokens)
        tokens += len(plain)
        for panel, text in zip(panels[1:], others):
            found = parting(plain, text)
            if found is not None:
                partings[str(panel)].append(found)
        counts = ", ".join(f"{panel} {len(found)}" for panel, found in partings.items())
        print(f"{done} of {len(asked)}, {tokens:,} tokens: {counts} part", file=sys.stderr)
    if options.json:
        print(json.dumps({"prompts": len(asked), "tokens": tokens, "partings": partings}))
        return
    print(f"{options.model}, {options.quantization or 'as chosen'}, {options.dtype or 'as chosen'}")
    print(f"{len(asked)} prompts, {tokens:,} tokens of ar; {describe('cpu')['processor']}")
    for panel, found in partings.items():
        gaps = [gap for _, gap in found if gap is not None]
        print(
            f"{panel}: {len(found)} texts part from ar's"
            + (f", the first after {min(at for at, _ in found)} tokens" if found else "")
            + (f", gap {statistics.median(gaps):.3f} nats in the middle" if gaps else "")
        )


if __name__ == "__main__":
    main()
