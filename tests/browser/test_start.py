"""`python app.py` as a newcomer types it: a browser opens at once, shows what is being waited for, and then the page, without being asked to."""
from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from app_process import START_SECONDS, free_port

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def started(folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The process, and the address that it opened in the browser."""
    opened = folder / "opened"
    browser = f"{shlex.quote(sys.executable)} -c {shlex.quote('import sys; open(sys.argv[1], chr(119)).write(sys.argv[2])')} {shlex.quote(str(opened))} %s"
    with (folder / "app.log").open("w") as log:
        process = subprocess.Popen([sys.executable, "app.py", "--threads", "1", "--port", str(free_port()), *options], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT,
                                   env={**os.environ, "BROWSER": browser, "HF_HUB_OFFLINE": "1"})
    try:
        deadline = time.monotonic() + START_SECONDS
        while not (opened.exists() and opened.read_text()):
            assert process.poll() is None and time.monotonic() < deadline, (folder / "app.log").read_text()
            time.sleep(0.02)
        yield process, opened.read_text()
    finally:
        process.terminate()
        process.wait(60)


def test_the_page_takes_the_place_of_what_was_shown_first(chromium: Any, tmp_path: Path, screenshots: Path):
    errors: list[str] = []
    with started(tmp_path) as (_, url):
        page = chromium.new_page(viewport={"width": 1280, "height": 720})
        page.on("pageerror", lambda error: errors.append(str(error)))
        assert page.goto(f"{url}?seed=7").status == 503
        assert "late-layer-only" in page.inner_text("main") and "being loaded" in page.inner_text("#stage")
        page.screenshot(path=screenshots / "waiting.png")
        page.wait_for_selector("#run", timeout=1000 * START_SECONDS)
        assert page.url == f"{url}?seed=7" and page.locator("#stage").count() == 0   # a link to a comparison keeps what it says
        page.close()
    assert not errors


def test_an_app_that_ends_is_not_waited_for_in_silence(chromium: Any, tmp_path: Path):
    with started(tmp_path, "--model", str(tmp_path / "nothing")) as (process, url):
        page = chromium.new_page()
        page.goto(url)
        assert process.wait(START_SECONDS) == 2
        page.get_by_text("The app has ended").wait_for(timeout=1000 * START_SECONDS)
        page.close()
    assert (tmp_path / "app.log").read_text().startswith("app.py: ")
