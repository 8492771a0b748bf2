"""`python app.py` as a newcomer types it: a browser opens at once, shows what is being waited for,
and then the page, without being asked to.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from app_process import START_SECONDS, opening_app


def test_the_page_takes_the_place_of_what_was_shown_first(
    chromium: Any, tmp_path: Path, screenshots: Path
):
    errors: list[str] = []
    with opening_app(tmp_path, "--threads", "1") as (_, url):
        page = chromium.new_page(viewport={"width": 1280, "height": 720})
        page.on("pageerror", lambda error: errors.append(str(error)))
        assert page.goto(f"{url}?seed=7").status == 503
        assert "late-layer-only" in page.inner_text("main") and "being loaded" in page.inner_text(
            "#stage"
        )
        page.screenshot(path=screenshots / "waiting.png")
        page.wait_for_selector("#run", timeout=1000 * START_SECONDS)
        # a link to a comparison keeps what it says
        assert page.url == f"{url}?seed=7" and page.locator("#stage").count() == 0
        page.close()
    assert not errors


def test_an_app_that_ends_is_not_waited_for_in_silence(chromium: Any, tmp_path: Path):
    with opening_app(tmp_path, "--threads", "1", "--model", str(tmp_path / "nothing")) as (
        process,
        url,
    ):
        page = chromium.new_page()
        page.goto(url)
        assert process.wait(START_SECONDS) == 2
        page.get_by_text("The app has ended").wait_for(timeout=1000 * START_SECONDS)
        page.close()
    assert (tmp_path / "app.log").read_text().startswith("app.py: ")
