"""Record the race that plays as the page opens: python scripts/first_race.py [--threads 1]

It is a race of the embedded model's three panels on the page's first prompt, run here and now, and
written to assets/first_race.jsonl as `compare --json` writes it (docs/design.md, "The trace"), with
three alternatives a token; probabilities and milliseconds are rounded.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dmtd_demo.shipped import ASSETS

PATH = ASSETS / "first_race.jsonl"
PANELS = ("ar", "dmtd:tau=4", "clp")


def rounded(value: Any, digits: int = 4) -> Any:
    """Return a record with its fractions rounded."""
    if isinstance(value, float):
        return round(value, digits)
    if isinstance(value, dict):
        return {name: rounded(each, digits) for name, each in value.items()}
    return [rounded(each, digits) for each in value] if isinstance(value, list) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    # after --help, which needs none of it
    from dmtd_demo.comparison import compare
    from dmtd_demo.models.loading import load
    from dmtd_demo.ui.examples import first_prompt

    model = load("classroom", threads=arguments.threads)
    race = compare(first_prompt(model), PANELS, model, top=3)
    lines = [
        json.dumps(rounded(record), ensure_ascii=False, separators=(",", ":"))
        for record in race.records
    ]
    PATH.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{PATH.name}: {PATH.stat().st_size / 1000:.0f} kB")
    print(race)


if __name__ == "__main__":
    main()
