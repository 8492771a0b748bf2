"""The hub, as far as a machine without network can try it: its answers come from a server of the
test's own, through huggingface_hub itself.
"""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from http.server import ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants
import pytest

from dmtd_demo.errors import UserError
from dmtd_demo.measure.availability import describe_model, lines
from dmtd_demo.models import hub
from dmtd_demo.models.addons import MTPHeads, save_addon
from dmtd_demo.models.catalog import CATALOG
from dmtd_demo.models.download import download
from dmtd_demo.models.finding import entry_of, find
from dmtd_demo.models.loading import load
from dmtd_demo.race.panels import parse_panel
from dmtd_demo.race.race import race_ids
from dmtd_demo.race.settings import RaceSettings
from gguf_files import write
from hub_server import COMMIT, Hub
from tiny import tiny_module


@pytest.fixture
def server(model_folder, monkeypatch, tmp_path):
    handler = type("Handler", (Hub,), {"folder": model_folder})
    served = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    address = handler.address = f"http://127.0.0.1:{served.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    monkeypatch.setattr(
        huggingface_hub.constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        address + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    yield handler
    served.shutdown()


@pytest.mark.parametrize(
    "name,word",
    [
        ("gated", "is gated: accept its terms on http.*me/gated"),
        ("missing", "neither a folder here nor a repository"),
        ("broken", "cannot be reached"),
    ],
)
def test_what_the_hub_refuses_is_a_sentence(server, name, word):
    with pytest.raises(UserError, match=word):
        load(f"me/{name}")


def test_without_the_hub_the_sentence_says_what_to_do():
    for name in ("Qwen3-0.6B", "someone/some-qwen"):
        with pytest.raises(
            UserError,
            match="needs to be fetched from the hub, which cannot be reached.*hf download",
        ):
            load(name)


def test_a_model_and_addons_of_the_hub(server, model_folder):
    model = load("me/tiny")
    assert (
        model.name == "me/tiny"
        and model.base.revision == COMMIT
        and model.base.fingerprint == load(str(model_folder)).base.fingerprint
    )
    texts = [
        [
            t["id"]
            for batch in race_ids(
                m, [parse_panel("dmtd")], [[1, 2, 3]], RaceSettings(max_new_tokens=8, audit=False)
            )
            for r in batch
            if r["type"] == "step"
            for t in r["tokens"]
        ]
        for m in (model, load(str(model_folder)))
    ]
    assert texts[0] == texts[1]


def test_add_ons_that_are_published_for_a_model_come_with_it(
    server, model_folder, tmp_path, monkeypatch
):
    plain = load("me/tiny")
    assert not plain.addons
    save_addon(
        tmp_path / "published",
        "mtp_heads",
        MTPHeads(plain.backbone.hidden_size, 4),
        plain.base,
        plain.backbone.hidden_size,
    )
    entry = replace(entry_of(find("me/tiny")), name="tiny")
    for addons, has, words in (
        (str(tmp_path / "published"), True, ""),
        (
            "me/missing",
            False,
            "without the add-ons that are published for it: me/missing is neither",
        ),
        (None, False, ""),
    ):
        monkeypatch.setitem(CATALOG, "tiny", replace(entry, addons=addons))
        model = load("tiny")
        assert model.has("mtp_heads") == has and words in " ".join(model.reasons)
    [said] = [
        line
        for line in lines(describe_model(replace(entry, addons="me/addons"), "cpu"))
        if "not yet" in line
    ]
    assert "the add-ons published for it, me/addons, will be fetched with it" in said


def test_what_the_disk_has_no_room_for_is_not_fetched(server):
    server.claimed = {"model.safetensors": 2**60}
    with pytest.raises(
        UserError, match="me/tiny needs 1,073,741,824.* GiB of disk; .* has .* to spare"
    ):
        load("me/tiny")
    assert not list(Path(hub.constants.HF_HUB_CACHE).rglob("model.safetensors"))


