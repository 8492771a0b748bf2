"""The page's door: each request is judged before anything of Gradio's is asked, and what the page
does not need is closed.

Gradio's server has some seventy routes: uploads, a proxy, files, recordings, statistics, editors of
the program's own text. The page uses the few that are named here; the others answer everybody the
same 404, and so does whatever a later Gradio adds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from urllib.parse import parse_qsl, urlencode

from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response

from dmtd_demo.server.headers import Receive, Scope, Send
from dmtd_demo.server.trust import STATE, Standing, Trust

App = Callable[[Scope, Receive, Send], Awaitable[None]]

READ = re.compile(
    r"/|/config/?|/theme\.css|/favicon\.ico|/robots\.txt|/pwa_icon|/(?:assets|static)/.+"
    r"|/class(?:/.*)?|/gradio_api/(?:info/?|app_id/?|startup-events|queue/data|heartbeat/[^/]+)"
)
ASK = re.compile(r"/gradio_api/(?:queue/join|run/[^/]+/?|cancel|reset/?)")
SAID = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
WRONG = "This token is not the one of the page that runs now: its console shows that one."


class Door:
    """ASGI middleware around all others. files: what is served besides, by its path. title: of the
    page, in its manifest."""

    def __init__(self, app: App, trust: Trust, files: Mapping[str, Path], title: str) -> None:
        self.app = app
        self.trust = trust
        self.files = files
        self.title = title

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            standing = self.trust.judge(scope)
            scope.setdefault("state", {})[STATE] = standing
            await (self._answer(scope, standing) or self.app)(scope, receive, send)
        elif scope["type"] == "websocket":  # the page has none
            await receive()
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self.app(scope, receive, send)

    def _answer(self, scope: Scope, standing: Standing) -> Response | None:
        """What is answered here; None: the page answers."""
        method, path = scope["method"], route(scope)
        reads = method in ("GET", "HEAD")
        if reads and path in ("/me", "/me/"):
            return _me(standing)
        if standing.refused:
            return PlainTextResponse(f"Refused: {standing.because}.", 403, SAID)
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        if reads and path == "/" and any(name == "token" for name, _ in query):
            return self._take_token(scope, query)
        if reads and path == "/manifest.json":
            return self._manifest()
        if reads and path in self.files:
            return FileResponse(self.files[path], headers={"x-content-type-options": "nosniff"})
        if reads and READ.fullmatch(path) or method == "POST" and ASK.fullmatch(path):
            return None
        return JSONResponse({"detail": "Not Found"}, 404, SAID)

    def _take_token(self, scope: Scope, query: list[tuple[str, str]]) -> Response:
        """The token out of the address and into a cookie, so that neither the history, nor a link
        from the page, nor a script on it has it."""
        if not any([self.trust.is_token(value) for name, value in query if name == "token"]):
            return PlainTextResponse(WRONG, 403, SAID)
        rest = urlencode([(name, value) for name, value in query if name != "token"])
        there = {
            "location": f"./?{rest}" if rest else "./",
            "set-cookie": self.trust.set_cookie(scope),
        }
        return Response(status_code=303, headers={**SAID, **there})

    def _manifest(self) -> Response:
        """Gradio's, but with addresses that hold under a path of the site too."""
        icon = {"src": "./pwa_icon", "sizes": "any", "type": "image/svg+xml", "purpose": "any"}
        told = {"name": self.title, "icons": [icon], "start_url": "./", "display": "standalone"}
        return Response(json.dumps(told), media_type="application/manifest+json")


def route(scope: Scope) -> str:
    """The path below the one that the page is served under, as Gradio's routes see it."""
    path, root = scope["path"], scope.get("root_path", "")
    return path[len(root) :] or "/" if root and (path + "/").startswith(root + "/") else path


def _me(standing: Standing) -> Response:
    told = {"owner": True} if standing.owner else {"owner": False, "because": standing.because}
    return JSONResponse(told, 403 if standing.refused else 200, SAID)
