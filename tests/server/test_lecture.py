"""A lecture: whose race is next, what listeners see, what is opened and what is not."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app_process import ROOT, Visitor, free_port
from dmtd_demo.errors import UserError
from dmtd_demo.server.lecture import Lecture
from dmtd_demo.server.turns import Turns

LISTENERS = 40 if os.environ.get("DMTD_STRESS") == "full" else 8
STUDENT = "127.0.0.2"  # another address of this machine, and so not the lecturer's


@settings(deadline=None, max_examples=30)
@given(
    st.lists(
        st.tuples(st.sampled_from(["a", "b", "c", "lecturer"]), st.booleans()),
        min_size=1,
        max_size=12,
    )
)
def test_turns_are_one_at_a_time_and_fair(asked):
    """All ask at once, while one race runs; some give up.

    Each knows how many are ahead, the lecturer goes first, nobody twice before everybody once.
    """
    turns, order, running = Turns(), [], []
    come = threading.Barrier(len(asked) + 1)
    lock = threading.Lock()

    def visitor(address: str, gives_up: bool) -> None:
        with turns.waiting(address, address == "lecturer") as ahead:
            come.wait()
            if gives_up:
                return
            while ahead():
                pass
            with lock:
                running.append(address)
                assert len(running) == 1
                order.append(address)
            time.sleep(0.001)
            with lock:
                running.clear()

    with turns.waiting("first") as ahead:
        assert ahead() == 0
        threads = [threading.Thread(target=visitor, args=each) for each in asked]
        for thread in threads:
            thread.start()
        come.wait()
        # one more, which counts those before it, and the one that runs
        with turns.waiting("last") as other:
            assert other() >= 1
        stayed = [address for address, gives_up in asked if not gives_up]
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert sorted(order) == sorted(stayed)
    students = [address for address in order if address != "lecturer"]
    assert order == ["lecturer"] * (len(order) - len(students)) + students
    for index, address in enumerate(students):  # a second turn only after everybody else's first
        if address in students[:index]:
            seen = set(students[:index])
            assert all(later in seen for later in students[index:])


async def _lines(http: httpx.AsyncClient, url: str) -> AsyncIterator[tuple[float, dict]]:
    """The lines of the record as they come, each once, as the page's script counts them."""
    run, taken = "", 0
    data: list[str] = []
    async with http.stream("GET", f"{url}class/events") as response:
        async for line in response.aiter_lines():
            if line.startswith("data: "):
                data.append(line[6:])
            elif not line and data:
                head, *lines = data
                data = []
                said = json.loads(head)
                if said["run"] != run:
                    run, taken = said["run"], 0
                assert said["first"] == taken and lines[-1] == ""
                for each in lines[:-1]:
                    taken += 1
                    yield time.monotonic(), json.loads(each)


async def _listen(url: str, count: int, ready: threading.Event) -> list[list[tuple[float, dict]]]:
    async def one(http: httpx.AsyncClient) -> list[tuple[float, dict]]:
        heard = []
        async for at, line in _lines(http, url):
            if not ready.is_set():
                continue  # a race of before, which comes first
            heard.append((at, line))
            if line["type"] == "over":
                break
        return heard

    async with httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=None)) as http:
        tasks = [asyncio.create_task(one(http)) for _ in range(count)]
        await asyncio.sleep(1)
        ready.set()
        return await asyncio.gather(*tasks)


def test_everybody_sees_the_lecturers_race_as_it_runs(lecture):
    ready, heard = threading.Event(), []
    thread = threading.Thread(
        target=lambda: heard.extend(asyncio.run(_listen(lecture, LISTENERS, ready)))
    )
    thread.start()
    ready.wait(30)
    lecturer = Visitor(lecture)
    # noise, which hardly ever ends by itself: seconds on every machine
    lecturer.ask("What is DMTD?", max_tokens=600, temperature=50, seed=2)
    came: list[float] = []  # when each line was on its way to the lecturer's own page
    for message in lecturer.messages():
        if message["msg"] == "process_generating":
            last = message["output"]["data"][0]
            text = last if isinstance(last, str) else "".join(str(part[-1]) for part in last)
            came += [time.monotonic()] * text.count('"type":')
    thread.join(60)
    assert len(heard) == LISTENERS
    first = [line for _, line in heard[0]]
    assert [line["type"] for line in first[:2]] == ["page", "header"] and first[-1][
        "status"
    ] == "done"
    assert all([line for _, line in each] == first for each in heard)
    over = came[-1]
    late = max(each[-1][0] for each in heard) - over
    spread = {round(at, 1) for at, line in heard[0] if line["type"] == "step"}
    print(
        f"\n{LISTENERS} listeners: the end of the race came to the last of them "
        f"{1000 * late:+.0f} ms after the lecturer's own page"
    )
    assert len(spread) > 1  # as it ran, not at its end


