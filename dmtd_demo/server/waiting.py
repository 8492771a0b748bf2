"""The first page, shown while packages and model are loaded.

It says what the colours mean, and what is being waited for.

The page takes its place by itself.

It needs the standard library alone, and answers 503 where the page will answer: whoever waits for
that, and is no browser, goes on waiting.
"""

from __future__ import annotations

import base64
import json
import os
import threading
import time
import webbrowser
from contextlib import suppress
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Callable

from dmtd_demo.errors import UserError
from dmtd_demo.server.address import host_of, resolved
from dmtd_demo.shipped import ASSETS
from dmtd_demo.web.stylesheet import style

TEXTS = {
    path.stem: json.loads(path.read_text(encoding="utf-8"))
    for path in (ASSETS / "texts").glob("*.json")
}
ORIGINS = ("full", "late", "mtp", "draft")
PORTS = range(7860, 7960)  # as Gradio looks for a free one
STAGE = "/waiting"  # a path that the page itself does not have

PAGE = """<!doctype html>
<html lang="{language}"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; \
script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; connect-src 'self'; \
base-uri 'none'; form-action 'none'">
<title>{title}</title><link rel="icon" href="data:image/svg+xml;base64,{icon}">
<style>{style}</style></head>
<body class="replay-file waiting"><header class="page-head"><h1>{title}</h1></header>
<main><p>{lead}</p><dl>{origins}</dl><p class="status" role="status" id="stage">{stage}</p></main>
<script>
const dark = matchMedia("(prefers-color-scheme: dark)").matches;
document.documentElement.classList.toggle("dark", dark);
let unanswered = 0;
async function ask() {{
  const stage = document.querySelector("#stage");
  try {{
    const answer = await fetch("{path}", {{ cache: "no-store" }});
    if (!answer.ok) return location.reload();
    stage.textContent = await answer.text();
    unanswered = 0;
  }} catch {{
    // ten seconds: the change to the page takes a part of one
    if (++unanswered === 40) stage.textContent = {ended};
  }}
  setTimeout(ask, 250);
}}
ask();
</script></body></html>
"""


class Waiting:
    """The server of it, until `close`.

    port: the one it holds, for the page. Raises UserError where it cannot listen.
    """

    def __init__(self, host: str | None, port: int | None, model: str) -> None:
        # by its name, not where it lies: whoever comes now is not asked who they are
        name = Path(model).resolve().name if Path(model).is_dir() else model
        self._model, self._stage, self._began = name, "waiting.packages", time.monotonic()
        given = port or int(os.environ.get("GRADIO_SERVER_PORT") or 0)
        self._server = _listen(host, [given] if given else PORTS, self._answer)
        self.port = self._server.server_port
        name = host_of(host).strip("[]")
        self._url = (
            f"http://[{name}]:{self.port}/" if ":" in name else f"http://{name}:{self.port}/"
        )
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        ).start()

    def open(self) -> None:
        """Open it in the browser, by a thread: one that runs in the terminal returns when it is
        left."""
        threading.Thread(target=webbrowser.open, args=(self._url,), daemon=True).start()

    def model(self) -> None:
        """Say that the packages are there and the model is next."""
        self._stage = "waiting.model"

    def close(self) -> None:
        """Give the port free."""
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, path: str, languages: str) -> str:
        first = languages.partition(",")[0].partition(";")[0].strip()
        language = next((tag for tag in (first, first.partition("-")[0]) if tag in TEXTS), "en")
        texts = TEXTS["en"] | TEXTS[language]
        stage = texts[self._stage].format(
            model=self._model, seconds=int(time.monotonic() - self._began)
        )
        if path == STAGE:
            return stage
        origins = "".join(
            f'<div data-key="{key}"><dt><span class="swatch">'
            f"{escape(texts[f'origin.{key}.name'])}</span></dt>"
            f"<dd>{escape(texts[f'origin.{key}.hint'])}</dd></div>"
            for key in ORIGINS
        )
        return PAGE.format(
            language=language,
            title=escape(texts["page.title"]),
            icon=base64.b64encode((ASSETS / "icon.svg").read_bytes()).decode(),
            style=style(),
            lead=escape(texts["waiting.lead"]),
            origins=origins,
            stage=escape(stage),
            path=STAGE,
            ended=json.dumps(texts["waiting.ended"]),
        )


def _listen(
    host: str | None, ports: list[int] | range, answer: Callable[[str, str], str]
) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            body = answer(path, self.headers.get("Accept-Language", "")).encode()
            self.send_response(200 if path == STAGE else 503)
            self.send_header(
                "Content-Type", f"text/{'plain' if path == STAGE else 'html'}; charset=utf-8"
            )
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("Retry-After", "1")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            with suppress(OSError):  # whoever asked has left
                self.wfile.write(body)

        do_HEAD = do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        # elsewhere that would take a port from whoever has it
        allow_reuse_address = os.name == "posix"

    for port in ports:
        Server.address_family, address = resolved(host, port)
        with suppress(OSError):
            return Server(address[:2], Handler)
    raise UserError(
        f"the page needs a free port to listen on; none of {ports[0]} to {ports[-1]} is"
    )
