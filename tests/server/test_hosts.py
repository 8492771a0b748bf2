"""Every form in which an address to listen on can be given, and whose pages may show this one in a
frame.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from pathlib import Path

import gradio as gr
import httpx
import pytest

from app_process import free_port
from dmtd_demo.errors import UserError
from dmtd_demo.server.address import bracketed, check_address, is_loopback
from dmtd_demo.server.headers import frames, policy
from dmtd_demo.server.trust import Trust
from dmtd_demo.ui.serve import Place, serve


def link_local() -> str | None:
    """An address of this machine that holds on one of its links alone, with its zone."""
    table = Path("/proc/net/if_inet6")
    for line in table.read_text().splitlines() if table.exists() else []:
        address, *_, name = line.split()
        if address.startswith("fe80"):
            groups = ":".join(address[i : i + 4] for i in range(0, 32, 4))
            return f"{groups}%{name}"
    return None


def forms() -> list[str]:
    named = ["127.0.0.1", "localhost", "0.0.0.0", socket.gethostname()]
    if socket.has_ipv6 and Path("/proc/net/if_inet6").exists():
        named += ["::1", "[::1]", "::", "[::]", *filter(None, [link_local()])]
    return named


@pytest.mark.parametrize("host", forms())
def test_the_page_comes_at(
    host: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY", "FORWARDED_ALLOW_IPS", "GRADIO_RUN_HISTORY"):
        monkeypatch.setenv(name, os.environ.get(name, ""))  # so that they are put back
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    port = free_port()
    check_address(host, port)
    with gr.Blocks() as page:
        gr.Textbox()
    trust = Trust.of(host, share=False)
    failed: list[BaseException] = []

    def run() -> None:
        try:
            serve(page, Place(host=host, port=port), trust)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    deadline = time.monotonic() + 60
    while not opened and thread.is_alive() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert opened and not failed, failed
    told = httpx.get(f"{opened[0]}me", trust_env=False).json()
    outside = not is_loopback(host) and host.strip("[]") not in ("0.0.0.0", "::")
    assert told["owner"] is not outside, told
    token = {"Cookie": f"dmtd-owner-{port}={trust.token}"}
    assert httpx.get(f"{opened[0]}me", headers=token, trust_env=False).json() == {"owner": True}
    assert f"?token={trust.token}" in capfd.readouterr().out
    page.close()
    thread.join(30)
    assert not thread.is_alive()


def test_what_is_no_address_is_one_sentence() -> None:
    for host in ("no.such.host.invalid", "999.1.1.1", "::g", "fe80::1%nowhere", "[", "a b"):
        with pytest.raises(UserError, match="needs a free port to listen on") as caught:
            check_address(host, 0)
        assert "\n" not in str(caught.value)


def test_brackets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRADIO_SERVER_NAME", raising=False)
    assert (
        bracketed("::1") == bracketed("[::1]") == "[::1]"
        and bracketed("fe80::1%x") == "[fe80::1%x]"
    )
    assert bracketed("localhost") == "localhost" and bracketed(None) is None
    monkeypatch.setenv("GRADIO_SERVER_NAME", "::")
    assert bracketed(None) == "[::]"


def test_whose_pages_show_this_one_in_a_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    def said() -> str:
        return policy(b"").rpartition("frame-ancestors ")[2]

    monkeypatch.delenv("SPACE_ID", raising=False)
    monkeypatch.delenv("DMTD_FRAMES", raising=False)
    assert said() == "'self'"
    monkeypatch.setenv(
        "DMTD_FRAMES", "https://example.org, http://localhost:3000 https://*.example.net"
    )
    assert said() == "'self' https://example.org http://localhost:3000 https://*.example.net"
    monkeypatch.setenv("SPACE_ID", "you/x")
    assert said().split()[:3] == ["'self'", "https://huggingface.co", "https://*.huggingface.co"]
    assert "https://*.hf.space" in said() and said().endswith("https://*.example.net")
    for wrong in ("example.org", "*", "https://a; script-src *", "https://a/b", "javascript:x"):
        monkeypatch.setenv("DMTD_FRAMES", wrong)
        with pytest.raises(UserError, match="DMTD_FRAMES needs origins"):
            frames()
