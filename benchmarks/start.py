"""How long a visitor waits for the page: python benchmarks/start.py [--starts 5 --json]

From `python app.py`, files warm, in a browser that is open already: until something is on the
screen, and until the page can run. And, with `--no-browser`, where nothing is shown before it,
until the page itself is served (bar: 8 s). The app as a newcomer starts it: every package imported,
the model loaded, its threads measured. The first start, which warms the files, does not count.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.extend(
    str(Path(__file__).resolve().parents[1] / folder) for folder in ("tests/browser", "tests", "")
)


BARS = {"served": 8.0, "can run": 12.0}  # seconds


def in_browser(chromium: Any, folder: Path) -> dict[str, float]:
    from app_process import START_SECONDS, opening_app

    page = chromium.new_page(viewport={"width": 1280, "height": 720})
    began = time.perf_counter()
    with opening_app(folder) as (_, url):
        page.goto(url)
        page.evaluate(
            "() => new Promise(drawn => requestAnimationFrame(() => requestAnimationFrame(drawn)))"
        )
        screen = time.perf_counter() - began
        page.wait_for_selector("[data-status='idle']", timeout=1000 * START_SECONDS)
        page.wait_for_selector("#run:not([disabled])")
        can_run = time.perf_counter() - began
        page.close()
    return {"on the screen": screen, "can run": can_run}


def served(folder: Path) -> dict[str, float]:
    from app_process import running_app

    began = time.perf_counter()
    with running_app(folder, measured=True):
        return {"served": time.perf_counter() - began}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    # after --help, which needs none of it
    from conftest import ARGUMENTS, BROWSERS
    from playwright.sync_api import sync_playwright

    from dmtd_demo.machine import describe

    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        raise SystemExit("needs Chromium: apt install chromium")
    seconds: dict[str, list[float]] = {}
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        ways: list[Callable[[Path], dict[str, float]]] = [
            lambda folder: in_browser(chromium, folder),
            served,
        ]
        for start in range(1 + options.starts):
            for way in ways:
                with tempfile.TemporaryDirectory(prefix="dmtd-start-") as folder:
                    for name, value in way(Path(folder)).items():
                        if start:
                            seconds.setdefault(name, []).append(value)
        chromium.close()
    rows = [
        {
            "until": name,
            "median_s": round(statistics.median(values), 2),
            "least_s": round(min(values), 2),
            "most_s": round(max(values), 2),
            "bar_s": BARS.get(name),
        }
        for name, values in seconds.items()
    ]
    if options.json:
        print(json.dumps({"machine": describe("cpu"), "starts": options.starts, "rows": rows}))
        return
    for row in rows:
        print("  ".join(f"{name} {value}" for name, value in row.items()))


if __name__ == "__main__":
    main()
