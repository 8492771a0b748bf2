"""Late-layer-only agreement against the positions trained on, for both ways: a table and a drawing.

python scripts/smollm2/curve.py assets/smollm2-135m/log.jsonl docs/smollm2.svg
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

TAUS = ("C2", "C3", "C4")
COLOURS = {"C2": "#0072b2", "C3": "#d55e00", "C4": "#009e73"}
WAYS = {"main": "gated", "second": "shared"}
WIDE, HIGH, LEFT, BOTTOM = 560, 300, 50, 40
LOW, TOP, MOST = 0.6, 0.8, 40e6


def points(path: Path) -> dict[str, list[dict]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {
        way: [line for line in lines if line["phase"] == phase and "C2" in line]
        for phase, way in WAYS.items()
    }


def table(found: dict[str, list[dict]]) -> str:
    rows = [
        "| way | positions, million | C2 | C3 | C4 | full passes at C2 | at C1 |",
        "|---|---|---|---|---|---|---|",
    ]
    for way, lines in found.items():
        for line in lines:
            late = [f"{100 * line[tau]['late']:.1f} %" for tau in TAUS]
            full = [f"{100 * line[tau]['full']:.1f} %" for tau in ("C2", "C1")]
            rows.append(f"| {way} | {line['positions'] / 1e6:.1f} | {' | '.join(late + full)} |")
    return "\n".join(rows)


def drawing(found: dict[str, list[dict]]) -> str:
    def at(positions: float, share: float) -> str:
        x = LEFT + positions / MOST * (WIDE - LEFT - 60)
        y = HIGH - BOTTOM - (share - LOW) / (TOP - LOW) * (HIGH - BOTTOM - 20)
        return f"{x:.0f},{y:.0f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDE} {HIGH}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for percent in range(60, 81, 5):
        x, y = at(0, percent / 100).split(",")
        parts.append(f'<path d="M{x} {y}H{WIDE - 60}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y}" dy="4" text-anchor="end">{percent} %</text>')
    for millions in range(0, 41, 10):
        x, y = at(millions * 1e6, LOW).split(",")
        parts.append(f'<text x="{x}" y="{int(y) + 16}" text-anchor="middle">{millions} M</text>')
    for way, lines in found.items():
        for tau in TAUS:
            path = " ".join(at(line["positions"], line[tau]["late"]) for line in lines)
            dash = "" if way == "gated" else ' stroke-dasharray="5 4"'
            colour = COLOURS[tau]
            parts.append(
                f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>'
            )
            if way == "gated":
                x, y = path.split(" ")[-1].split(",")
                parts.append(f'<text x="{int(x) + 6}" y="{y}" dy="4" fill="{colour}">{tau}</text>')
    parts.append(
        f'<text x="{LEFT}" y="{HIGH - 6}">late-layer-only choices that are ar’s own, by positions '
        "trained on; dashed: shared layers</text></svg>"
    )
    return "\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("log", type=Path)
    parser.add_argument("svg", type=Path)
    options = parser.parse_args()
    found = points(options.log)
    options.svg.write_text(drawing(found), encoding="utf-8")
    print(table(found))


if __name__ == "__main__":
    main()
