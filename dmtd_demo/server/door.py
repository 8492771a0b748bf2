"""The page's door: each request is judged before anything of Gradio's is asked, and what the page
does not need is closed.

Gradio's server has some seventy routes: uploads, a proxy, files, recordings, statistics, editors of
the program's own text. The page uses the few that are named here; the others answer everybody the
same 404, and so does whatever a later Gradio adds.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from urllib.parse import parse_qsl, urlencode

from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response

from dmtd_demo.server.headers import Message, Receive, Scope, Send
from dmtd_demo.server.trust import STATE, Standing, Trust

logger = logging.getLogger(__name__)
App = Callable[[Scope, Receive, Send], Awaitable[None]]

READ = re.compile(
    r"/|/config/?|/theme\.css|/favicon\.ico|/robots\.txt|/pwa_icon|/(?:assets|static)/.+"
    r"|/class(?:/.*)?|/gradio_api/(?:info/?|app_id/?|startup-events|queue/data|heartbeat/[^/]+)"
)
ASK = re.compile(r"/gradio_api/(?:queue/join|run/[^/]+/?|cancel|reset/?)")
EVENT = re.compile(r"/gradio_api/(?:queue/join|run/.*)")
# as JSON writes a half of a character, or a whole one beyond 16 bits
HALVES = re.compile(rb"\\u[dD][89a-fA-F]")
SAID = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
MOST_BYTES = 4 << 20  # of what one event of the page sends: a prompt, and the page's controls
MOST_SESSIONS = 2000
HEARTBEAT = "/gradio_api/heartbeat/"
ODD = {"detail": "An event of this page needs to be asked for as its script does."}
FRONT = "A front that hands this name on needs to say that it is one, by X-Forwarded-For."
WRONG = "This token is not the one of the page that runs now: its console shows that one."


class Door:
    """ASGI middleware around all others.

    files: what is served besides, by its path. title: of the page, in its manifest. events: how
    many values each of the page's takes, by its number; None: not checked here.
    """

    def __init__(
        self,
        app: App,
        trust: Trust,
        files: Mapping[str, Path],
        title: str,
        events: Mapping[int, int] | None = None,
    ) -> None:
        self.app = app
        self.trust = trust
        self.files = files
        self.title = title
        self.events = events
        self._owners: dict[str, None] = {}  # the owner's sessions, the latest last

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            standing = self.trust.judge(scope)
            scope.setdefault("state", {})[STATE] = standing
            await (self._answer(scope, standing) or self._page)(scope, receive, send)
        elif scope["type"] == "websocket":  # the page has none
            await receive()
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self.app(scope, receive, send)

    async def _page(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on to Gradio.

        Whatever it fails at is one line of the log, which strangers could fill else.
        """
        began = False

        async def begin(message: Message) -> None:
            nonlocal began
            began = True
            await send(message)

        asked: object = None
        if scope["method"] == "POST":
            body = await _body(receive)
            asked = _event(body, self.events if EVENT.fullmatch(route(scope)) else None)
            if isinstance(asked, Response):
                await asked(scope, receive, send)
                return
            receive = _again(_whole(body or b"", asked), receive)
        if not self._may_use(_session(scope, asked), scope["state"][STATE]):
            await JSONResponse(ODD, 403, SAID)(scope, receive, send)
            return
        try:
            await self.app(scope, receive, begin)
        except Exception as error:
            logger.warning(
                "%s %s: %s: %s", scope["method"], scope["path"], type(error).__name__, error
            )
            if not began:
                await JSONResponse(ODD, 500, SAID)(scope, receive, send)

    def _may_use(self, session: str, standing: Standing) -> bool:
        """Say whether a request may hear and steer a session: the owner's are its alone."""
        if not standing.owner:
            return session not in self._owners
        if session:
            self._owners.pop(session, None)
            self._owners[session] = None
            if len(self._owners) > MOST_SESSIONS:
                del self._owners[next(iter(self._owners))]
        return True

    def _answer(self, scope: Scope, standing: Standing) -> Response | None:
        """Return the answer of the door itself; None: the page answers."""
        method, path = scope["method"], route(scope)
        reads = method in ("GET", "HEAD")
        if reads and path in ("/me", "/me/"):
            return _me(standing)
        if standing.refused:
            return PlainTextResponse(f"Refused: {standing.because}. {FRONT}", 403, SAID)
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
        """Move the token out of the address and into a cookie, so that neither the history, nor a
        link from the page, nor a script on it has it."""
        if not any([self.trust.is_token(value) for name, value in query if name == "token"]):
            return PlainTextResponse(WRONG, 403, SAID)
        rest = urlencode([(name, value) for name, value in query if name != "token"])
        there = {
            "location": f"./?{rest}" if rest else "./",
            "set-cookie": self.trust.set_cookie(scope),
        }
        return Response(status_code=303, headers={**SAID, **there})

    def _manifest(self) -> Response:
        """Return Gradio's manifest, but with addresses that hold under a path of the site too."""
        icon = {"src": "./pwa_icon", "sizes": "any", "type": "image/svg+xml", "purpose": "any"}
        told = {"name": self.title, "icons": [icon], "start_url": "./", "display": "standalone"}
        return Response(json.dumps(told), media_type="application/manifest+json")


