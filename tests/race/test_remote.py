"""Remote panels: against a real `transformers serve` with `classroom`, and against a server that
misbehaves.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from app_process import ROOT, START_SECONDS, Visitor, free_port, running_app
from dmtd_demo.errors import UserError
from dmtd_demo.models.loading import load
from dmtd_demo.models.model import Model
from dmtd_demo.race.panels import parse_panel
from dmtd_demo.race.race import race, race_ids
from dmtd_demo.race.remote_server import KEY
from dmtd_demo.race.settings import RaceSettings
from dmtd_demo.sampling import Sampling
from dmtd_demo.ui.links import comparison

PROMPT = "What is 47 + 38?"
SECRET = "sk-never-shown"


@cache
def classroom() -> Model:
    return load("classroom", threads=1)


def records(
    panels: list[str],
    prompt: str = PROMPT,
    should_stop: Callable[[], bool] = lambda: False,
    **more: Any,
) -> list[dict]:
    asked = [{"role": "user", "content": prompt}]
    return [
        record
        for batch in race(
            classroom(),
            [parse_panel(panel) for panel in panels],
            [asked] * len(panels),
            RaceSettings(**{"max_new_tokens": 60, **more}),
            should_stop,
        )
        for record in batch
    ]


def summaries(found: list[dict]) -> list[dict]:
    return sorted(
        (record for record in found if record["type"] == "summary"),
        key=lambda record: record["panel"],
    )


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[str]:
    """`classroom`, an ordinary Qwen3 folder, behind `transformers serve`."""
    pytest.importorskip(
        "openai", reason="transformers serve needs it: pip install -r requirements-dev.txt"
    )
    port = free_port()
    log = tmp_path_factory.mktemp("serve") / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "transformers.cli.transformers",
                "serve",
                str(ROOT / "assets" / "classroom"),
                "--port",
                str(port),
                "--device",
                "cpu",
                "--dtype",
                "float32",
            ],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        )
    try:
        ends = time.monotonic() + START_SECONDS
        while True:
            assert process.poll() is None and time.monotonic() < ends, log.read_text()[-2000:]
            try:
                if httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).status_code == 200:
                    break
            except httpx.HTTPError:
                pass
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def test_transformers_serve_writes_what_ar_writes(served):
    found = records(
        ["ar", f"remote:url={served},name={ROOT / 'assets' / 'classroom'}", "dmtd:tau=4"]
    )
    header, own, remote = found[0], *summaries(found)[:2]
    assert (
        remote["stop"] == own["stop"] == "eos"
        and remote["text"] == own["text"]
        and "85" in remote["text"]
    )
    # by the server's own count, EOS included
    assert remote["tokens"] == own["tokens"] and remote["tokens_per_second"] > 0
    assert (
        set(remote["origins"]) == {"remote"}
        and remote["full_passes"] == 0
        and remote["agreement"] is remote["audit_agreement"] is remote["plt"] is None
    )
    assert header["panels"][1]["decoder"] == "remote" and "layers" not in header["panels"][1]
    steps = [record for record in found if record["type"] == "step" and record["panel"] == 1]
    # it streams
    assert [step["ms"] for step in steps] == sorted(step["ms"] for step in steps) and len(
        {step["ms"] for step in steps}
    ) > 5


def test_a_remote_panel_alone_and_first(served):
    found = records(
        [f"remote:url={served}/v1,name={ROOT / 'assets' / 'classroom'}", "ar"], max_new_tokens=5
    )
    remote, own = summaries(found)
    assert (
        remote["stop"] == own["stop"] == "length"
        and own["agreement"] is None
        and own["text"].startswith(remote["text"])
    )


class Fake(BaseHTTPRequestHandler):
    """Says whatever a test wants. asked: the bodies and keys that came."""

    say: Callable[[Fake, dict], None]
    asked: list[tuple[dict, str | None]]

    def do_GET(self) -> None:
        self.reply(200, json.dumps({"data": [{"id": "first-model"}]}).encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append((body, self.headers.get("Authorization")))
        try:
            type(self).say(self, body)
        except (BrokenPipeError, ConnectionResetError):
            self.asked.append(({"gone": True}, None))

    def reply(self, code: int, content: bytes, **headers: str) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def stream(self, *events: Any) -> None:
        self.send_response(200)
        self.end_headers()
        for event in events:
            self.wfile.write(
                f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n".encode()
            )
            self.wfile.flush()

    def log_message(self, *_: Any) -> None:
        pass


def text(*parts: str, finish: str | None = None, **more: Any) -> list[dict]:
    return [{"choices": [{"delta": {"content": part}, **more}]} for part in parts] + (
        [{"choices": [{"delta": {}, "finish_reason": finish}]}] if finish else []
    )


@pytest.fixture
def fake() -> Iterator[tuple[str, type[Fake]]]:
    handler = type("Handler", (Fake,), {"asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()


def test_what_is_asked_and_what_is_recorded(fake, monkeypatch):
    url, server = fake
    monkeypatch.setenv(KEY, SECRET)
    said = [
        {
            "token": token,
            "logprob": p,
            "top_logprobs": [{"token": token, "logprob": p}, {"token": "x", "logprob": -9e9}],
        }
        for token, p in (("Two", -0.1), (" tokens", -0.2))
    ]
    server.say = lambda self, body: self.stream(
        *text("Hm", **{}),
        *text("Two tokens", logprobs={"content": said}),
        *text("!", finish="length"),
        {"choices": [], "usage": {"completion_tokens": 9}},
        "[DONE]",
    )
    found = records([f"remote:url={url}"], top=2, sampling=Sampling(0.5, 7, 0.9, 11))
    body, key = server.asked[0]
    assert key == f"Bearer {SECRET}" and SECRET not in json.dumps(found)
    assert body["model"] == "first-model" and body["messages"] == [
        {"role": "user", "content": PROMPT}
    ]
    assert (
        body["temperature"],
        body["top_k"],
        body["top_p"],
        body["seed"],
        body["max_tokens"],
        body["top_logprobs"],
    ) == (0.5, 7, 0.9, 11, 60, 2)
    tokens = [token for record in found if record["type"] == "step" for token in record["tokens"]]
    assert [(token["text"], token["logprob"]) for token in tokens] == [
        ("Hm", None),
        ("Two", -0.1),
        (" tokens", -0.2),
        ("!", None),
    ]
    assert (
        tokens[1]["top"][0][:2] == [None, "Two"]
        and tokens[1]["top"][1][2] == 0.0
        and all(token["id"] is None for token in tokens)
    )
    [summary] = summaries(found)
    assert (summary["stop"], summary["tokens"], summary["pieces"]) == ("length", 9, 4)


def test_fields_that_a_server_does_not_know_are_left_out(fake):
    url, server = fake

    def say(self: Fake, body: dict) -> None:
        if "chat_template_kwargs" in body:
            return self.reply(400, b"unknown field")
        self.stream(*text("Hello", finish="stop"), "[DONE]")

    server.say = say
    assert summaries(records([f"remote:url={url}"]))[0]["text"] == "Hello"
    assert [len(body) for body, _ in server.asked] == sorted(
        (len(body) for body, _ in server.asked), reverse=True
    ) and len(server.asked) == 3


def test_a_setting_that_changes_the_text_is_never_left_out(fake):
    url, server = fake
    server.say = lambda self, body: (
        self.reply(400, b"unknown field top_k")
        if "top_k" in body
        else self.stream(*text("Hello", finish="stop"), "[DONE]")
    )
    [summary] = summaries(records([f"remote:url={url}"], sampling=Sampling(1.0, 5)))
    assert summary["stop"] == "error" and "unknown field top_k" in summary["message"]


def delta(**parts: Any) -> dict:
    return {"choices": [{"delta": parts}]}


THOUGHT = {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}
THINKING = ["<think>\n", "hm", "\n</think>\n\n", "Yes"]


@pytest.mark.parametrize(
    "said,pieces",
    [
        ([delta(reasoning_content="hm"), delta(content="Yes")], THINKING),
        ([delta(reasoning="hm", reasoning_content="hm"), delta(content="Yes")], THINKING),
        ([delta(reasoning_content="hm", content="Yes")], THINKING),
        ([delta(reasoning_content="hm", content=None), delta(content="Yes")], THINKING),
        ([delta(content=[THOUGHT, {"type": "text", "text": "Yes"}])], THINKING),
        # all of it is a thought
        ([delta(reasoning_content="hm")], THINKING[:3]),
    ],
)
def test_thoughts_that_come_apart_are_folded_as_others(fake, said, pieces):
    url, server = fake
    server.say = lambda self, body: self.stream(*said, *text(finish="stop"), "[DONE]")
    found = records([f"remote:url={url}"])
    steps = [record for record in found if record["type"] == "step"]
    # each mark by itself, as the page looks for it
    assert [step["tokens"][0]["text"] for step in steps] == pieces
    [summary] = summaries(found)
    # the marks are none of the server's
    assert (summary["tokens"], summary["stop"]) == (len(said) if len(pieces) < 4 else 2, "eos")


FINE = {"error": None, "usage": None, "object": "chat.completion.chunk"}
WHOLE = {"choices": [{"message": {"content": "Yes"}, "finish_reason": "stop"}], "error": None}


def raw(content: str, kind: str = "text/event-stream") -> Callable[[Fake, dict], None]:
    return lambda self, body: self.reply(200, content.encode(), **{"Content-Type": kind})


@pytest.mark.parametrize(
    "say,words,stop",
    [
        (lambda self, body: self.stream(*text("Yes", finish="stop"), "[DONE]"), "Yes", "eos"),
        (
            lambda self, body: self.stream(
                *({**each, **FINE} for each in text("Yes", finish="stop")), "[DONE]"
            ),
            "Yes",
            "eos",
        ),
        (
            lambda self, body: self.stream(
                *({**each, "error": {"code": None, "message": ""}} for each in text("Yes")),
                "[DONE]",
            ),
            "Yes",
            "eos",
        ),
        (lambda self, body: self.stream(*text("Yes"), "[DONE]"), "Yes", "eos"),
        (lambda self, body: self.stream("[DONE]"), "", "eos"),
        (lambda self, body: self.stream(*text(*"abcd"), "[DONE]"), "abcd", "length"),
        (lambda self, body: self.stream(*text("Yes", finish="length")), "Yes", "length"),
        (
            lambda self, body: (self.stream(*text("Yes", finish="stop")), time.sleep(4)),
            "Yes",
            "eos",
        ),
        (raw('data:{"choices":[{"delta":{"content":"Yes"}}]}\r\n\r\ndata:[DONE]'), "Yes", "eos"),
        (raw(': hello\n\nevent: x\nid: 1\ndata: {"choices": []}\n\ndata: [DONE]\n\n'), "", "eos"),
        (raw('data: {"choices":[{"delta":{"content":"Yes"}}]}\r\rdata: [DONE]\r'), "Yes", "eos"),
        (
            raw('\ufeff\n\ndata: {"choices":[{"delta":{"content":"Ja"}}]}\ndata: [DONE]'),
            "Ja",
            "eos",
        ),
        (raw(json.dumps(WHOLE), "application/json"), "Yes", "eos"),
        (raw("\n" + json.dumps(WHOLE, indent=1)), "Yes", "eos"),
        (raw(json.dumps(WHOLE, indent=1), "application/json; charset=utf-8"), "Yes", "eos"),
        (
            lambda self, body: self.stream(*text("a\ud83d", "\ude00b\udc00", "c\ud800"), "[DONE]"),
            "a😀b\ufffdc",
            "eos",
        ),
        (
            lambda self, body: self.stream(
                {"choices": [{"index": 1, "delta": {"content": "No"}}]}, *text("Yes"), "[DONE]"
            ),
            "Yes",
            "eos",
        ),
        (
            lambda self, body: self.stream(*text("a\x00\x0c\u2028b"), "[DONE]"),
            "a\x00\x0c\u2028b",
            "eos",
        ),
    ],
)
def test_servers_differ_in_what_they_send_beside_the_text(fake, caplog, say, words, stop):
    url, server = fake
    server.say = say
    [summary] = summaries(records([f"remote:url={url}"], max_new_tokens=4))
    assert (summary["text"], summary["stop"]) == (words, stop), summary
    gc.collect()
    assert not caplog.records


def test_nothing_is_said_of_what_an_answer_leaves_behind(fake):
    """In a process of its own, which ends at once: not by asyncio, nor by the interpreter."""
    url, server = fake

    def say(self: Fake, body: dict) -> None:
        if body["model"] == "fails":
            return self.stream(*text("a"), {"error": "no"}, *text("b"), "[DONE]")
        self.stream(*text("a"))
        time.sleep(2)

    server.say = say
    code = f"""