def test_a_file_that_has_begun_counts_before_its_first_bytes(server, monkeypatch, tmp_path):
    """The weights begin when all else is there, and nothing comes of them yet: the bar has to stand
    in between, not at its end.
    """
    files = [
        path
        for path in server.folder.rglob("*")
        if path.suffix in (".json", ".txt", ".jinja", ".safetensors")
    ]
    size, others = (
        sum(path.stat().st_size for path in files),
        {path.name for path in files if path.suffix != ".safetensors"},
    )
    begun, sent, ended = set(), threading.Event(), threading.Event()
    whole = Hub.reply

    def reply(self, code, content, headers, body):
        name = self.path.rpartition("/")[2]
        if not (body and name.endswith(".safetensors")):
            whole(self, code, content, headers, body)
            if body and name in others:
                begun.add(name)
            if begun == others:
                sent.set()
            return
        sent.wait(60)
        time.sleep(1)  # until the others are written and told of
        self.send_response(code)
        for header, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(header, value)
        self.end_headers()
        ended.wait(60)
        self.wfile.write(content)

    monkeypatch.setattr(server, "reply", reply)
    for name, value in {
        "HF_HUB_OFFLINE": "0",
        "HF_ENDPOINT": server.address,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
    }.items():
        monkeypatch.setenv(name, value)
    told = []

    def progress(stage: str, done: int, total: int) -> None:
        told.append((done, total))
        if 0 < done < total == size:
            ended.set()

    threading.Timer(30, ended.set).start()
    download("me/tiny", progress)
    assert any(0 < done < total == size for done, total in told), told[-5:]
    assert told[-1] == (size, size)


@pytest.fixture
def file_server(server, tmp_path):
    """The same with a GGUF file, `me/tiny:sub/tiny.gguf`, and how many bytes of it were sent."""
    folder = tmp_path / "files"
    (folder / "sub").mkdir(parents=True)
    # weights enough that none of them come along with the header
    module = tiny_module("qwen2", vocab_size=2**17, hidden_size=64)
    write(folder / "sub" / "tiny.gguf", module, "qwen2")
    server.folder = folder
    return server


def test_of_a_gguf_file_on_the_hub_the_header_is_read_and_then_the_file(
    file_server, monkeypatch, tmp_path
):
    name = "me/tiny:sub/tiny.gguf"
    sent = []

    def reply(self, code, content, headers, body):
        self.send_response(code)
        for header, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(header, value)
        self.end_headers()
        for start in range(0, len(content) if body else 0, 2**16):
            try:
                self.wfile.write(content[start : start + 2**16])
            except ConnectionError:  # whoever asked has read enough
                return
            sent.append(2**16)

    monkeypatch.setattr(file_server, "reply", reply)
    found = find(name)
    assert found.source == found.name == name and found.file.path is None
    assert found.config.vocab_size == 2**17
    size = (file_server.folder / "sub" / "tiny.gguf").stat().st_size
    assert size > 32 * 2**20 and sum(sent) < size / 2, (sum(sent), size)
    entry = entry_of(found)
    assert entry.stored == size and not describe_model(entry, "cpu")["here"]
    model = load(name)
    assert model.name == name and model.base.name == "me/tiny" and model.base.revision == COMMIT
    assert model.folder.is_file() and describe_model(entry, "cpu")["here"]
    assert find(name).file.path == model.folder


@pytest.mark.parametrize(
    "name,words",
    [
        ("me/tiny:no.gguf", "needs the hub, which answered|has none|neither a folder"),
        ("me/missing:tiny.gguf", "neither a folder here nor a repository"),
        ("me/gated:tiny.gguf", "is gated"),
        ("me/tiny:../../x.gguf", "is none of them"),
        ("me/tiny:model.safetensors", "is none of them"),
    ],
)
def test_a_gguf_file_that_cannot_be_had_is_told(file_server, name, words):
    with pytest.raises(UserError, match=words):
        find(name)


@pytest.mark.parametrize(
    "text,parts",
    [
        ("Qwen/Qwen3-0.6B", ("Qwen/Qwen3-0.6B", None)),
        ("me/it:a.Q4_K_M.gguf", ("me/it", "a.Q4_K_M.gguf")),
        ("me/it:sub/a.GGUF", ("me/it", "sub/a.GGUF")),
        ("me/it:", None),
        ("me/it:/etc/a.gguf", None),
        ("me/it:sub/../../a.gguf", None),
        ("C:/models/a.gguf", None),
        ("classroom", None),
    ],
)
def test_a_source_is_a_hub_id_and_perhaps_a_file(text, parts):
    assert hub.split(text) == parts