def test_a_students_race_is_the_students_own(lecture):
    with httpx.Client(transport=httpx.HTTPTransport(local_address=STUDENT), timeout=60) as http:
        student = Visitor(lecture)
        student.http = http
        student.ask("Hello", max_tokens=4)
        lines = student.lines()
        assert lines[-1]["status"] == "done"
        run = next(line["run"] for line in lines if line["type"] == "header")

    async def shown() -> list[dict]:
        async with httpx.AsyncClient(timeout=60) as http:
            found = []
            async for _, line in _lines(http, lecture):
                found.append(line)
                if line["type"] == "over":
                    return found

    lecturer = Visitor(lecture)  # whoever comes late gets all of the last race
    lecturer.ask("Thanks", max_tokens=4)
    lecturer.lines()
    heard: list[dict] = []
    # a thread of its own: this one may have the browser tests' event loop
    listener = threading.Thread(target=lambda: heard.extend(asyncio.run(shown())))
    listener.start()
    listener.join(60)
    assert (
        next(line["run"] for line in heard if line["type"] == "header") != run
        and heard[0]["turns"][0][-1]["content"] == "Thanks"
    )


def test_the_lecturer_goes_first_and_the_others_are_told_how_many_are_ahead(lecture):
    ended, said = [], {}

    def ask(name: str, address: str, tokens: int) -> threading.Thread:
        def work() -> None:
            with httpx.Client(
                transport=httpx.HTTPTransport(local_address=address), timeout=120
            ) as http:
                visitor = Visitor(lecture)
                visitor.http = http
                visitor.ask("What is DMTD?", max_tokens=tokens, panels=2, temperature=50, seed=2)
                said[name] = [json.dumps(message) for message in visitor.messages()]
                ended.append(name)

        thread = threading.Thread(target=work)
        thread.start()
        time.sleep(0.3)  # so that they come in this order
        return thread

    threads = [
        ask("long", "127.0.0.3", 500),
        ask("again", "127.0.0.3", 4),
        ask("other", "127.0.0.4", 4),
        ask("lecturer", "127.0.0.1", 4),
    ]
    for thread in threads:
        thread.join(120)
    # "again" came before "other", after a race of its own
    assert ended == ["long", "lecturer", "other", "again"]
    waited = {
        name: any("waiting" in message for message in messages) for name, messages in said.items()
    }
    assert waited == {"long": False, "again": True, "other": True, "lecturer": True}


def test_students_load_and_train_nothing(lecture):
    config = httpx.get(f"{lecture}config").json()
    ids = {
        component["props"].get("elem_id"): component["props"] for component in config["components"]
    }
    assert "train" not in ids and ids["model-buttons"]["visible"] is False
    visitor = Visitor(lecture)
    assert "The models of this page are fixed" in str(visitor.call("prepare", ["classroom", "nf4"]))


def test_how_to_join_and_the_files(lecture):
    page = httpx.get(f"{lecture}class")
    assert (
        "connect-src 'self'" in page.text
        and "two &lt;b&gt;" in page.text
        and ">notes<" not in page.text
    )
    join = httpx.get(f"{lecture}class/join").text
    port = lecture.rstrip("/").rpartition(":")[2]
    assert (
        re.search(rf"http://[\d.]+:{port}/class<", join)
        and "<svg" in join
        and "<script" not in join
    )
    for number, name in enumerate(("one", "two <b>")):
        file = httpx.get(f"{lecture}class/files/{number}")
        assert (
            file.status_code == 200
            and file.headers["content-security-policy"].startswith("sandbox")
            and "header" in file.text
        ), name
    for path in (
        "class/files/2",
        "class/files/-1",
        "class/files/../notes.txt",
        "class/files/%2e%2e/notes.txt",
        "class/files/one.jsonl",
        "class/x",
    ):
        assert httpx.get(f"{lecture}{path}").status_code in (404, 405), path
    assert httpx.get(f"{lecture}classroom").status_code != 500


def test_it_asks_before_it_opens(saved):
    def ended(*options: str) -> tuple[int, str]:
        result = subprocess.run(
            [sys.executable, "app.py", "--no-browser", "--port", str(free_port()), *options],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
            stdin=subprocess.DEVNULL,
        )
        return result.returncode, result.stdout + result.stderr

    code, said = ended("--class")
    assert (
        code == 2
        and "by everybody in the network" in said
        and "/class/join" in said
        and said.endswith("nothing was opened\n")
    )
    assert ended("--yes") == (2, "app.py: --class-files and --yes need --class\n")
    code, said = ended("--class", "--share")
    assert code == 2 and "local network" in said


def test_files_that_are_no_races(tmp_path):
    with pytest.raises(UserError, match="needs a folder"):
        Lecture(str(tmp_path / "nowhere"))
    (tmp_path / "a.jsonl").write_text("{}")
    with pytest.raises(UserError, match="needs a header"):
        Lecture(str(tmp_path))
    (tmp_path / "a.jsonl").unlink()
    (tmp_path / "b.html").write_bytes(b"\x80")
    with pytest.raises(UserError, match="files that can be read; .*b.html gave: 'utf-8' codec"):
        Lecture(str(tmp_path))
    (tmp_path / "b.html").unlink()
    (tmp_path / "c.html").mkdir()
    with pytest.raises(UserError, match="c.html gave: .*Is a directory"):
        Lecture(str(tmp_path))
