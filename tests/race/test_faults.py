"""What breaks under a running app: memory, files, the process itself.

Each fault is a named error with what to do; everything else goes on.

Memory is limited for a process of the test's own (RLIMIT_AS), so that PyTorch's allocator itself
says no.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from app_process import ROOT, Visitor, running_app
from dmtd_demo.errors import UserError, is_out_of_memory
from dmtd_demo.race import local
from dmtd_demo.race.panels import PanelSpec
from dmtd_demo.race.race import race_ids
from dmtd_demo.race.settings import RaceSettings
from tiny import tiny_model

LIMITED = """
import json, resource, sys
sys.path.insert(0, "tests")
import psutil, torch
torch.set_num_threads(1)
from dmtd_demo.race.panels import PanelSpec
from dmtd_demo.errors import UserError
from dmtd_demo.models.loading import load
from dmtd_demo.race.race import race_ids
from dmtd_demo.race.settings import RaceSettings
from tiny import tiny_model

def limit(megabytes):
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + megabytes * 2**20, resource.RLIM_INFINITY))
"""


def limited(code: str, *arguments: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED + code, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory of a process as Linux does")
def test_out_of_memory_while_decoding_ends_that_panel_and_gives_the_memory_back():
    first, second, last = map(
        json.loads,
        limited("""
model = tiny_model(max_position_embeddings=65536, num_key_value_heads=4, num_attention_heads=4, head_dim=512, layers=8)   # 128 KiB of cache for each position
def run(prompt, tokens):
    records = [record for batch in race_ids(model, [PanelSpec("ar")] * 2, prompt, RaceSettings(max_new_tokens=tokens)) for record in batch]
    print(json.dumps([(r["stop"], r.get("message", ""), r["tokens"]) for r in records if r["type"] == "summary"]))
run([[1], [1]], 4)
limit(300)
run([[1] * 6000, [1]], 4)
run([[1], [1]], 4)
"""),
    )
    assert [stop for stop, _, _ in first] == ["length", "length"]
    (stop, message, _), other = second
    assert stop == "error" and "ran out of memory: fewer panels" in message
    assert other == ["length", "", 4] and last == first, "the other panel, and the next race, go on"


@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory of a process as Linux does")
def test_a_model_that_the_memory_does_not_hold_is_refused_with_the_arithmetic_or_in_words(tmp_path):
    tiny_model(vocab_size=120_000, hidden_size=512).backbone.module.save_pretrained(tmp_path)
    refused, failed, fitting = limited(
        """
from tiny import tiny_module
tiny_module("qwen3").save_pretrained(sys.argv[2])
load(sys.argv[2])   # what PyTorch and transformers take once
def tell(**settings):
    try:
        return load(**settings).name
    except UserError as error:
        return str(error)
limit(330)
print(tell(name=sys.argv[1]))
limit(100)
print(tell(name=sys.argv[1], spare=2**40))   # as if others gave their memory up, and did not
limit(2000)
print(tell(name=sys.argv[1]))
""",
        str(tmp_path),
        str(tmp_path / "small"),
    )
    assert "for its weights +" in refused and "free:" in refused
    assert "memory" in failed and "take a smaller model" in failed
    assert fitting == tmp_path.name


def test_a_device_without_memory_is_said_in_that_panel(monkeypatch):
    """As CUDA's allocator raises it, at the edge where the cache asks for memory."""

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    model = tiny_model()
    with monkeypatch.context() as patch:
        patch.setattr("dmtd_demo.backbone.cache.KVCache._grow", full)
        records = [
            record
            for batch in race_ids(
                model, [PanelSpec("ar")], [[1, 2]], RaceSettings(max_new_tokens=3)
            )
            for record in batch
        ]
    assert "ran out of memory" in records[-1]["message"]
    again = [
        record
        for batch in race_ids(model, [PanelSpec("ar")], [[1, 2]], RaceSettings(max_new_tokens=3))
        for record in batch
    ]
    assert again[-1]["stop"] == "length"


def test_an_audit_without_memory_leaves_the_text(monkeypatch):
    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(local, "audit_ids", full)
    summary = [
        record
        for batch in race_ids(
            tiny_model(), [PanelSpec("ar")], [[1, 2]], RaceSettings(max_new_tokens=3)
        )
        for record in batch
    ][-1]
    assert (
        summary["stop"] == "length"
        and summary["tokens"] == 3
        and summary["audit_agreement"] is None
    )


def test_what_counts_as_out_of_memory():
    assert is_out_of_memory(OSError(12, "Cannot allocate memory")) and is_out_of_memory(
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")
    )
    assert not is_out_of_memory(UserError("the memory ran out of memory")) and not is_out_of_memory(
        ValueError("a tensor went missing")
    )


def test_a_folder_that_is_removed_under_a_running_app(model_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    with running_app(tmp_path, "--model", str(folder)) as (url, _):
        shutil.rmtree(folder)
        visitor = Visitor(url)
        visitor.ask("Hello", max_tokens=5, panels=2)
        assert visitor.lines()[-1] == {"type": "over", "status": "done", "message": ""}
        words = visitor.call("look", ["another", str(folder)])
        assert "no model" in words[0] or "is none of them" in words[0], words
        visitor.ask("Hello", max_tokens=5, panels=2)
        assert visitor.lines()[-1]["status"] == "done"
    assert "Traceback" not in (tmp_path / "app.log").read_text()


def test_what_was_imported_is_never_collected_in_a_race():
    """A full collection over it took a quarter of a second of some panel's clock."""
    script = (
        "import gc, sys, dmtd_demo.cli.page as page, dmtd_demo.ui.serve as serving; sys.argv = "
        "['app.py', '--no-browser', '--threads', '1']; "
        "serving.serve = lambda *args, **settings: print(gc.isenabled(), gc.get_freeze_count(), "
        "len(gc.get_objects())); page.main()"
    )
    enabled, frozen, left = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert enabled == "True" and int(frozen) > 3 * int(left)


def test_sigterm_in_a_race_ends_the_app_at_once(tmp_path: Path):
    with running_app(tmp_path) as (url, process):
        visitor = Visitor(url)
        # noise, which does not end by itself
        visitor.ask(
            "Tell me a story about Iris, a fox and a red lantern in the forest.",
            max_tokens=2000,
            temperature=50,
            seed=2,
        )
        for message in visitor.messages():
            if message["msg"] == "process_generating":
                break
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(30) == 0
    assert "Traceback" not in (tmp_path / "app.log").read_text()
