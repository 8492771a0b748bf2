"""The page in a window of its own.

It opens by pywebview where that is installed, else by a Chromium-family browser without its bars,
else as a tab.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import webbrowser
from importlib.util import find_spec
from pathlib import Path

WIDTH, HEIGHT = 1360, 860
ON_PATH = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "microsoft-edge",
    "microsoft-edge-stable",
    "brave-browser",
    "vivaldi",
    "chrome",
    "msedge",
)
INSTALLED = {  # where a browser lies that no PATH knows
    "darwin": [
        f"{folder}/Applications/{name}.app/Contents/MacOS/{name}"
        for folder in ("", str(Path.home()))
        for name in ("Google Chrome", "Chromium", "Microsoft Edge", "Brave Browser")
    ],
    "win32": [
        f"{os.environ.get(folder, '')}\\{name}"
        for folder in ("PROGRAMFILES", "PROGRAMFILES(X86)", "LOCALAPPDATA")
        for name in (
            r"Google\Chrome\Application\chrome.exe",
            r"Microsoft\Edge\Application\msedge.exe",
            r"Chromium\Application\chrome.exe",
        )
    ],
}

logger = logging.getLogger(__name__)


def show(url: str, title: str) -> None:
    """Block until the window is closed, on the main thread, as pywebview needs.

    A tab cannot be watched: there it blocks until it is interrupted, and says so.
    """
    if _has_display():
        if find_spec("webview") and _native(url, title):
            return
        browser = browser_path()
        if browser and _app_mode(browser, url):
            return
        opened = webbrowser.open(url)
        print(
            "No window of its own could be opened here: it needs pywebview (pip install "
            "pywebview), or Chrome, Chromium, Edge or Brave. "
            f"{'The page is a tab of your browser' if opened else f'Open {url} in a browser'}; "
            "Ctrl-C here ends the server."
        )
    else:
        print(
            f"No window can be opened here, because this machine has no display: open {url} in a "
            "browser. Ctrl-C here ends the server."
        )
    threading.Event().wait()


def browser_path() -> str | None:
    """Find a Chromium-family browser of this machine."""
    return next(filter(None, map(shutil.which, ON_PATH)), None) or next(
        (path for path in INSTALLED.get(sys.platform, []) if Path(path).is_file()), None
    )


def _has_display() -> bool:
    return sys.platform in ("darwin", "win32") or bool(
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )


def _native(url: str, title: str) -> bool:
    import webview

    webview.settings["ALLOW_DOWNLOADS"] = True  # Keep saves files
    try:
        webview.create_window(
            title, url, width=WIDTH, height=HEIGHT, text_select=True, zoomable=True
        )
        webview.start(private_mode=False)
    except Exception as error:
        # the edge: it finds no toolkit, or one that does not start, and says so by errors of its
        # own and of the toolkits
        logger.info("pywebview opened no window: %s", error)
        return False
    return True


def _app_mode(browser: str, url: str) -> bool:
    """Open a window until it is closed; say whether there was one.

    The browser gets a profile of its own, so that its process is this window's and ends with it.
    """
    with tempfile.TemporaryDirectory(prefix="dmtd-window-", ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [
                browser,
                f"--app={url}",
                f"--user-data-dir={profile}",
                f"--window-size={WIDTH},{HEIGHT}",
                "--no-first-run",
                "--no-default-browser-check",
                # root gets no sandbox, and no window without saying so
                *(["--no-sandbox"] if getattr(os, "geteuid", lambda: 1)() == 0 else []),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            return process.wait() == 0
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
