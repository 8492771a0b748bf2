"""The headers of every answer: a Content-Security-Policy as strict as Gradio's page allows.

Text which slipped through as markup could still run nothing and reach nobody.

Gradio builds its components' scripts from text ('unsafe-eval') and writes style attributes
('unsafe-inline' for styles). Its inline scripts are let in one by one, by their hashes.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from dmtd_demo.errors import UserError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

INLINE = re.compile(rb"<script(?![^>]*\ssrc=)[^>]*>(.*?)</script>", re.DOTALL | re.IGNORECASE)
# whose pages show a Space in a frame
HUB = "https://huggingface.co https://*.huggingface.co https://hf.co https://*.hf.space"
FRAMES = "DMTD_FRAMES"
ORIGIN = re.compile(r"https?://(\*\.)?[a-z0-9-]+(\.[a-z0-9-]+)*(:[0-9]{1,5})?", re.IGNORECASE)
# Gradio's page asks for it at the root of the site, wherever the page is
MANIFEST = (b'href="/manifest.json"', b'href="./manifest.json"')


def frames() -> str:
    """Return the sites that may show this page in a frame, as frame-ancestors has it.

    On a Space these are the hub's, and those of DMTD_FRAMES. Raises UserError where one of these is
    no origin.
    """
    given = os.environ.get(FRAMES, "").replace(",", " ").split()
    for origin in given:
        if not ORIGIN.fullmatch(origin):
            raise UserError(
                f"{FRAMES} needs origins such as https://example.org, with commas between them;"
                f" got {origin!r}"
            )
    return " ".join(["'self'", *([HUB] if os.environ.get("SPACE_ID") else []), *given])


def policy(page: bytes) -> str:
    """Return the policy of this HTML page, whose inline scripts are the server's own."""
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(_as_parsed(script)).digest()).decode()}'"
        for script in INLINE.findall(page)
    )
    return (
        f"default-src 'none'; script-src 'self' 'unsafe-eval' {hashes}; style-src 'self' "
        "'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; "
        "manifest-src 'self'; worker-src 'self' blob:; base-uri 'self'; form-action 'none'; "
        f"frame-ancestors {frames()}"
    )


def _as_parsed(script: bytes) -> bytes:
    return script.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


KEPT = ("/", "/config")  # the front page, and what it says as data for visitors without a browser


def _kept_by(scope: Scope) -> tuple[Any, ...] | None:
    """Return the key under which an answer is kept; None where it is not.

    What a link says after its question mark is read in the browser, but for what Gradio's own
    routes read.
    """
    if (
        scope["method"] != "GET"
        or scope["path"] not in KEPT
        or any(name in scope["query_string"] for name in (b"deep_link", b"all_endpoints", b"page="))
    ):
        return None
    asked = sorted(
        (name, value)
        for name, value in scope["headers"]
        if name == b"host" or name.startswith((b"x-forwarded", b"x-gradio", b"x-direct"))
    )
    return (scope["path"], scope["scheme"], scope.get("root_path", ""), *asked)


class Headers:
    """ASGI middleware.

    An HTML page is held until it is whole, because its policy names its scripts; everything else
    passes as it comes. The front page and its config are kept: they are the same for every visitor,
    and Gradio takes a tenth of a second to write them.
    """

    # by the addresses under which the page is known; whoever invents more waits for Gradio
    MOST_KEPT = 32

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self.app = app
        self._kept: dict[tuple[Any, ...], tuple[Message, bytes]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        key = _kept_by(scope)
        if key in self._kept:
            kept, body = self._kept[key]
            # those around this one change it
            await send({**kept, "headers": list(kept["headers"])})
            await send({"type": "http.response.body", "body": body})
            return
        start: Message | None = None
        html, body = False, b""

        async def answer(message: Message) -> None:
            nonlocal start, html, body
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message.get("headers", []),
                    (b"x-content-type-options", b"nosniff"),
                    (b"referrer-policy", b"same-origin"),
                ]
                html = any(
                    name.lower() == b"content-type" and value.startswith(b"text/html")
                    for name, value in message["headers"]
                )
                if html or key:
                    start = message
                else:
                    await send(message)
            elif start is None:
                await send(message)
            else:
                body += message.get("body", b"")
                if not message.get("more_body"):
                    if html:
                        body = body.replace(*MANIFEST)
                        kept = [each for each in start["headers"] if each[0] != b"content-length"]
                        length = (b"content-length", str(len(body)).encode())
                        said = (b"content-security-policy", policy(body).encode())
                        start["headers"] = [*kept, length, said]
                    if key and start["status"] == 200 and len(self._kept) < self.MOST_KEPT:
                        self._kept[key] = {**start, "headers": list(start["headers"])}, body
                    await send(start)
                    await send({"type": "http.response.body", "body": body})

        await self.app(scope, receive, answer)
