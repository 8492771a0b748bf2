"""The page against no page: python benchmarks/page_share.py [--starts 5 --rounds 4 --tokens 256
--temperature 0 --json]

The same race, by turns, (a) in the app with a browser attached, which draws it, (b) in the app with
a client that only reads, (c) by `compare` in a process without a page, and (d) each decoder by
itself in that process. Tokens/s are the race's own (virtual clock). Medians over all rounds; page ÷
compare should be at least 0.95, and compare ÷ alone within 5 % of 1. Everything may use the cores
that this script may. App and model are started anew for every few rounds: where a process happens
to lie in memory makes it up to a twentieth faster or slower, for as long as it lives. A temperature
of 50 makes texts that hardly ever end by themselves: a race as long as --tokens says.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.extend(
    str(Path(__file__).resolve().parents[1] / folder) for folder in ("tests/browser", "tests", "")
)

if TYPE_CHECKING:
    from race_page import RacePage


PANELS = ("ar", "dmtd:tau=4", "clp")  # those that the page begins with
PROMPT = "What is DMTD?"  # greedy: 142 tokens
ALTERNATIVES = 5  # as the page records them


def rates_of(records: list[dict[str, Any]]) -> list[float]:
    """Tokens per second of each panel."""
    return [
        record["tokens_per_second"]
        for record in sorted(
            (r for r in records if r["type"] == "summary"), key=lambda r: r["panel"]
        )
    ]


def by_compare(model: Any, panels: tuple[str, ...], tokens: int, temperature: float) -> list[float]:
    from dmtd_demo.race.panels import parse_panel
    from dmtd_demo.race.race import race
    from dmtd_demo.race.settings import RaceSettings
    from dmtd_demo.sampling import Sampling

    records = [
        record
        for batch in race(
            model,
            [parse_panel(panel) for panel in panels],
            [[{"role": "user", "content": PROMPT}]] * len(panels),
            RaceSettings(
                Sampling(temperature), max_new_tokens=tokens, top=ALTERNATIVES, audit=False
            ),
        )
        for record in batch
    ]
    return rates_of(records)


def read_only(url: str, tokens: int, temperature: float) -> list[float]:
    from app_process import Visitor

    visitor = Visitor(url)
    visitor.ask(PROMPT, max_tokens=tokens, temperature=temperature)
    return rates_of(visitor.lines())


def on_page(visit: RacePage) -> tuple[list[float], float]:
    """The same, and how long the first token took from the press on Run to the screen, in
    milliseconds.
    """
    from race_page import END_SECONDS, OVER

    visit.page.evaluate("""() => {
      window.pressed = performance.now(); window.drawn = null;
      const seen = new MutationObserver(() => { if (document.querySelector("[data-panel] [data-origin]")) requestAnimationFrame(() => { window.drawn ??= performance.now(); }); });
      seen.observe(document.querySelector("[data-status]"), { childList: true, subtree: true });
      document.querySelector("#run").addEventListener("click", () => { window.pressed = performance.now(); window.drawn = null; }, { capture: true, once: true });
    }""")
    visit.ask(PROMPT)
    # the race is over on the device; where it is still played slowed, what is left is skipped
    visit.page.wait_for_selector("#run[aria-disabled='false']", timeout=1000 * END_SECONDS)
    visit.page.get_by_role("button", name="To the end").click()
    if visit.wait_until(*OVER) != "done":
        raise SystemExit(f"a race on the page ended otherwise: {visit.sentence}")
    rates = [float(row["tokens/s"].replace(",", "")) for row in visit.table()]
    first = visit.page.evaluate("window.drawn - window.pressed")
    visit.page.once("dialog", lambda dialog: dialog.accept())
    visit.page.click("#new-chat")  # every race from the same context
    visit.wait_until("idle")
    return rates, first


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--speed", default="watch", help="what the page plays at; 1: the clock's")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    # after --help, which needs none of it
    from conftest import ARGUMENTS, BROWSERS
    from playwright.sync_api import sync_playwright

    from app_process import running_app
    from dmtd_demo.machine import describe
    from dmtd_demo.models.loading import load
    from race_page import RacePage

    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    found: dict[str, list[list[float]]] = {"page": [], "read": [], "compare": [], "alone": []}
    firsts = []
    for _ in range(options.starts):
        with (
            sync_playwright() as playwright,
            tempfile.TemporaryDirectory() as folder,
            running_app(Path(folder), "--threads", "1") as (url, _),
        ):
            browser = playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
            model = load("classroom", threads=1)
            visit = RacePage(browser, url, charts=True, speed=options.speed)
            visit.set("#max-tokens", options.tokens)
            visit.page.click("#sampling > button")
            visit.set("#temperature", options.temperature)
            for turn in range(options.rounds + 1):
                page, first = on_page(visit)
                read = read_only(url, options.tokens, options.temperature)
                compared = by_compare(model, PANELS, options.tokens, options.temperature)
                alone = [
                    by_compare(model, (panel,), options.tokens, options.temperature)[0]
                    for panel in PANELS
                ]
                if turn:  # the first warms up
                    firsts.append(first)
                    for name, rates in (
                        ("page", page),
                        ("read", read),
                        ("compare", compared),
                        ("alone", alone),
                    ):
                        found[name].append(rates)
            browser.close()
    middle = {
        name: [statistics.median(column) for column in zip(*rounds)]
        for name, rounds in found.items()
    }

    def share(one: str, other: str, index: int) -> dict[str, Any]:
        """The median of each start's medians, and the lowest and the highest of those."""
        ratios = [a[index] / b[index] for a, b in zip(found[one], found[other])]
        starts = [
            statistics.median(ratios[at : at + options.rounds])
            for at in range(0, len(ratios), options.rounds)
        ]
        return {
            f"{one}_over_{other}": round(statistics.median(starts), 3),
            f"{one}_over_{other}_spread": [round(min(starts), 3), round(max(starts), 3)],
        }

    rows = [
        {
            "panel": panel,
            **{name: round(middle[name][index], 1) for name in middle},
            **share("page", "compare", index),
            **share("read", "compare", index),
            **share("compare", "alone", index),
        }
        for index, panel in enumerate(PANELS)
    ]
    result = {
        "machine": describe("cpu"),
        "starts": options.starts,
        "rounds": options.rounds,
        "tokens": options.tokens,
        "temperature": options.temperature,
        "rows": rows,
        "first_token_ms": round(statistics.median(firsts)),
    }
    if options.json:
        print(json.dumps(result))
        return
    for row in rows:
        print("  ".join(f"{name} {value}" for name, value in row.items()))
    print(
        f"first token on screen after the press on Run: {result['first_token_ms']} ms (median of "
        f"{len(firsts)})"
    )


if __name__ == "__main__":
    main()
