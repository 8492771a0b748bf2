"""What this app reads of others, mutated at random: files of races, of tasks and of training, and requests.

One sentence each: no hang, no memory that stays, nothing of ours that fails. A fiftieth of the
inputs here; all 20,000 by

DMTD_STRESS=full python -m pytest -s tests/server/test_mutations.py tests/browser/test_mutated_races.py
"""

from __future__ import annotations

import contextlib
import json
import random
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from mutations import FULL, ODD, changed, mutated

from app_process import Visitor, running_app
from dmtd_demo import Comparison
from dmtd_demo.errors import UserError
from dmtd_demo.measure.evaluation import read_tasks
from dmtd_demo.models.loading import load
from dmtd_demo.training import corpus

# an object among the values is refused as a file
ODD_VALUES = [value for value in ODD if not isinstance(value, dict)] + [
    "classroom", ["classroom"], 3, 1.5, [None], "[]", "null", '["x", "", []]'
]  # fmt: skip
FILES, REQUESTS = (12_000, 1_000) if FULL else (300, 120)
SECONDS = 10
MEGABYTES = 150


def lines_of_a_race() -> list[dict[str, Any]]:
    from dmtd_demo import compare

    model = load("classroom", threads=1)
    return compare("What is 1 + 1?", ["ar", "clp"], model, max_new_tokens=8).records


def test_files_that_are_none(tmp_path: Path, model_folder: Path, monkeypatch: Any) -> None:
    """A race, tasks and conversations, mutated in their bytes and in their values."""
    model = load(str(model_folder))
    # not answered here: what cannot be read is to be found, and an answer takes a second
    monkeypatch.setattr(corpus, "answered", lambda *_: [])
    part = [{"type": "text", "text": "Hi"}]
    talk = [{"role": "user", "content": part}, {"role": "assistant", "content": "Hello"}]
    sources: list[tuple[Any, list[Any]]] = [
        (lambda path: Comparison.open(path).replay(), lines_of_a_race()),
        (lambda path: read_tasks(path, 9), [{"messages": talk[:1], "answer": "Hello"}] * 3),
        (
            lambda path: corpus.read_rows(model, path, tmp_path / "own"),
            [{"messages": talk}, {"conversations": talk}, {"text": "Once upon"}],
        ),
    ]
    rng, refused, slowest = random.Random(26), 0, 0.0
    for number in range(FILES):
        read, lines = sources[number % len(sources)]
        path = tmp_path / "mutated.jsonl"
        path.write_bytes(mutated(lines, rng))
        began = time.monotonic()
        try:
            read(str(path))
        except UserError as error:
            refused += 1
            assert len(str(error)) < 2000, error
        slowest = max(slowest, time.monotonic() - began)
        assert slowest < SECONDS, path.read_bytes()[:300]
    print(f"\n{FILES} files: {refused} refused, the slowest took {slowest:.2f} s")
    assert FILES / 10 < refused < FILES


def test_requests_that_no_page_makes(tmp_path: Path) -> None:
    """Each gets an answer, the page goes on, and nothing writes a traceback into its log."""
    with running_app(tmp_path) as (url, process):
        visitor = Visitor(url)
        visitor.ask("What is 1 + 1?", max_tokens=4)
        assert visitor.lines()[-1]["status"] == "done"
        of = psutil.Process(process.pid)
        before, rng, statuses, slowest = of.memory_info().rss, random.Random(26), {}, 0.0
        config = visitor.http.get(f"{url}config").json()
        shown = {each["id"]: each["props"].get("value") for each in config["components"]}
        names = sorted(
            name for name, event in visitor.functions.items() if name and event["backend_fn"]
        )
        for number in range(REQUESTS):
            function = visitor.functions[rng.choice(["race", "open_link", *names])]
            asked = {
                "data": [json.dumps(["x", "", visitor.values]), None, 1, "a"],
                "fn_index": function["id"],
                "session_hash": rng.choice([visitor.session, f"other{number % 50}"]),
                "event_data": None,
                "trigger_id": None,
            }
            kind = rng.random()
            if kind < 0.4:
                asked["data"] = [shown[each] for each in function["inputs"]]
                for _ in range(rng.choice([1, 1, 2, 5]) if asked["data"] else 0):
                    asked["data"][rng.randrange(len(asked["data"]))] = rng.choice(ODD_VALUES)
            elif kind < 0.7:
                asked["data"][0] = json.dumps(changed(json.loads(asked["data"][0]), rng))
            path = rng.choice(
                ["queue/join", "queue/join", "cancel", f"run/{function['id']}", "reset"]
            )
            body = json.dumps(asked).encode() if number % 4 else mutated([asked], rng)
            began = time.monotonic()
            try:
                answer = visitor.http.post(
                    f"{url}gradio_api/{path}",
                    content=body,
                    headers={"Content-Type": "application/json"},
                    timeout=SECONDS,
                )
            except httpx.TimeoutException:
                pytest.fail(f"no answer to {path} {body[:500]!r}")
            slowest = max(slowest, time.monotonic() - began)
            statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
        time.sleep(1)
        grown = (of.memory_info().rss - before) / 2**20
        print(f"\n{REQUESTS} requests: {statuses}, {grown:.0f} MiB more, {slowest:.2f} s at most")
        assert max(statuses) < 600 and grown < MEGABYTES
        after = Visitor(url)
        # those who asked and never listened have the queue first
        for _ in range(60):
            with contextlib.suppress(httpx.HTTPStatusError):
                after.ask("What is 1 + 1?", max_tokens=4)
                break
            time.sleep(0.5)
        assert after.lines()[-1]["status"] == "done"
    log = (tmp_path / "app.log").read_text(encoding="utf-8", errors="replace")
    assert "Traceback" not in log, log[log.index("Traceback") :][-2000:]