import logging
logging.basicConfig()
from test_remote import after, records, summaries
for name in ("fails", "hangs"):
    found = records(["remote:url={url},name=" + name], should_stop=after(1))
    print(summaries(found)[0]["stop"])
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.stdout.split(), done.stderr) == (["error", "stopped"], "")


@pytest.mark.parametrize(
    "say,words",
    [
        (
            lambda self, body: self.reply(401, f"bad key {SECRET}".encode()),
            "answered HTTP 401: bad key …",
        ),
        (
            lambda self, body: self.reply(302, b"", Location="http://127.0.0.1:9/"),
            "answered HTTP 302",
        ),
        (lambda self, body: self.reply(200, b"<html>hello</html>"), "broke off in the middle"),
        (lambda self, body: self.stream("{not json"), "something else than a chat completion"),
        (
            lambda self, body: self.stream(
                *text("a", logprobs={"content": [{"token": "a", "logprob": SECRET}]})
            ),
            "could not convert string to float: '…'",
        ),
        (lambda self, body: self.stream("[]"), "something else than a chat completion"),
        (
            lambda self, body: self.stream({"choices": [{"delta": "x"}]}),
            "something else than a chat completion",
        ),
        (
            lambda self, body: self.stream(*text("a"), {"error": {"message": "no more memory"}}),
            "failed: no more memory",
        ),
        (lambda self, body: self.stream(*text(*["a "] * 1000)), "more than the 60 new tokens"),
        (lambda self, body: self.stream("x" * 2_000_000), "a line of over"),
        (lambda self, body: self.stream(*text("half")), "broke off in the middle"),
        (lambda self, body: self.stream(*text("half", finish="abort")), "broke off in the middle"),
        (lambda self, body: self.stream(*text("a"), {"error": "no \ud800"}), "failed: no \ufffd"),
        (
            lambda self, body: self.stream({"object": "error", "message": "too busy"}),
            "failed: too busy",
        ),
        (
            lambda self, body: self.reply(
                200, b'{"error": {"message": "late"}}', **{"Content-Type": "application/json"}
            ),
            "failed: late",
        ),
        (
            lambda self, body: self.reply(
                200, b'{"error": "full"}', **{"Content-Type": "text/event-stream"}
            ),
            "failed: full",
        ),
        (lambda self, body: self.reply(200, b'{"error": {"message": "late"}}'), "failed: late"),
        (
            lambda self, body: self.reply(
                200, b'{"detail": "Not Found"}', **{"Content-Type": "application/json"}
            ),
            'something else than a chat completion: {"detail": "Not Found"}',
        ),
    ],
)
def test_what_goes_wrong_is_said_in_that_panel(fake, monkeypatch, say, words):
    url, server = fake
    monkeypatch.setenv(KEY, SECRET)
    server.say = say
    found = records([f"remote:url={url}", "ar"])
    remote, own = summaries(found)
    assert (
        remote["stop"] == "error" and words in remote["message"] and SECRET not in json.dumps(found)
    )
    assert own["stop"] == "eos" and "85" in own["text"]


