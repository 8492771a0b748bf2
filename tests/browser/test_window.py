"""`python app.py --window` under a virtual display: a window of its own, whose closing ends the
server; and the page as an app that a browser can install.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urljoin

import pytest

from app_process import START_SECONDS, free_port
from dmtd_demo.server.window import browser_path

ROOT = Path(__file__).resolve().parents[2]
TITLE = "Multi-token decoding"


@pytest.fixture(scope="module")
def display(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    for tool in ("Xvfb", "xdotool"):
        if not shutil.which(tool):
            pytest.skip(f"tests of the browser window need {tool}: apt install xvfb xdotool")
    if not browser_path():
        pytest.skip("tests of the browser window need Chromium or Chrome")
    told, tell = os.pipe()
    process = subprocess.Popen(
        ["Xvfb", "-displayfd", str(tell), "-screen", "0", "1440x900x24", "-nolisten", "tcp"],
        pass_fds=[tell],
        stderr=subprocess.DEVNULL,
    )
    os.close(tell)
    with os.fdopen(told) as line:
        number = line.readline().strip()
    yield f":{number}"
    process.terminate()
    process.wait()


def xdotool(display: str, *command: str) -> list[str]:
    return subprocess.run(
        ["xdotool", *command],
        env={**os.environ, "DISPLAY": display},
        capture_output=True,
        text=True,
    ).stdout.split()


def without_display(**environment: str) -> dict[str, str]:
    return {
        **{
            name: value
            for name, value in os.environ.items()
            if name not in ("DISPLAY", "WAYLAND_DISPLAY")
        },
        **environment,
    }


def window_of(display: str, process: subprocess.Popen[bytes], log: Path) -> str:
    """The window with the page's own title, which says that the page was loaded."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if found := xdotool(display, "search", "--onlyvisible", "--name", TITLE):
            return found[0]
        assert process.poll() is None, log.read_text()
        time.sleep(0.2)
    raise AssertionError(log.read_text())


def test_closing_the_window_ends_the_server(display: str, tmp_path: Path) -> None:
    with (tmp_path / "app.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "app.py", "--port", str(free_port()), "--window"],
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=without_display(DISPLAY=display, GRADIO_TEMP_DIR=str(tmp_path / "gradio")),
        )
    try:
        window = window_of(display, process, tmp_path / "app.log")
        assert process.poll() is None
        # there is no window manager here, and so no cross to click
        xdotool(display, "windowfocus", window, "key", "--clearmodifiers", "ctrl+w")
        assert process.wait(30) == 0, (tmp_path / "app.log").read_text()
    finally:
        process.kill()
    assert "Traceback" not in (tmp_path / "app.log").read_text()


def test_without_a_display_it_says_where_the_page_is() -> None:
    code = "from dmtd_demo.server.window import show; show('http://127.0.0.1:7860/', 'title')"
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", code],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env=without_display(),
    )
    assert process.stdout is not None
    said = process.stdout.readline()
    assert "no display" in said and "open http://127.0.0.1:7860/" in said
    assert process.poll() is None, "the server goes on"
    process.kill()
    process.wait()


def test_a_browser_can_install_the_page(app_url: str) -> None:
    with urllib.request.urlopen(f"{app_url}manifest.json") as answer:
        manifest = json.load(answer)
    assert manifest["name"].startswith(TITLE) and manifest["display"] == "standalone"
    with urllib.request.urlopen(urljoin(app_url, manifest["icons"][0]["src"])) as icon:
        assert icon.headers["content-type"].startswith("image/svg") and b"<svg" in icon.read()
