"""`python app.py` as a process of its own, and a visitor of it who speaks the page's own protocol."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

ROOT = Path(__file__).resolve().parents[1]
START_SECONDS = 180
ANSWER_SECONDS = 300


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def running_app(
    folder: Path,
    *options: str,
    script: str = "app.py",
    measured: bool = False,
    command: Path | None = None,
    **environment: str,
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The address of a page and its process; its output is in `folder`/app.log.

    environment: what differs from the tests' own. measured: it finds out itself how many threads
    are fastest. command: an installed one, run in `folder` in place of the checkout's script.
    """
    port = free_port()
    log = folder / "app.log"
    if script == "app.py" and not measured and "--threads" not in options:
        # not measured anew for every app: up to two seconds on a busy machine
        options = (*options, "--threads", "1")
    with log.open("w") as output:
        process = subprocess.Popen(
            [
                *([command] if command else [sys.executable, script]),
                *("--no-browser", "--port", str(port), *options),
            ],
            cwd=folder if command else ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={
                **os.environ,
                "HF_HUB_OFFLINE": "1",
                "GRADIO_TEMP_DIR": str(folder / "gradio"),
                **environment,
            },
        )
    url = f"http://127.0.0.1:{port}/"
    try:
        _wait_for(url, process, log)
        yield url, process
    finally:
        process.terminate()
        process.wait(60)
        with suppress(ProcessLookupError):  # its forks, which a ZeroGPU Space leaves waiting
            os.killpg(process.pid, signal.SIGKILL)


@contextmanager
def opening_app(folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """As a newcomer starts it: the process, and the address that it opens in the browser, as soon
    as it does so.
    """
    opened, log = folder / "opened", folder / "app.log"
    browser = (
        f"{shlex.quote(sys.executable)} -c "
        f"{shlex.quote('import sys; open(sys.argv[1], chr(119)).write(sys.argv[2])')} "
        f"{shlex.quote(str(opened))} %s"
    )
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "app.py", "--port", str(free_port()), *options],
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "BROWSER": browser, "HF_HUB_OFFLINE": "1"},
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not (opened.exists() and opened.read_text()):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        yield process, opened.read_text()
    finally:
        process.terminate()
        process.wait(60)


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            pytest.fail(f"app.py ended with {process.returncode}: {log.read_text()[-2000:]}")
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"app.py did not answer within {START_SECONDS} s: {log.read_text()[-2000:]}")


class Visitor:
    """One open page, without a browser: its own session, the controls as they stand at first.

    headers: of all its requests, such as those of a front.
    """

    def __init__(self, url: str, headers: dict[str, str] | None = None) -> None:
        self.url = url.rstrip("/")
        self.session = uuid.uuid4().hex
        # loopback without TLS: the certificates, which take 20 ms to load, are not needed
        self.http = httpx.Client(timeout=ANSWER_SECONDS, verify=False, headers=headers)
        config = self.http.get(f"{self.url}/config").json()
        components = {component["id"]: component["props"] for component in config["components"]}
        self.functions = {function["api_name"]: function for function in config["dependencies"]}
        self.race = self.functions["race"]
        # gathers the controls, in the browser alone
        pressed = next(
            function
            for function in config["dependencies"]
            if function["id"] == self.race["trigger_after"]
        )
        self.values = [components[index].get("value") for index in pressed["inputs"]]
        self.places = {
            components[index].get("elem_id"): place for place, index in enumerate(pressed["inputs"])
        }

    def ask(self, prompt: str, **settings: Any) -> str:
        """Run.

        settings: by element id, with _ for -. Returns the id of the race; `lines` has what comes.
        Raises httpx.HTTPStatusError where the queue is full.
        """
        run = uuid.uuid4().hex
        values = list(self.values)
        for name, value in {"prompt": prompt, **settings}.items():
            values[self.places[name.replace("_", "-")]] = value
        self._send(self.race, [json.dumps([run, "", values]), None])
        return run

    def call(self, name: str, values: list[Any]) -> list[Any]:
        """What another function of the page answers; Gradio's own complaint where it does not let
        the values pass.
        """
        self._send(self.functions[name], values)
        output = list(self.messages())[-1]["output"]
        return output["data"] if "data" in output else [output["error"]]

    def stop(self, run: str) -> None:
        self._send(self.functions["request_stop"], [run])

    def _send(self, function: dict[str, Any], values: list[Any]) -> None:
        self.http.post(
            f"{self.url}/gradio_api/queue/join",
            json={
                "data": values,
                "fn_index": function["id"],
                "session_hash": self.session,
                "event_data": None,
                "trigger_id": None,
            },
        ).raise_for_status()

    def messages(self, ends: int = 1) -> Iterator[dict[str, Any]]:
        """What the queue sends, until the race is over.

        ends: of how many events; whoever leaves earlier ends the race.
        """
        with self.http.stream(
            "GET", f"{self.url}/gradio_api/queue/data", params={"session_hash": self.session}
        ) as events:
            for line in events.iter_lines():
                if line.startswith("data:"):
                    message = json.loads(line[5:])
                    yield message
                    ends -= message["msg"] == "process_completed"
                    if not ends or message["msg"] == "close_stream":
                        return

    def lines(self) -> list[dict[str, Any]]:
        """The whole record of the race, and the line that ends it."""
        completed = list(self.messages())[-1]
        # the first only says where the record begins
        return [json.loads(line) for line in completed["output"]["data"][0].splitlines()[1:]]
