"""Proxies that the environment names: loopback is never asked by them, and what httpx cannot use is
one sentence.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.request import getproxies, proxy_bypass

import httpx
import pytest

from dmtd_demo.errors import ModelError, UserError
from dmtd_demo.models import hub
from dmtd_demo.proxies import is_loopback_url, proxy_errors, straight_to_loopback
from dmtd_demo.race.remote_server import Remote, RemoteOptions
from dmtd_demo.race.settings import RaceSettings

NOWHERE = "http://127.0.0.1:9"
PROXIES = [
    {"http_proxy": NOWHERE},
    {"HTTP_PROXY": NOWHERE, "no_proxy": "example.org"},
    {"https_proxy": NOWHERE, "NO_PROXY": "example.org, .example.net"},
    {"all_proxy": "socks5://127.0.0.1:9"},
    {"ALL_PROXY": "socks5h://127.0.0.1:9", "no_proxy": ""},
    {"http_proxy": "not an address"},
    {"http_proxy": NOWHERE, "no_proxy": "*"},
]


@pytest.fixture(params=PROXIES, ids=str)
def proxied(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    for name in ("no_proxy", "NO_PROXY"):  # so that they are put back
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name, value in request.param.items():
        monkeypatch.setenv(name, value)
    return request.param


class Server(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        chunk = {"choices": [{"delta": {"content": "Hi"}, "finish_reason": "stop"}]}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n".encode())

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    running = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}"
    running.shutdown()


def answered(url: str) -> str:
    async def ask() -> str:
        remote = Remote(RemoteOptions(url=url, name="m"))
        parts = remote.answer([{"role": "user", "content": "Hi"}], RaceSettings(max_new_tokens=4))
        return "".join([getattr(part, "text", "") async for part in parts])

    return asyncio.run(ask())


def test_this_process_asks_itself(proxied: dict[str, str], server: str) -> None:
    before = {name: os.environ.get(name) for name in proxied if name.lower() != "no_proxy"}
    with straight_to_loopback():
        assert httpx.get(server).status_code == 200
    assert before == {name: os.environ.get(name) for name in before}
    for host in ("localhost", "127.0.0.1", "::1"):  # the window, the browser, a download
        assert proxy_bypass(host) or os.environ["no_proxy"] == "*"
    given = [
        each.strip() for each in proxied.get("no_proxy", proxied.get("NO_PROXY", "")).split(",")
    ]
    assert set(filter(None, given)) <= set(os.environ["no_proxy"].split(","))
    assert getproxies().keys() - {"no"}, "the others are asked by them as before"


def test_without_proxies_nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    with straight_to_loopback():
        pass
    assert "no_proxy" not in os.environ


def test_a_remote_panel_on_this_machine(proxied: dict[str, str], server: str) -> None:
    assert answered(server) == answered(server.replace("127.0.0.1", "localhost")) == "Hi"


def test_a_remote_panel_elsewhere_says_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    for proxy, words in (
        ("socks5://127.0.0.1:9", "socksio"),
        ("gopher://x", "http://proxy.example"),
        (NOWHERE, "cannot be reached"),
    ):
        monkeypatch.setenv("all_proxy", proxy)
        with pytest.raises(ModelError, match=words) as caught:
            answered("http://server.example")
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_addresses_in_no_proxy_may_have_brackets(
    monkeypatch: pytest.MonkeyPatch, server: str
) -> None:
    monkeypatch.setenv("http_proxy", NOWHERE)
    monkeypatch.setenv("NO_PROXY", "")
    for given in ("[::1]", "[::1]:80, example.org"):
        monkeypatch.setenv("no_proxy", given)
        with pytest.raises(ModelError, match="cannot be reached: All connection"):
            answered("http://server.example")
        monkeypatch.setenv("no_proxy", given)
        with straight_to_loopback():
            assert httpx.get(server).status_code == 200
        assert "[" not in os.environ["no_proxy"]
    monkeypatch.setenv("no_proxy", "日本.jp")
    with pytest.raises(ModelError, match="no_proxy needs names and addresses"):
        answered("http://server.example")


def test_the_hub_by_a_socks_proxy_is_one_sentence() -> None:
    error = ImportError("Using SOCKS proxy, but the 'socksio' package is not installed.")
    with pytest.raises(UserError, match="pip install socksio"), hub.in_words("a/b"):
        raise error
    with pytest.raises(ImportError, match="other"), proxy_errors():
        raise ImportError("other")
    with pytest.raises(UserError, match="mine"), proxy_errors():
        raise UserError("mine, of a proxy")


@pytest.mark.parametrize(
    "url,own",
    [
        ("http://localhost:8000", True),
        ("http://LOCALHOST.", True),
        ("https://x.localhost/v1", True),
        ("http://127.0.0.1:1", True),
        ("http://127.8.8.8", True),
        ("http://[::1]:8000", True),
        ("http://[::ffff:127.0.0.1]", True),
        ("http://localhost.example", False),
        ("http://127.0.0.1.example", False),
        ("http://192.0.2.1", False),
        ("http://example.org", False),
    ],
)
def test_what_this_machine_is_called(url: str, own: bool) -> None:
    assert is_loopback_url(url) == own
