"""Many visitors, and many races.

A tenth of the numbers here, with what was measured shown by -s; all of them by

DMTD_STRESS=full python -m pytest -s tests/server/test_visitors.py
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from app_process import Visitor, running_app
from dmtd_demo.training.world.words import ANIMALS, COLOURS, PLACES

FULL = os.environ.get("DMTD_STRESS") == "full"
LONG = "Tell me a story about Iris, a fox and a red lantern in the forest."
SHARE = 1.05


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, psutil.Process, Path]]:
    folder = tmp_path_factory.mktemp("app")
    with running_app(folder) as (url, process):
        yield url, psutil.Process(process.pid), folder


def race(url: str, prompt: str, **settings: object) -> list[dict]:
    visitor = Visitor(url)
    visitor.ask(prompt, **settings)
    return visitor.lines()


def texts(lines: list[dict]) -> list[str]:
    return [line["text"] for line in lines if line["type"] == "summary"]


def test_many_at_once_each_get_their_own_answer_or_are_told(app: tuple) -> None:
    url, _, _ = app
    count = 50 if FULL else 20  # more than the queue holds
    words = [
        " ".join(random.Random(index).choice(kind) for kind in (COLOURS, ANIMALS, PLACES))
        for index in range(count)
    ]
    prompts = [f"Repeat these words: {', '.join(each.split())}" for each in words]
    alone = texts(race(url, prompts[0]))
    waits: list[float] = []
    over = threading.Event()

    def look() -> None:
        with httpx.Client(timeout=60) as http:
            while not over.is_set():
                started = time.monotonic()
                http.get(url).raise_for_status()
                waits.append(time.monotonic() - started)
                over.wait(0.1)

    def visit(prompt: str) -> list[dict] | str:
        try:
            return race(url, prompt)
        except httpx.HTTPStatusError as error:
            return f"{error.response.status_code} {error.response.text}"

    watcher = threading.Thread(target=look)
    watcher.start()
    with ThreadPoolExecutor(count) as pool:
        outcomes = list(pool.map(visit, prompts))
    over.set()
    watcher.join()
    served = {
        index: texts(outcome) for index, outcome in enumerate(outcomes) if isinstance(outcome, list)
    }
    told = [outcome for outcome in outcomes if isinstance(outcome, str)]
    print(
        f"\n{count} at once: {len(served)} served, {len(told)} told; GET / took {max(waits):.2f} "
        "s at most"
    )
    assert len(served) >= 16 and all("full" in message for message in told)
    assert served.get(0, alone) == alone, (
        "the text is a function of the prompt, not of who else is there"
    )
    for index, answers in served.items():
        assert len(answers) == 3 and all(word in answers[0] for word in words[index].split()), (
            prompts[index],
            answers,
        )
    assert max(waits) < (1 if FULL else 10), "the page itself never waits for a race"


def test_nobody_stops_another_visitors_race(app: tuple) -> None:
    url, _, _ = app
    one, other = Visitor(url), Visitor(url)
    run = one.ask(LONG, max_tokens=60)
    other.stop(run)
    assert one.lines()[-1] == {"type": "over", "status": "done", "message": ""}


def test_a_visitor_who_leaves_frees_the_device(app: tuple) -> None:
    url, process, _ = app
    count = 200 if FULL else 20

    def abort() -> None:
        visitor = Visitor(url)
        # noise, which does not end by itself
        visitor.ask(LONG, max_tokens=1000, temperature=50, seed=2)
        for message in visitor.messages():
            if message["msg"] == "process_generating":
                break  # the connection closes in the middle of the race
        visitor.http.close()

    for _ in range(5):
        abort()
    race(url, "Repeat these words: fox, hill")
    before = process.memory_info().rss
    for _ in range(count):
        abort()
    started = time.monotonic()
    lines = race(url, "Repeat these words: fox, hill")
    waited, after = time.monotonic() - started, process.memory_info().rss
    print(
        f"\n{count} aborted races: memory {before / 2**20:.0f} to {after / 2**20:.0f} MiB; the "
        f"next race took {waited:.1f} s"
    )
    assert lines[-1]["status"] == "done" and after <= SHARE * before


def test_races_leave_nothing_behind(app: tuple) -> None:
    url, process, folder = app
    count, settled = (500, 50) if FULL else (50, 15)

    def state() -> tuple[int, int, int, int]:
        return (
            process.memory_info().rss,
            process.num_threads(),
            process.num_fds(),
            sum(1 for _ in folder.rglob("*")),
        )

    for number in range(count):
        if number == settled:
            before = state()
        visitor = Visitor(url)
        visitor.ask(f"What is {10 + number % 90} + {99 - number % 89}?", panels=2, max_tokens=6)
        assert visitor.lines()[-1] == {"type": "over", "status": "done", "message": ""}
    after = state()
    print(
        f"\n{count} races: memory {before[0] / 2**20:.0f} to {after[0] / 2**20:.0f} MiB, threads "
        f"{before[1]} to {after[1]}, open files {before[2]} to {after[2]}, files {before[3]} to "
        f"{after[3]}"
    )
    assert after[0] <= SHARE * before[0]
    assert after[1] <= before[1] + 1 and after[2] <= before[2] + 2 and after[3] == before[3]
