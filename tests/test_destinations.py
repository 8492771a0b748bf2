"""Wherever a user names a place for results: it is made, or refused in a sentence at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import pytest

from dmtd_demo.cli.command import main
from dmtd_demo.comparison import Comparison
from dmtd_demo.destinations import check_folder, make_folder, write_text
from dmtd_demo.errors import UserError
from dmtd_demo.training.any_model import DMTDSettings, Settings, train_addon, train_dmtd
from dmtd_demo.training.hybrid import run as hybrid
from dmtd_demo.training.run import Training, train_recipe
from tiny import tiny_model

ANYBODY = 65534
COMMANDS = (
    ["train", "classroom"],
    ["train", "classroom-hybrid"],
    ["train", "heads", "--model", "not-loaded"],
    ["train", "dmtd", "--model", "not-loaded"],
    ["train", "data", "--model", "not-loaded"],
    ["train", "all", "--model", "not-loaded"],
)


@contextmanager
def as_anybody() -> Iterator[None]:
    """Be a user who owns nothing, where this one is root, who may write everything."""
    if os.geteuid():
        yield
        return
    os.setresuid(ANYBODY, ANYBODY, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


def refused(tmp_path: Path) -> list[tuple[Path, str]]:
    """Return places at which no folder can be, and a word of the reason for each."""
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "locked").mkdir(mode=0o500)
    return [
        (tmp_path / "file", "no folder"),
        (tmp_path / "file" / "below" / "it", "no folder"),
        (tmp_path / "link", "no folder"),
        (
            tmp_path / "locked" / "new",
            "permission denied" if os.geteuid() == 0 else "may not be written",
        ),
        (tmp_path / "nul\0", "null"),
        (tmp_path / ("x" * 300), "name too long"),
    ]


def said_by(work: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        work()
    return str(caught.value).lower()


WRITERS: dict[str, Callable[[Path], object]] = {
    "check_folder": check_folder,
    "make_folder": make_folder,
    "write_text": lambda place: write_text(place / "a.txt", "text"),
    "save": lambda place: Comparison([]).save(place / "race.jsonl"),
    "heads": lambda place: train_addon("heads", tiny_model(), place, Settings()),
    "dmtd": lambda place: train_dmtd(tiny_model(), place, DMTDSettings()),
    "classroom": lambda place: train_recipe("classroom", Training(place)),
    "hybrid": lambda place: hybrid.train(hybrid.Settings(place)),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_place_where_nothing_can_be_written_is_refused(writer: str, tmp_path: Path) -> None:
    for place, word in refused(tmp_path):
        with as_anybody() if "locked" in place.parts else nullcontext():
            assert word in said_by(partial(WRITERS[writer], place)), place
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link", "locked"]


def test_the_command_line_says_so_before_it_loads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place, word in refused(tmp_path):
        for command in COMMANDS:
            with as_anybody() if "locked" in place.parts else nullcontext():
                assert main([*command, "--output", str(place)]) == 2
            out, err = capsys.readouterr()
            assert not out and word in err.lower() and err.count("\n") == 1, (place, err)


def test_a_file_s_folders_are_made_and_a_folder_is_no_file(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b" / "c.txt", "é")
    assert (tmp_path / "a" / "b" / "c.txt").read_text(encoding="utf-8") == "é"
    Comparison([]).save(tmp_path / "d" / "race.html")
    assert (tmp_path / "d" / "race.html").stat().st_size
    assert "is a folder" in said_by(lambda: write_text(tmp_path / "a", ""))
    check_folder(tmp_path / "e" / "f")
    assert not (tmp_path / "e").exists() and make_folder(tmp_path / "e" / "f").is_dir()