def test_nobody_there(monkeypatch):
    assert (
        "cannot be reached"
        in summaries(records([f"remote:url=http://127.0.0.1:{free_port()},name=x"]))[0]["message"]
    )


def after(seconds: float) -> Callable[[], bool]:
    """Stops so long after it was asked first."""
    asked: list[float] = []

    def stop() -> bool:
        asked.append(time.monotonic())
        return asked[-1] > asked[0] + seconds

    return stop


def test_stop_ends_the_connection(fake):
    url, server = fake

    def say(self: Fake, body: dict) -> None:
        self.stream(*text("a"))
        while True:
            self.wfile.write(b": keep\n\n")
            time.sleep(0.02)

    server.say = say
    found = records([f"remote:url={url}"], should_stop=after(1))
    assert summaries(found)[0]["stop"] == "stopped" and summaries(found)[0]["text"] == "a"
    ends = time.monotonic() + 10
    while ({"gone": True}, None) not in server.asked:
        assert time.monotonic() < ends
        time.sleep(0.05)


@pytest.mark.parametrize(
    "panel,words",
    [
        ("remote", "needs the address"),
        ("remote:name=x", "needs the address"),
        ("remote:url=file:///etc/passwd", "such as http://127.0.0.1:8000"),
        ("remote:url=http://", "such as"),
        ("remote:url=http://u:p@host", KEY),
        ("remote:url=http://host/?key=1", KEY),
        ("remote:url=http://[::1", "such as"),
        ("remote:url=http://h:99999", "such as"),
        ("remote:tau=4", "url, name"),
    ],
)
def test_bad_addresses(panel, words):
    with pytest.raises(UserError, match=words.replace("(", r"\(")):
        parse_panel(panel)


