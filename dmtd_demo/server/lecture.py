"""The lecture (`python app.py --class`): the lecturer's race live, and saved races.

The race is mirrored to whoever has the page open in the room; the files are there to be played
again.

Three addresses outside Gradio and its queue: /class is the race as it runs, /class/join shows how
to get there, /class/files/N is a file. One record is kept, that of the last race; every listener
gets the lines that it has not had yet, at most four times a second. Whoever sits at this machine is
the lecturer.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from html import escape
from pathlib import Path
from typing import Any

import segno
from starlette.responses import HTMLResponse, PlainTextResponse, Response, StreamingResponse

from dmtd_demo.comparison import Comparison
from dmtd_demo.errors import UserError
from dmtd_demo.server.headers import Receive, Scope, Send
from dmtd_demo.text_files import read_text
from dmtd_demo.web import replay_file
from dmtd_demo.web.texts import span
from dmtd_demo.web.wire import WireRecord

BATCH_SECONDS = 0.25
# a line without meaning, so that what lies between does not take the connection for dead
ALIVE_SECONDS = 15.0
MOST_LISTENERS = 200
MOST_FILES, MOST_BYTES = 50, 20_000_000


def own_address() -> str:
    """Return this machine's address in its network; nothing is sent to find it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("10.255.255.255", 1))
            return probe.getsockname()[0]
        except OSError:
            return "127.0.0.1"


class Lecture:
    """The lecturer's last race, and the saved ones.

    files: a folder with saved races (.html, .jsonl, .json).

    Raises UserError where one of them is none.
    """

    def __init__(self, files: str | None = None) -> None:
        self.address = own_address()
        self.record: WireRecord | None = None
        self.listeners = 0
        self.files = _read(Path(files)) if files else []

    def publish(self, record: WireRecord) -> None:
        """Show everybody this race from now on; its lines may still grow."""
        self.record = record

    async def answer(self, scope: Scope) -> Response:
        path = scope["path"].rstrip("/")
        port = (scope.get("server") or ("", 80))[1]
        if path == "/class":
            return HTMLResponse(replay_file.live(self._links()))
        if path == "/class/join":
            return HTMLResponse(self._join(f"http://{self.address}:{port}/class"))
        if path == "/class/events":
            if self.listeners >= MOST_LISTENERS:
                return PlainTextResponse(
                    f"This lecture has its {MOST_LISTENERS} listeners already.", 503
                )
            return StreamingResponse(
                self._events(),
                media_type="text/event-stream",
                headers={"cache-control": "no-store", "x-accel-buffering": "no"},
            )
        number = path.removeprefix("/class/files/")
        if number.isascii() and number.isdecimal() and int(number) < len(self.files):
            return HTMLResponse(
                self.files[int(number)][1],
                headers={"content-security-policy": "sandbox allow-scripts allow-downloads"},
            )
        return PlainTextResponse("There is nothing here: /class is the lecture.", 404)

    async def _events(self) -> AsyncIterator[str]:
        """Yield what has come since, as the page's script reads it: which run, which line comes
        first, the lines."""
        run, sent, quiet = "", 0, 0.0
        self.listeners += 1
        try:
            yield ": the lecture\n\n"
            while True:
                record = self.record
                if record is not None:
                    if record.run != run:
                        run, sent = record.run, 0
                    lines = record.lines[sent:]
                    if lines:
                        yield (
                            "".join(
                                f"data: {line}\n"
                                for line in (json.dumps({"run": run, "first": sent}), *lines, "")
                            )
                            + "\n"
                        )
                        sent, quiet = sent + len(lines), 0.0
                quiet += BATCH_SECONDS
                if quiet > ALIVE_SECONDS:
                    yield ": here\n\n"
                    quiet = 0.0
                await asyncio.sleep(BATCH_SECONDS)
        finally:
            self.listeners -= 1

    def _links(self) -> str:
        """Return the links at the head of the page: a race of one's own, and the files."""
        files = "".join(
            f'<a href="/class/files/{number}" target="_blank" rel="noopener">{escape(name)}</a>'
            for number, (name, _) in enumerate(self.files)
        )
        if files:
            files = f"<span>{span('class.files')}</span>{files}"
        return f'<nav class="class-links"><a href="/">{span("class.own")}</a>{files}</nav>'

    def _join(self, url: str) -> str:
        picture = segno.make(url, error="m").svg_inline(
            omitsize=True, border=3, dark="#000", light="#fff"
        )
        return replay_file.plain(
            f'<div class="join"><p>{span("class.join")}</p>{picture}'
            f'<p class="address">{escape(url)}</p></div>'
        )


def _read(folder: Path) -> list[tuple[str, str]]:
    """Return name and HTML of each saved race. Raises UserError."""
    if not folder.is_dir():
        raise UserError(f"--class-files needs a folder with saved races; {folder} is none")
    found = sorted(
        path for path in folder.iterdir() if path.suffix.lower() in (".html", ".jsonl", ".json")
    )
    if len(found) > MOST_FILES or any(path.stat().st_size > MOST_BYTES for path in found):
        raise UserError(
            f"--class-files needs at most {MOST_FILES} files of at most {MOST_BYTES // 1_000_000} "
            f"MB each; {folder} has more, or larger ones"
        )
    return [(path.stem, _replay(path)) for path in found]


def _replay(path: Path) -> str:
    """Return the HTML that plays a saved race. Raises UserError."""
    if path.suffix.lower() != ".html":
        return Comparison.open(path).replay()
    try:
        return read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"--class-files needs files that can be read; {path} gave: {error}"
        ) from None


class Broadcast:
    """ASGI middleware: the lecture's own addresses, before everything else."""

    def __init__(
        self, app: Callable[[Scope, Receive, Send], Awaitable[None]], lecture: Lecture
    ) -> None:
        self.app = app
        self.lecture = lecture

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (
            scope["type"] == "http"
            and scope["method"] == "GET"
            and (scope["path"] == "/class" or scope["path"].startswith("/class/"))
        ):
            response: Any = await self.lecture.answer(scope)
            response.headers["x-content-type-options"] = "nosniff"
            response.headers["referrer-policy"] = "same-origin"
            await response(scope, receive, send)
        else:
            await self.app(scope, receive, send)
