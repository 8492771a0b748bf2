"""The README's pictures, from real races: python scripts/pictures.py
[--prompt "…" --asked "…" --max-tokens 96]

assets/screenshot.png is the whole page after a race of `classroom`. assets/race.webp is a race of
SmolLM2 in the presenter's view, slowed: each frame is the page's own replay at the next moment of
the clock that the panels share, so it shows every token, whatever a screenshot takes.
"""

from __future__ import annotations

import argparse
import io
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.extend(
    str(Path(__file__).resolve().parents[1] / folder) for folder in ("tests/browser", "tests", "")
)

from dmtd_demo.shipped import ASSETS
from dmtd_demo.ui.examples import EXAMPLES, SKY

if TYPE_CHECKING:
    from race_page import RacePage


# of the animated picture; a screenshot of the page is 1280 wide and as high as the page
WINDOW = (1280, 640)
SIZE = (960, 480)
# `python -m dmtd_demo get` it first
REAL = ("--model", "SmolLM2-135M-Instruct") + tuple(
    word for panel in ("ar", "mtp-verified", "dmtd:tau=2") for word in ("--panel", panel)
)
FRAMES, FRAME_MS = 48, 125
END_MS = 1500  # how long the last frame stays
QUALITY = 50


def screenshot(visit: RacePage, path: Path) -> None:
    visit.page.wait_for_timeout(3000)  # the charts are drawn one after the other
    visit.page.screenshot(path=path, full_page=True)


def animation(visit: RacePage, path: Path) -> None:
    from PIL import Image

    page = visit.page
    page.set_viewport_size({"width": WINDOW[0], "height": WINDOW[1]})
    page.mouse.move(2, WINDOW[1] - 2)  # no hint of what it rests on
    page.evaluate("() => { document.activeElement.blur(); window.dmtdRace.presenter(); }")
    slider = page.locator(".player input[type='range']")
    end = float(slider.get_attribute("max"))
    frames = []
    for index in range(1, FRAMES + 1):
        slider.fill(
            f"{int(10 * end * index / FRAMES) / 10:g}"
            if index < FRAMES
            else slider.get_attribute("max")
        )
        frames.append(
            Image.open(io.BytesIO(page.screenshot()))
            .convert("RGB")
            .resize(SIZE, Image.Resampling.LANCZOS)
        )
    frames[0].save(
        path,
        save_all=True,
        append_images=frames[1:],
        duration=[FRAME_MS] * (FRAMES - 1) + [END_MS],
        loop=0,
        quality=QUALITY,
        method=4,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Draw assets/screenshot.png and assets/race.webp anew, from races that run now."
    )
    parser.add_argument("--prompt", default=EXAMPLES[0][1], help="default: %(default)s")
    parser.add_argument("--asked", default=SKY, help="of SmolLM2; default: %(default)s")
    parser.add_argument(
        "--max-tokens", type=int, default=96, help="per panel; default: %(default)s"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=ASSETS,
        help="the folder of both pictures; default: %(default)s",
    )
    args = parser.parse_args()
    # after --help, which needs none of it
    from conftest import ARGUMENTS, BROWSERS
    from playwright.sync_api import sync_playwright

    from app_process import running_app
    from race_page import RacePage

    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        sys.exit(
            f"pictures: needs an installed Chromium or Chrome; none of {', '.join(BROWSERS)} is "
            "on the PATH"
        )
    with sync_playwright() as playwright:
        for name, options, prompt, draw in (
            ("screenshot.png", (), args.prompt, screenshot),
            ("race.webp", REAL, args.asked, animation),
        ):
            with (
                tempfile.TemporaryDirectory() as folder,
                running_app(Path(folder), *options) as (url, _),
            ):
                browser = playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
                visit = RacePage(browser, url, charts=True)
                visit.race(prompt, args.max_tokens)
                made = set().union(*(visit.origins(panel) for panel in range(3)))
                if not {"full", "late", "mtp"} <= made:
                    sys.exit(
                        f"pictures: the race for {name} needs tokens of all three origins; got "
                        f"{', '.join(sorted(made))}"
                    )
                draw(visit, args.output / name)
                visit.close()
    for name in ("screenshot.png", "race.webp"):
        print(f"{args.output / name}: {(args.output / name).stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