def test_ids_alone_and_links_ask_no_server():
    model = load("classroom", threads=1)
    with pytest.raises(UserError, match="needs a prompt in words"):
        race_ids(model, [parse_panel("remote:url=http://h")], [[1]])
    with pytest.raises(UserError, match=r"was started with \(none\)"):
        comparison("panel=ar&panel=remote:url=http://169.254.169.254", model)
    known = str(parse_panel("remote:url=http://h"))
    assert comparison("panel=ar&panel=remote:url=http://h", model, [known]).panels[
        1
    ] == parse_panel("remote:url=http://h")


def test_the_page_asks_only_the_servers_that_it_was_started_with(fake, tmp_path: Path):
    url, server = fake
    server.say = lambda self, body: self.stream(
        *text("from", " elsewhere", finish="stop"), "[DONE]"
    )
    with running_app(tmp_path, "--panel", "ar", "--panel", f"remote:url={url},name=mine") as (
        page,
        _,
    ):
        visitor = Visitor(page)
        assert visitor.values[visitor.places["panels"]] == 2
        visitor.ask(PROMPT, max_tokens=8)
        lines = visitor.lines()
        assert [line for line in lines if line["type"] == "summary"][1][
            "text"
        ] == "from elsewhere" and lines[-1]["status"] == "done"
        assert any(
            note["text"] == "note.remote"
            for note in next(line for line in lines if line["type"] == "page")["notes"]
        )
        other = Visitor(page)
        place = other.places["panel-1-decoder"]
        other.values[place] = other.values[place + 1] = f'remote:url="{url}/other"'
        other.ask(PROMPT)
        refused = other.lines()[-1]
        assert (
            refused["type"] == "refused"
            and "panel 2 needs one of the decoders" in refused["message"]
        )
    assert len(server.asked) == 1
