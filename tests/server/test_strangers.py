"""A stranger at the page of somebody's own machine, by a front that says that it is one."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import gradio as gr
import httpx
import pytest
from gradio.routes import App

from app_process import ROOT, Visitor, running_app

STRANGER = {"X-Forwarded-For": "203.0.113.9"}
TEXT = (ROOT / "docs/reliability.md").read_text(encoding="utf-8")
ROUTES, EVENTS = TEXT.split("## What a stranger gets")[1].split("## ")[0].split("| event |")
# of each route: its method, its path, what a stranger gets
TABLE = [
    (*route.split(" "), int(gets))
    for row in ROUTES.splitlines()
    if row.startswith("| `")
    for named, gets, *_ in [row.split(" | ")]
    for route in re.findall(r"`([A-Z]+ /[^`]*)`", named)
]
NAMED = set(re.findall(r"`(\w+)`", "".join(line.split(" | ")[0] for line in EVENTS.splitlines())))
FILE = {"meta": {"_type": "gradio.FileData"}}


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """As it comes, under a path of a site, where the environment names proxies that are not there."""
    folder = tmp_path_factory.mktemp("app")
    nowhere = "http://127.0.0.1:9"
    proxies = {"http_proxy": nowhere, "https_proxy": nowhere, "all_proxy": "socks5://127.0.0.1:9"}
    with running_app(folder, GRADIO_ROOT_PATH="/demo", **proxies) as (url, _):
        yield url, folder


@pytest.fixture
def stranger(app: tuple[str, Path]) -> Iterator[Visitor]:
    visitor = Visitor(app[0], STRANGER)
    yield visitor
    visitor.http.close()


@pytest.fixture
def owner(app: tuple[str, Path]) -> Iterator[Visitor]:
    visitor = Visitor(app[0])
    yield visitor
    visitor.http.close()


def ask(visitor: Visitor, method: str, path: str, **more: Any) -> tuple[int, str]:
    """The status, and the beginning of the answer, which may have no end."""
    with visitor.http.stream(method, f"{visitor.url}{path}", **more) as answer:
        return answer.status_code, next(answer.iter_text(), "")


def routes(found: list[Any]) -> Iterator[tuple[str, str]]:
    for route in found:
        if getattr(route, "path", None) is not None:
            yield from ((method, route.path.rstrip("/") or "/") for method in route.methods)
        else:  # a router in a later FastAPI
            yield from routes(route.original_router.routes)


def test_every_route_is_in_the_table() -> None:
    with gr.Blocks() as blocks:
        pass
    there, named = set(routes(App.create_app(blocks).routes)), {row[:2] for row in TABLE}
    assert len(there) > 50 and not there - named, "what is new is closed, and to be named"


@pytest.mark.parametrize("method,path,status", TABLE, ids=lambda part: str(part))
def test_a_route(stranger: Visitor, owner: Visitor, method: str, path: str, status: int) -> None:
    [_, asset] = re.findall(
        r'(?:src|href)="\./(assets/[^"]+)"', stranger.http.get(stranger.url).text
    )[:2]
    there = {
        "/assets/{path:path}": f"/{asset}",
        "/static/{path:path}": "/static/img/logo.svg",
        "/gradio_api/queue/data": "/gradio_api/queue/data?session_hash=nobodys",
    }
    asked = there.get(path) or re.sub(r"\{\w+(:\w+)?\}", "x", path)
    event = {"fn_index": stranger.functions["show_panels"]["id"], "data": [3]}
    body = {"json": {**event, "session_hash": "x", "event_id": "x"}} if method == "POST" else {}
    got, said = ask(stranger, method, asked, **body)
    assert got == status and str(ROOT) not in said and "Traceback" not in said
    if status == 404 and path != "/class":
        assert said == ("" if method == "HEAD" else '{"detail":"Not Found"}')
        assert ask(owner, method, asked, **body) == (got, said), "closed to everybody, alike"
    elif path == "/me":
        assert json.loads(said)["owner"] is False
        assert ask(owner, method, path) == (200, '{"owner":true}')


def test_every_event_is_in_the_table(stranger: Visitor) -> None:
    config = stranger.http.get(f"{stranger.url}/config").json()
    served = {each["api_name"] for each in config["dependencies"] if each["backend_fn"]}
    names = {re.sub(r"_\d+$", "", name) for name in served if isinstance(name, str)}
    assert names - NAMED == set() and {"race", "train", "prepare"} <= names


def test_the_page_says_no_path_of_this_machine(stranger: Visitor) -> None:
    for path in ("/", "/config", "/gradio_api/info"):
        text = stranger.http.get(stranger.url + path).text
        assert str(ROOT) not in text and str(Path.home()) + "/" not in text


def test_paths_get_the_same_answer_whether_they_are_there_or_not(
    stranger: Visitor, app: tuple[str, Path]
) -> None:
    paths = [str(app[1]), str(app[1] / "app.log"), "/no/where", "/etc/passwd", "~", "a/b", ""]
    for name, values in (
        ("look", ["another", "{}"]),
        ("explain", ["another", "none", "{}"]),
        ("prepare", ["another", "none", "{}"]),
        ("look", ["{}", ""]),
    ):
        said = set()
        for path in paths:
            given = [path if value == "{}" else value for value in values]
            answer = str(stranger.call(name, given)[0])
            assert "runs the models of its list" in answer
            said.add(answer.replace(repr(path).replace("'", "&#x27;"), "…"))
        assert len(said) == 1, said


def test_rights_are_asked_where_the_work_is_done(stranger: Visitor, owner: Visitor) -> None:
    for visitor, words in ((stranger, "not open to this request"), (owner, "came with")):
        assert words in visitor.call("put_back", ["classroom"])[0].lower()
    trained = stranger.call("train", ["classroom", "clp", 20, 1])
    assert "x-forwarded-for" in trained[0] and trained[2] is None
    # the sign counts in the request of the event, whatever the page came by
    owner.http.headers.update(STRANGER)
    owner.session = "another"
    assert "not open to this request" in owner.call("put_back", ["classroom"])[0]


def test_another_sites_page_has_no_rights_of_the_owners(owner: Visitor) -> None:
    for headers in ({"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
        visitor = Visitor(owner.url, headers)
        assert "another site" in visitor.call("put_back", ["classroom"])[0]


def test_the_owners_session_is_the_owners(owner: Visitor, stranger: Visitor) -> None:
    owner.ask("Hello", max_tokens=2, panels=2)
    stranger.session = owner.session
    event = {"fn_index": stranger.functions["show_panels"]["id"], "data": [3]}
    for method, path, body in (
        ("GET", f"/gradio_api/queue/data?session_hash={owner.session}", None),
        ("GET", f"/gradio_api/heartbeat/{owner.session}", None),
        ("POST", "/gradio_api/cancel", {"session_hash": owner.session, "fn_index": 0}),
        ("POST", "/gradio_api/run/x", {"session_hash": owner.session, **event}),
    ):
        assert ask(stranger, method, path, json=body)[0] == 403
    with pytest.raises(httpx.HTTPStatusError, match="403"):
        stranger.stop("x")
    assert owner.lines()[-1]["status"] == "done"


def test_nobody_passes_by_the_queue(stranger: Visitor) -> None:
    asked = json.dumps(["run", "", stranger.values])
    body = {"fn_index": stranger.race["id"], "data": [asked, None], "session_hash": "x"}
    status, said = ask(stranger, "POST", "/gradio_api/run/race", json=body)
    assert status == 404 and "join the queue" in said


class Elsewhere(BaseHTTPRequestHandler):
    asked: list[str] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(200)
        self.end_headers()

    do_HEAD = do_GET


def test_no_value_of_an_event_makes_the_server_read_or_fetch(
    stranger: Visitor, app: tuple[str, Path]
) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/x"
    before = sorted(app[1].rglob("*"))
    named = ("explain", "look", "prepare", "show_panels")
    for path in (address, "/etc/passwd", "/no/where", "app.py"):
        for value in ({"path": path, **FILE}, [{"path": path, "url": address, **FILE}], {"a": 1}):
            for name in named:
                function = stranger.functions[name]
                body = {"fn_index": function["id"], "session_hash": "x"}
                data = ["classroom", "none", value][-len(function["inputs"]) :]
                for route in ("run/predict", "queue/join"):
                    status, said = ask(
                        stranger, "POST", f"/gradio_api/{route}", json={**body, "data": data}
                    )
                    assert status == 400 and "as its script does" in said
    assert not Elsewhere.asked and sorted(app[1].rglob("*")) == before
    server.shutdown()


@pytest.mark.parametrize(
    "body,status",
    [
        (b"", 400),
        (b"{", 400),
        (b"[" * 100_000, 400),
        (b"[]", 400),
        (b'{"data": [], "batched": true, "fn_index": 0}', 400),
        (b'{"data": [], "fn_index": 10000, "session_hash": "x"}', 400),
        (b'{"data": [], "fn_index": "race", "session_hash": "x"}', 400),
        (b'{"data": [], "session_hash": "x"}', 400),
        (b'{"data": {"0": "x"}, "fn_index": 0, "session_hash": "x"}', 400),
        (b'{"data": ' + b"[" + b"1," * 99 + b"1]" + b', "fn_index": 0, "session_hash": "x"}', 400),
        (b'{"data": ["' + b"x" * (4 << 20) + b'"]}', 413),
    ],
    ids=lambda part: str(len(part)) if isinstance(part, bytes) else str(part),
)
def test_an_odd_request_is_told_so(
    stranger: Visitor, app: tuple[str, Path], body: bytes, status: int
) -> None:
    stranger.http.headers["Content-Type"] = "application/json"
    got, said = ask(stranger, "POST", "/gradio_api/run/predict", content=body)
    assert got == status and json.loads(said)["detail"]
    assert "Traceback" not in (app[1] / "app.log").read_text()


def test_gradios_own_client_finds_nothing_to_call(app: tuple[str, Path]) -> None:
    gradio_client = pytest.importorskip("gradio_client")
    client = gradio_client.Client(app[0], headers=STRANGER, verbose=False)
    assert client.view_api(return_format="dict") == {
        "named_endpoints": {},
        "unnamed_endpoints": {},
    }
    with pytest.raises(ValueError):
        client.predict("classroom", "clp", 20, api_name="/train")
    client.close()


def test_the_token_that_the_console_shows(app: tuple[str, Path]) -> None:
    url, log = app[0], app[1] / "app.log"
    [token] = re.findall(r"\?token=(\S+)", log.read_text())
    with httpx.Client(base_url=f"{url}demo/", headers=STRANGER, verify=False) as http:
        assert http.get("me").json()["owner"] is False
        assert http.get("?token=wrong").status_code == 403
        came = http.get(f"?prompt=Hi&token={token}", follow_redirects=True)
        assert str(came.url) == f"{url}demo/?prompt=Hi" and token not in came.text
        assert came.history[0].headers["referrer-policy"] == "no-referrer"
        assert http.get("me").json() == {"owner": True}
        assert http.get("me", headers={"Origin": "http://evil.example"}).json()["owner"] is False
        cookie = "; ".join(f"{name}={value}" for name, value in http.cookies.items())
    visitor = Visitor(url, {**STRANGER, "Cookie": cookie})
    assert "came with" in visitor.call("put_back", ["classroom"])[0]
    assert log.read_text().count(token) == 1, "the console shows it once, and no log keeps it"


def test_a_foreign_name_that_leads_here_is_refused(app: tuple[str, Path]) -> None:
    port = app[0].rstrip("/").rpartition(":")[2]
    for host in ("evil.example", f"evil.example:{port}", f"localhost.evil:{port}", ""):
        for path in ("", "config", "me", "gradio_api/queue/data?session_hash=x", "assets/x.js"):
            answer = httpx.get(app[0] + path, headers={"Host": host}, verify=False)
            assert answer.status_code == 403 and "localhost" in answer.text
    mine = httpx.get(f"{app[0]}me", headers={"Host": f"localhost:{port}"}, verify=False)
    assert mine.json() == {"owner": True}


def test_the_page_under_a_path_of_a_site(app: tuple[str, Path]) -> None:
    for under in ("demo/", ""):  # a front hands the path on, or takes it away
        page = httpx.get(app[0] + under, headers={"X-Forwarded-Host": "site.example"}, verify=False)
        assert 'href="./manifest.json"' in page.text and '"/manifest.json"' not in page.text
        assert '"root":"http://site.example/demo"' in page.text.replace(": ", ":")
        manifest = httpx.get(f"{app[0]}{under}manifest.json", verify=False).json()
        icon = httpx.get(f"{app[0]}{under}{manifest['icons'][0]['src']}", verify=False)
        assert (
            icon.headers["content-type"].startswith("image/svg") and manifest["start_url"] == "./"
        )
