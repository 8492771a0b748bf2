"""Who is the owner of the page, and what the door lets in."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmtd_demo.errors import UserError
from dmtd_demo.server.door import Door
from dmtd_demo.server.trust import OWNER, STATE, Standing, Trust, split_host, standing_of

PORT = 7860
TOKEN = "t0ken-of-this-test"
TRUST = Trust(token=TOKEN)
KEPT = ("cookie", f"dmtd-owner-{PORT}={TOKEN}")


def asked(
    *headers: tuple[str, str],
    host: str | None = f"localhost:{PORT}",
    client: tuple[str, int] | None = ("127.0.0.1", 50_000),
    **more: Any,
) -> dict[str, Any]:
    """An ASGI request as uvicorn would hand it over."""
    given = [("host", host)] * (host is not None) + list(headers)
    return {
        "type": "http",
        "http_version": "1.1",
        "method": "GET",
        "path": "/",
        "query_string": b"",
        "scheme": "http",
        "client": client,
        "server": ("127.0.0.1", PORT),
        "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in given],
        **more,
    }


def judged(*headers: tuple[str, str], trust: Trust = TRUST, **more: Any) -> Standing:
    return trust.judge(asked(*headers, **more))


@pytest.mark.parametrize(
    "host", ["localhost:7860", "LocalHost:7860", "127.0.0.1:7860", "[::1]:7860"]
)
@pytest.mark.parametrize("peer", ["127.0.0.1", "::1", "::ffff:127.0.0.1", "0:0:0:0:0:0:0:1"])
def test_who_asks_straight_from_this_machine_is_the_owner(host: str, peer: str) -> None:
    assert judged(host=host, client=(peer, 1)) == OWNER


def test_the_owners_own_browser_and_gradios_own_clients_are_nothing_in_between() -> None:
    browser = [
        ("connection", "keep-alive"),
        ("sec-ch-ua-platform", '"Linux"'),
        ("origin", f"http://localhost:{PORT}"),
        ("sec-fetch-site", "same-origin"),
        ("referer", f"http://localhost:{PORT}/"),
        ("accept-language", "en"),
        ("x-gradio-user", "app"),
        ("priority", "u=1"),
        ("dnt", "1"),
    ]
    assert judged(*browser) == OWNER
    assert judged(("x-hf-authorization", "Bearer x"), ("user-agent", "gradio_client/2")) == OWNER
    assert judged(("sec-fetch-site", "none"), ("upgrade-insecure-requests", "1")) == OWNER


SIGNS = (
    "X-Forwarded-For X-Forwarded-Host X-Forwarded-Proto X-Forwarded-Port X-Forwarded-Prefix"
    " X-Forwarded-Server X-Real-IP Forwarded Via CF-Connecting-IP CF-Ray CF-Visitor True-Client-IP"
    " X-Client-IP X-Cluster-Client-IP Fastly-Client-IP Fly-Client-IP X-Original-Forwarded-For"
    " X-Envoy-External-Address X-Amzn-Trace-Id X-ARR-SSL X-Original-URL X-Scheme X-Request-Id"
    " X-Vercel-Id X-Azure-ClientIP CDN-Loop Tailscale-User-Login Ngrok-Agent-Ips Client-IP"
    " Forwarded-For Max-Forwards X-Cloud-Trace-Context X-Gradio-Server Remote-User Front-End-Https"
    " Proxy-Connection X-Whatever"
).split()


@pytest.mark.parametrize("name", SIGNS)
def test_every_sign_of_having_been_forwarded_makes_a_stranger(name: str) -> None:
    for value in ("203.0.113.9", "127.0.0.1", ""):
        for written in (name, name.lower(), name.upper(), name.replace("-", "_")):
            standing = judged((written, value))
            assert not standing.owner and not standing.refused
            assert written.lower() in standing.because
        assert not judged((name, value), (name, "127.0.0.1")).owner


@given(st.lists(st.sampled_from([(name, "127.0.0.1") for name in SIGNS]), min_size=1, max_size=4))
def test_no_further_header_takes_a_sign_back(headers: list[tuple[str, str]]) -> None:
    assert not judged(*headers, ("origin", f"http://localhost:{PORT}")).owner
    assert judged(*headers, KEPT).owner, "but the token does"


def test_a_proxy_that_is_told_no_better_speaks_an_old_http() -> None:
    assert "HTTP/1.0" in judged(host=f"127.0.0.1:{PORT}", http_version="1.0").because


@pytest.mark.parametrize(
    "peer",
    [
        "203.0.113.9",
        "192.0.2.2",
        "127.0.0.2",
        "127.0.0.6",
        "::ffff:192.0.2.2",
        "fe80::1%eth0",
        "",
        "/run/x.sock",
    ],
)
def test_who_does_not_ask_from_here_is_a_stranger(peer: str) -> None:
    standing = judged(client=(peer, 1))
    assert not standing.owner and not standing.refused and standing.because
    assert judged(KEPT, client=(peer, 1)).owner


def test_a_unix_socket_says_nobodys_address() -> None:
    assert not judged(client=None).owner
    assert not judged(client=None, server=("/run/page.sock", None)).owner


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example evil.example:7860 localhost.evil:7860 localhost.evil.example".split()),
        *("127.0.0.1.nip.io:7860 127.0.0.1.evil:80 my-localhost:7860 localhost.:7860".split()),
        *("localhost@evil:7860 localhost:7860@evil localhost:x localhost/evil:7860 [::1".split()),
        *("localhost:7860,evil evil\\localhost:7860 ::1 localhost:786000".split()),
        "",
    ],
)
def test_a_foreign_name_that_leads_here_is_refused(host: str) -> None:
    standing = judged(host=host)
    assert standing.refused and not standing.owner and "localhost:7860" in standing.because


def test_no_host_and_two_hosts_are_refused() -> None:
    assert judged(host=None).refused
    assert judged(("host", "evil.example")).refused
    assert judged(("Host", f"localhost:{PORT}")).refused


def test_a_page_of_a_foreign_name_cannot_pass_itself_off_as_a_front() -> None:
    sign = ("x-forwarded-for", "203.0.113.9")
    assert judged(sign, host=f"evil.example:{PORT}").refused
    front = judged(sign, host="demo.trycloudflare.com")
    assert not front.refused and not front.owner, (
        "a tunnel has a port of its own, and strangers come by it"
    )


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:80", "127.0.0.1:7988", "192.0.2.2:7860", "[::2]:7860"]
)
def test_another_port_or_address_means_that_something_lies_between(host: str) -> None:
    standing = judged(host=host)
    assert not standing.owner and not standing.refused and standing.because
    assert judged(host="localhost", server=("127.0.0.1", 80)).owner


@pytest.mark.parametrize(
    "headers",
    [
        [("origin", "http://evil.example")],
        [("origin", "null")],
        [("origin", "")],
        [("origin", "http://localhost:9999")],
        [("origin", f"http://localhost:{PORT}.evil.example")],
        [("origin", f"http://evil.example#//localhost:{PORT}")],
        [("origin", "http://[")],
        [("sec-fetch-site", "cross-site")],
        [("sec-fetch-site", "same-site")],
        [("sec-fetch-site", "cross-site"), ("origin", f"http://localhost:{PORT}")],
        [("sec-fetch-site", "same-origin"), ("sec-fetch-site", "cross-site")],
    ],
)
def test_a_page_of_another_site_in_the_owners_browser_is_not_the_owner(
    headers: list[tuple[str, str]],
) -> None:
    for kept in ([], [KEPT]):
        standing = judged(*headers, *kept)
        assert not standing.owner and "another site" in standing.because


def test_the_token_behind_a_front() -> None:
    front = [("x-forwarded-for", "203.0.113.9"), ("x-forwarded-host", "demo.example")]
    browser = [("origin", "https://demo.example")]
    for host in ("demo.example", "demo.example:443", f"127.0.0.1:{PORT}"):
        assert judged(*front, *browser, KEPT, host=host).owner
        assert not judged(*front, *browser, host=host).owner
        assert not judged(*front, ("origin", "https://other.example"), KEPT, host=host).owner
    assert judged(("cookie", f"a=b; {KEPT[1]}; c"), client=("203.0.113.9", 1)).owner
    for wrong in (f"dmtd-owner-{PORT}=", f"dmtd-owner-{PORT}={TOKEN}x", f"dmtd-owner-1={TOKEN}",
                  f"dmtd-owner-{PORT}={TOKEN[:-1]}", TOKEN, f"dmtd-owner-{PORT}=ü"):  # fmt: skip
        assert not judged(("cookie", wrong), client=("203.0.113.9", 1)).owner
    assert not judged(("cookie", f"dmtd-owner-{PORT}=None"), trust=Trust(False, None)).owner


def test_the_token_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []
    monkeypatch.setattr(
        "dmtd_demo.server.trust.hmac.compare_digest", lambda *both: compared.append(both) or False
    )
    assert not TRUST.is_token(TOKEN) and compared == [(TOKEN.encode(), TOKEN.encode())]


def test_where_loopback_makes_no_owner() -> None:
    hidden = Trust(loopback=False, token=TOKEN)
    assert not judged(trust=hidden).owner and judged(KEPT, trust=hidden).owner
    assert not judged(trust=hidden, host="demo.hf.space").refused


def test_the_rules_of_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SPACE_ID", "DMTD_OWNER"):
        monkeypatch.delenv(name, raising=False)
    own = Trust.of(None, share=False)
    assert (
        own.loopback
        and own.token
        and len(own.token) >= 32
        and own.token != Trust.of(None, False).token
    )
    assert not Trust.of(None, share=True).loopback and Trust.of("0.0.0.0", False).loopback
    named = Trust.of("[::1%lo]", False) and Trust.of("MyBox", False, "192.0.2.2")
    assert judged(trust=named, host="mybox:7860").owner
    lecturer = judged(trust=named, host="192.0.2.2:7860", client=("192.0.2.2", 1))
    assert lecturer.owner and not judged(trust=named, client=("192.0.2.3", 1)).owner
    foreign = judged(trust=named, host="evil:7860", client=("192.0.2.2", 1))
    assert not foreign.owner and not foreign.refused, "as whoever is in the network"
    monkeypatch.setenv("DMTD_OWNER", "token")
    assert not Trust.of(None, False).loopback
    monkeypatch.setenv("DMTD_OWNER", "me")
    with pytest.raises(UserError, match="DMTD_OWNER needs loopback.*'me'"):
        Trust.of(None, False)
    monkeypatch.setenv("DMTD_OWNER", "")
    monkeypatch.setenv("SPACE_ID", "you/x")
    assert Trust.of(None, False) == Trust(False, None)


@given(st.text(max_size=30), st.integers(-5, 10**6))
def test_a_host_header_of_any_kind_is_split(text: str, port: int) -> None:
    name, found = split_host(f"{text}:{port}")
    assert isinstance(name, str) and found >= 0
    if name == "localhost":
        assert text.lower() == "localhost" and found == port


@given(
    st.lists(st.tuples(st.text("abcx-", min_size=1, max_size=9), st.text(max_size=9)), max_size=5),
    st.text(max_size=12),
)
def test_no_request_of_any_kind_is_more_than_a_judgement(
    headers: list[tuple[str, str]], host: str
) -> None:
    written = [(n, v.encode("utf-8").decode("latin-1")) for n, v in headers]
    standing = judged(*written, host=host.encode("utf-8").decode("latin-1"))
    assert standing.owner is False and standing.because


def test_an_event_that_did_not_come_by_the_door_is_nobodys() -> None:
    class Wrapped:
        def __getattr__(self, name: str) -> Any:
            raise AttributeError(name)

    for request in (None, [], {"state": {STATE: OWNER}}, Wrapped()):
        assert not standing_of(request).owner


# The door itself, before an application that says what it was given.


async def _inside(scope: Any, receive: Any, send: Any) -> None:
    told = {"owner": scope["state"][STATE].owner, "path": scope["path"]}
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps(told).encode()})


def answer(
    method: str,
    path: str,
    client: str = "127.0.0.1",
    door: Door | None = None,
    inside: Any = _inside,
    **settings: Any,
) -> httpx.Response:
    door = door or Door(inside, TRUST, {"/plotly.min.js": Path(__file__)}, "A page")
    transport = httpx.ASGITransport(door, client=(client, 1))  # type: ignore[arg-type]

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(
            transport=transport, base_url=f"http://localhost:{PORT}"
        ) as http:
            return await http.request(method, path, **settings)

    return asyncio.run(ask())


FORWARDED = {"x-forwarded-for": "203.0.113.9"}


def test_me() -> None:
    assert answer("GET", "/me").json() == {"owner": True}
    told = answer("GET", "/me", headers=FORWARDED)
    assert told.status_code == 200 and told.json()["owner"] is False
    assert (
        "x-forwarded-for" in told.json()["because"] and told.headers["cache-control"] == "no-store"
    )
    refused = answer("GET", "/me", headers={"host": "evil.example"})
    assert refused.status_code == 403 and refused.json()["owner"] is False
    assert answer("POST", "/me").status_code == 404


def test_what_is_refused_gets_a_sentence_whatever_it_asks() -> None:
    for method, path in (("GET", "/"), ("POST", "/gradio_api/queue/join"), ("GET", "/?token=x")):
        told = answer(method, path, headers={"host": "evil.example:7860"})
        assert told.status_code == 403 and told.text.startswith("Refused: it asks for evil.example")


def test_the_token_goes_from_the_address_into_a_cookie() -> None:
    told = answer("GET", f"/?prompt=Hi+there&token={TOKEN}&panel=ar", headers=FORWARDED)
    assert told.status_code == 303 and told.headers["location"] == "./?prompt=Hi+there&panel=ar"
    cookie = told.headers["set-cookie"]
    assert cookie.startswith(KEPT[1]) and "HttpOnly" in cookie and "SameSite=Strict" in cookie
    assert "Secure" not in cookie and "Path=/;" in cookie
    assert told.headers["referrer-policy"] == "no-referrer"
    assert told.headers["cache-control"] == "no-store" and TOKEN not in told.text
    https = answer("GET", f"/?token={TOKEN}", headers={"x-forwarded-proto": "https"})
    assert https.headers["location"] == "./" and https.headers["set-cookie"].endswith("; Secure")
    for wrong in ("", "x", TOKEN[:-1], TOKEN + "%00", "%FF"):
        told = answer("GET", f"/?token={wrong}")
        assert (
            told.status_code == 403 and "set-cookie" not in told.headers and TOKEN not in told.text
        )
    kept = dict([KEPT]) | FORWARDED
    assert answer("GET", "/me", headers=kept).json() == {"owner": True}


CLOSED = (
    "/gradio_api/upload /gradio_api/component_server /gradio_api/process_recording"
    " /gradio_api/file=/etc/passwd /gradio_api/file=/none /gradio_api/file/etc/passwd"
    " /gradio_api/proxy=http://x/ /monitoring /monitoring/summary /monitoring/x /docs"
    " /gradio_api/deep_link /gradio_api/vibe-code/ /openapi.json /login /logout"
    " /gradio_api/a/later/route /gradio_api/stream/x /gradio_api/call/x /gradio_api/api/x"
    " /gradio_api/run/x/y /gradio_api/heartbeat/x/y /%2e%2e/config /config/x /CONFIG"
).split()


@pytest.mark.parametrize("path", CLOSED)
def test_what_the_page_does_not_need_is_closed_to_everybody_in_the_same_words(path: str) -> None:
    for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE"):
        for headers in ({}, FORWARDED):
            told = answer(method, path, headers=headers)
            said = "" if method == "HEAD" else '{"detail":"Not Found"}'
            assert (told.status_code, told.text) == (404, said)


def test_what_the_page_needs_is_open_and_judged() -> None:
    for path in ("/", "/config", "/assets/a.js", "/static/x.svg", "/gradio_api/queue/data",
                 "/gradio_api/heartbeat/x", "/theme.css", "/class", "/class/files/1"):  # fmt: skip
        assert answer("GET", path).json() == {"owner": True, "path": path}
        assert answer("GET", path, headers=FORWARDED).json()["owner"] is False
        assert answer("POST", path).status_code == 404
    for path in ("/gradio_api/queue/join", "/gradio_api/run/predict", "/gradio_api/cancel"):
        told = answer("POST", path, client="203.0.113.9", json={"data": ["x", [1, None]]})
        assert told.json() == {"owner": False, "path": path}
        assert answer("GET", path).status_code == 404
    assert answer("GET", "/plotly.min.js").content == Path(__file__).read_bytes()


def test_under_a_path_of_the_site() -> None:
    """As GRADIO_ROOT_PATH has it: FastAPI says the root path, and the front may strip it or not."""
    seen: list[Any] = []

    async def run(path: str, query: bytes = b"") -> list[Any]:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        scope = asked(path=path, root_path="/demo", query_string=query)
        await Door(_inside, TRUST, {}, "A page")(scope, None, send)  # type: ignore[arg-type]
        return sent

    for path in ("/demo/me", "/me"):
        seen.append(json.loads(asyncio.run(run(path))[1]["body"]))
    assert seen == [{"owner": True}] * 2
    start = asyncio.run(run("/demo/", f"token={TOKEN}".encode()))[0]
    assert (b"location", b"./") in start["headers"]
    assert any(n == b"set-cookie" and b"Path=/demo;" in v for n, v in start["headers"])
    assert asyncio.run(run("/demo/gradio_api/upload"))[0]["status"] == 404
    assert asyncio.run(run("/demos/me"))[0]["status"] == 404


def test_the_manifest_holds_under_any_path() -> None:
    told = answer("GET", "/manifest.json")
    assert told.headers["content-type"] == "application/manifest+json"
    facts = told.json()
    assert facts["name"] == "A page" and facts["start_url"] == "./"
    assert facts["icons"][0]["src"] == "./pwa_icon"


def test_there_are_no_websockets() -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = asked(type="websocket", path="/gradio_api/queue/join")
    asyncio.run(Door(_inside, TRUST, {}, "A page")(scope, receive, send))
    assert [message["type"] for message in sent] == ["websocket.close"]


def test_an_event_is_read_before_gradio_reads_it() -> None:
    for body, status in (
        ({"data": ["text", 1, None, ["a", ["b"]]], "event_data": {"index": 1}}, 200),
        ({"data": [{"path": "/etc/passwd"}]}, 400),
        ({"data": [[["a", {}]]]}, 400),
        ({"data": {}}, 400),
        ({"data": [], "batched": True}, 400),
        ([], 400),
        ({"data": ["x" * (4 << 20)]}, 413),
    ):
        told = answer("POST", "/gradio_api/queue/join", json=body)
        assert told.status_code == status, told.text
        assert status == 200 or told.json()["detail"]


def test_an_event_is_one_of_the_pages_with_as_many_values_as_it_takes() -> None:
    door = Door(_inside, TRUST, {}, "A page", {3: 2, 5: 0})
    for number, values, status in (
        (3, ["a", None], 200),
        (5, [], 200),
        (3, ["a"], 400),
        (3, ["a"] * 3, 400),
        (4, [], 400),
        ("3", ["a", 1], 400),
        (True, [], 400),
        (None, [], 400),
    ):
        body = {"fn_index": number, "data": values}
        for path in ("queue/join", "run/predict", "run/race/"):
            told = answer("POST", f"/gradio_api/{path}", json=body, door=door)
            assert told.status_code == status, (body, told.text)
    # no event at all
    assert answer("POST", "/gradio_api/cancel", json={}, door=door).status_code == 200


def test_halves_of_characters_are_no_text() -> None:
    async def saying(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": (await receive())["body"]})

    sent = json.dumps({"data": ["half \ud83d", "whole \U0001f642", "\\ud83d"]})
    got = answer("POST", "/gradio_api/run/x", content=sent, inside=saying)
    assert got.json()["data"] == ["half \ufffd", "whole \U0001f642", "\\ud83d"]


def test_what_gradio_fails_at_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    async def failing(scope: Any, receive: Any, send: Any) -> None:
        raise KeyError(7)

    told = answer("POST", "/gradio_api/run/x", json={"data": []}, inside=failing)
    assert told.status_code == 500 and told.json()["detail"]
    assert [record.getMessage() for record in caplog.records] == [
        "POST /gradio_api/run/x: KeyError: 7"
    ]


def test_the_owners_sessions_are_nobody_elses() -> None:
    door = Door(_inside, TRUST, {}, "A page")
    event = {"data": [], "session_hash": "mine"}
    assert answer("GET", "/gradio_api/queue/data?session_hash=theirs", door=door).status_code == 200
    assert answer("POST", "/gradio_api/queue/join", json=event, door=door).status_code == 200
    for method, path, body in (
        ("GET", "/gradio_api/queue/data?session_hash=mine", None),
        ("GET", "/gradio_api/queue/data?session_hash=x&session_hash=mine", None),
        ("GET", "/gradio_api/heartbeat/mine", None),
        ("GET", "/gradio_api/heartbeat/%6dine", None),
        ("POST", "/gradio_api/cancel", {"session_hash": "mine", "event_id": "x"}),
        ("POST", "/gradio_api/queue/join", event),
    ):
        more = {"json": body} if body else {}
        told = answer(method, path, headers=FORWARDED, door=door, **more)
        assert told.status_code == 403, (method, path)
        assert answer(method, path, door=door, **more).status_code == 200
    for number in range(3000):
        door._may_use(str(number), OWNER)
    assert len(door._owners) == 2000