def route(scope: Scope) -> str:
    """Return the path below the one that the page is served under, as Gradio's routes see it."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    return path[len(root) :] or "/" if root and (path + "/").startswith(root + "/") else path


async def _body(receive: Receive) -> bytes | None:
    """Return the body of a request; None where that is more than any event of the page needs."""
    body: bytes = b""
    while True:
        message = await receive()
        if message["type"] != "http.request":  # whoever asked has left
            return body
        body += message.get("body", b"")
        if len(body) > MOST_BYTES:
            return None
        if not message.get("more_body"):
            return body


def _again(body: bytes, receive: Receive) -> Receive:
    """Give a body that has been read already once more."""
    messages = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def next_message() -> Message:
        return next(messages, None) or await receive()

    return next_message


def _event(body: bytes | None, events: Mapping[int, int] | None) -> object:
    """Return the event that a page's script asks for, or a refusal where it is none.

    The values of the page's controls are texts, numbers and lists: Gradio reads an object among
    them as a file, which it looks for here or fetches. It fails with a traceback at an event that
    is none of the page's, and at values that are not as many as it takes.
    """
    if body is None:
        return JSONResponse({"detail": f"An event has at most {MOST_BYTES:,} bytes."}, 413, SAID)
    try:
        asked = json.loads(body)
        if (
            isinstance(asked, dict)
            and not asked.get("batched")
            and not _has_object(asked.get("data"))
            and (events is None or _is_of(events, asked))
        ):
            return asked
    except (ValueError, RecursionError):
        pass
    return JSONResponse(ODD, 400, SAID)


def _is_of(events: Mapping[int, int], asked: Mapping[str, object]) -> bool:
    """Say whether an event is one of the page's, with as many values as it takes."""
    number, values = asked.get("fn_index"), asked.get("data")
    return type(number) is int and isinstance(values, list) and events.get(number) == len(values)


def _session(scope: Scope, asked: object) -> str:
    """Return the session of Gradio's that a request names; empty where it names none."""
    if isinstance(asked, dict):
        return str(asked.get("session_hash") or "")
    path = route(scope)
    if path.startswith(HEARTBEAT):
        return path.removeprefix(HEARTBEAT)
    return dict(parse_qsl(scope["query_string"].decode("latin-1"))).get("session_hash", "")


def _whole(body: bytes, asked: object) -> bytes:
    """Return the body of an event with halves of characters replaced by U+FFFD.

    A text that was cut within one holds them, and no answer that says it back can be sent.
    """
    if not HALVES.search(body):
        return body
    text = json.dumps(asked, ensure_ascii=False)
    return re.sub("[\ud800-\udfff]", "\ufffd", text).encode()


def _has_object(value: object) -> bool:
    if isinstance(value, list):
        return any(map(_has_object, value))
    return isinstance(value, dict)


def _me(standing: Standing) -> Response:
    told = {"owner": True} if standing.owner else {"owner": False, "because": standing.because}
    return JSONResponse(told, 403 if standing.refused else 200, SAID)
