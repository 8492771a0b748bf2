"""The page in a real browser: `python app.py` as a process of its own, driven by Playwright with an
installed Chromium or Chrome.

DMTD_SCREENSHOTS: a folder that keeps the screenshots. DMTD_BROWSER_MODEL: another model than
`classroom`, for development.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from app_process import running_app
from race_page import RacePage

NO_NETWORK = Path(__file__).resolve().parents[1] / "no_network"  # a sitecustomize
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
# No sandbox: CI runs as root. The rest cuts the browser off from everything but this machine, and
# keeps it from calling home, so that any outside request is the page's own.
ARGUMENTS = (
    "--no-sandbox",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--disable-default-apps",
    # pages of one context share what they compiled: race_page.py
    "--process-per-site",
)


@pytest.fixture(scope="session")
def chromium() -> Iterator[object]:
    sync_api = pytest.importorskip(
        "playwright.sync_api",
        reason="browser tests need Playwright: pip install -r requirements-dev.txt",
    )
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(
            f"browser tests need an installed Chromium or Chrome; none of {', '.join(BROWSERS)} "
            "is on the PATH"
        )
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def app_url(chromium: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An app without a network: no outside address can be reached, and none may be asked for,
    whatever the tests do on its page.
    """
    folder = tmp_path_factory.mktemp("app")
    with running_app(
        folder,
        "--model",
        os.environ.get("DMTD_BROWSER_MODEL", "classroom"),
        PYTHONPATH=str(NO_NETWORK),
    ) as (url, _):
        yield url
    asked = [
        line
        for line in (folder / "app.log").read_text().splitlines()
        if line.startswith("OUTSIDE ADDRESS:")
    ]
    assert not asked, asked


@pytest.fixture
def visit(chromium: object, app_url: str) -> Iterator[RacePage]:
    page = RacePage(chromium, app_url)
    yield page
    page.close()


@pytest.fixture(scope="session")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    kept = os.environ.get("DMTD_SCREENSHOTS")
    folder = Path(kept) if kept else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
