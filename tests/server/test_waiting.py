"""What the browser shows until the page is there, without a browser; tests/browser/test_start.py
sees it with one.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from app_process import free_port
from dmtd_demo.errors import UserError
from dmtd_demo.server import waiting
from dmtd_demo.server.waiting import STAGE, Waiting

ROOT = Path(__file__).resolve().parents[2]


def test_it_answers_as_no_page_yet_and_says_what_is_waited_for():
    port = free_port()
    server = Waiting("127.0.0.1", port, "some/<model> {x}")
    try:
        for path in ("/", "/?prompt=x", "/config"):
            answer = httpx.get(f"http://127.0.0.1:{port}{path}")
            assert (
                answer.status_code == 503
                and answer.headers["Retry-After"] == "1"
                and "late layers" in answer.text
            )
        assert httpx.head(f"http://127.0.0.1:{port}/").status_code == 503
        assert httpx.get(f"http://127.0.0.1:{port}{STAGE}").text.startswith("PyTorch")
        server.model()
        assert httpx.get(f"http://127.0.0.1:{port}{STAGE}").text.startswith(
            "some/<model> {x} is being loaded"
        )
        page = httpx.get(f"http://127.0.0.1:{port}/").text
        assert "some/&lt;model&gt; {x} is" in page and "<model>" not in page
        with pytest.raises(UserError, match=f"none of {port}"):
            Waiting("127.0.0.1", port, "another")
    finally:
        server.close()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/")
    Waiting("127.0.0.1", port, "the next").close()


def test_it_says_a_folder_by_its_name_and_not_where_it_lies(tmp_path: Path):
    (tmp_path / "mine").mkdir()
    server = Waiting("127.0.0.1", free_port(), str(tmp_path / "mine"))
    server.model()
    try:
        for path in ("", STAGE):
            text = httpx.get(f"http://127.0.0.1:{server.port}{path}").text
            assert "mine" in text and str(tmp_path) not in text
    finally:
        server.close()


def test_it_speaks_the_visitors_language():
    server = Waiting("127.0.0.1", free_port(), "classroom")
    try:
        for asked, language in (
            ("zh-CN,zh;q=0.9,en;q=0.8", "zh-CN"),
            ("en-GB", "en"),
            ("de", "en"),
            ("", "en"),
        ):
            page = httpx.get(
                f"http://127.0.0.1:{server.port}/", headers={"Accept-Language": asked}
            ).text
            assert f'lang="{language}"' in page and ("后层" in page) == (language == "zh-CN")
    finally:
        server.close()


def test_a_second_app_takes_the_next_port(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("GRADIO_SERVER_PORT", raising=False)
    first = free_port()
    monkeypatch.setattr(waiting, "PORTS", range(first, first + 20))
    servers = [Waiting(None, None, "classroom") for _ in range(2)]
    assert servers[0].port < servers[1].port < first + 20
    for server in servers:
        server.close()


def test_it_waits_for_no_package():
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import dmtd_demo.server.waiting; assert "
        f"not {{'torch', 'gradio', 'transformers', 'httpx', 'numpy'}} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
