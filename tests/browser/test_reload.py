"""A connection that breaks off in the middle of a race, and a tab that is loaded again: nothing that was shown is lost."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from race_page import LONG, RacePage

FULL = os.environ.get("DMTD_STRESS") == "full"


class Wire:
    """A TCP proxy before the page, whose connections can all be cut.

    cut_at: what the server has to say for that to happen, once the test has seen it drawn. away:
    seconds for which nobody answers then; None: what the server says is ended there as it should
    be, and nothing else is cut.
    """

    def __init__(self, upstream: str) -> None:
        parts = urlsplit(upstream)
        self.upstream = (parts.hostname, parts.port)
        self.cut_at: bytes | None = None
        self.away: float | None = 0.0
        self.drawn = threading.Event()
        self.cuts = 0
        self.until = 0.0
        self.open: list[socket.socket] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}/"
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                here, _ = self.listener.accept()
                if time.monotonic() < self.until:
                    here.close()
                    continue
                there = socket.create_connection(self.upstream)
                self.open += [here, there]
                for source, to, watched in ((here, there, False), (there, here, True)):
                    threading.Thread(
                        target=self.carry, args=(source, to, watched), daemon=True
                    ).start()

    def carry(self, source: socket.socket, to: socket.socket, watched: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                to.sendall(data)
                if watched and self.cut_at and self.cut_at in data:
                    self.cut_at = None
                    # the rest of it; and until it has been drawn
                    source.settimeout(0.05)
                    with contextlib.suppress(TimeoutError):
                        to.sendall(source.recv(65536))
                    source.settimeout(None)
                    self.drawn.wait(30)
                    if self.away is None:
                        self.cuts += 1
                        to.sendall(b"0\r\n\r\n")
                        break
                    self.cut()
        for end in (source, to):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        self.cuts += 1
        self.until = time.monotonic() + (self.away or 0.0)
        for end in self.open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self.open = []

    def close(self) -> None:
        self.listener.close()
        self.drawn.set()
        self.away = 0.0
        self.cut()


@pytest.fixture
def wire(app_url: str) -> Iterator[Wire]:
    wire = Wire(app_url)
    yield wire
    wire.close()


def texts(visit: RacePage) -> list[str]:
    return visit.page.locator(".panel .text").evaluate_all("nodes => nodes.map(n => n.innerText)")


def controls(visit: RacePage) -> dict[str, Any]:
    return visit.page.evaluate("JSON.stringify(window.dmtdRace.kept())")


@pytest.mark.parametrize(
    "seconds", [2, None, pytest.param(8, marks=[] if FULL else pytest.mark.slow)]
)
def test_what_came_of_a_race_stays_where_the_connection_breaks_off(
    chromium: object, wire: Wire, seconds: int | None
) -> None:
    visit = RacePage(chromium, wire.url)
    page = visit.page
    visit.set("#max-tokens", 200)
    visit.set("#seed", 17)
    visit.ask("What is 47 + 38?")
    assert visit.wait_until("done") == "done"
    # a reply: the chat has two turns
    page.fill("#reply-text textarea", LONG)
    page.fill("#prompt textarea", "a draft of the next prompt")
    # as far as it is played, not as fast as the race is over
    wire.away, wire.cut_at = seconds, b'\\"type\\":\\"step\\"'
    page.evaluate("window.before = true")
    visit.press("#reply")
    page.wait_for_selector(".panel >> nth=0 >> .turn >> nth=2")
    visit.wait_for_tokens()
    wire.drawn.set()
    page.wait_for_function("!window.before", timeout=30_000)
    page.wait_for_selector("[data-status='stopped']", timeout=30_000)
    assert wire.cuts == 1 and "broke off" in visit.sentence
    page.wait_for_function(
        "document.querySelector('#prompt textarea').value === 'a draft of the next prompt'"
    )
    shown = page.locator(".panel >> nth=0").inner_text()
    assert "broken off" in shown and LONG in shown and "85" in shown
    assert visit.origins(0)
    assert page.input_value("#seed input[type='number']") == "17"
    assert page.input_value("#max-tokens input[type='number']") == "200"

    # the page is as good as before: the chat goes on from what came
    page.fill("#reply-text textarea", "Hello")
    page.wait_for_function("document.documentElement.hasAttribute('data-turn')")
    visit.press("#reply")
    assert visit.wait_until("done") == "done"
    turns = page.locator(".panel >> nth=0 >> .turn").all_inner_texts()
    assert len(turns) == 5 and turns[0] == "What is 47 + 38?" and turns[2] == LONG
    assert turns[3] and turns[4] == "Hello"
    visit.complaints.clear()
    visit.close()


def test_a_reload_keeps_the_race_the_chat_and_the_controls(visit: RacePage) -> None:
    page = visit.page
    visit.set("#max-tokens", 60)
    visit.set("#panels", 2)
    page.wait_for_function("document.querySelectorAll('.panel').length === 2")
    visit.write_into("#system-prompt", "#system textarea", "Answer briefly.")
    visit.ask("What is 47 + 38?")
    assert visit.wait_until("done") == "done"
    before = page.locator(".panels").inner_text(), visit.sentence, visit.table()
    page.fill("#prompt textarea", "a draft")
    page.reload()
    page.wait_for_selector("[data-status='done']")
    page.wait_for_function("document.querySelector('#prompt textarea').value === 'a draft'")
    page.wait_for_function("document.documentElement.hasAttribute('data-turn')")
    assert (page.locator(".panels").inner_text(), visit.sentence, visit.table()) == before
    assert page.input_value("#panels input[type='number']") == "2"
    visit.press("#regenerate")
    assert visit.wait_until("done") == "done"
    turns = page.locator(".panel >> nth=0 >> .turn").all_inner_texts()
    assert turns[-1] == "What is 47 + 38?" and "System prompt" in turns[0]

    page.on("dialog", lambda dialog: dialog.accept())
    page.click("#new-chat")
    page.wait_for_selector("[data-status='idle']")
    page.reload()
    page.wait_for_selector("[data-status='idle']")
    page.wait_for_function("document.querySelector('#max-tokens input').value === '60'")
    page.wait_for_function("document.querySelectorAll('.panel').length === 2")
    assert page.locator(".turn").count() == 0
    # another visit of the same tab begins anew
    page.goto(visit.url)
    page.wait_for_selector("[data-status='idle']")
    page.wait_for_timeout(500)
    assert page.input_value("#max-tokens input[type='number']") == "256"


def test_where_the_tab_may_keep_nothing_it_warns_before_it_goes(visit: RacePage) -> None:
    page = visit.page
    page.add_init_script(
        "Object.defineProperty(window, 'sessionStorage', { get() { throw new Error('blocked'); } });"
    )
    page.goto(visit.url)
    page.wait_for_selector("[data-status='idle']")
    asked: list[str] = []

    def answer(dialog: Any) -> None:
        asked.append(dialog.type)
        dialog.accept()

    page.on("dialog", answer)
    page.reload()
    page.wait_for_selector("[data-status='idle']")
    assert not asked  # nothing would be lost
    visit.race("What is 47 + 38?")
    page.reload()
    page.wait_for_selector("[data-status='idle']")
    assert asked == ["beforeunload"]
