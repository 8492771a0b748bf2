"""Consoles that lack characters, libraries that write on standard error too, and files of other
systems.
"""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
import warnings
from pathlib import Path
from xml.etree import ElementTree

import pytest

from dmtd_demo import Comparison
from dmtd_demo.__main__ import main
from dmtd_demo.cli import page
from dmtd_demo.cli.streams import alone, one_line
from dmtd_demo.errors import UserError
from dmtd_demo.measure.evaluation import read_tasks
from dmtd_demo.text_files import MARKS, read_text

ROOT = Path(__file__).resolve().parents[2]
ENCODINGS = ("ascii", "cp1252", "utf-8")


def said(
    monkeypatch: pytest.MonkeyPatch, encoding: str, *arguments: str, command=main
) -> tuple[object, bytes, bytes]:
    """The exit code of a command and what it wrote, on a console that is as strict as there is one."""
    out, err = io.BytesIO(), io.BytesIO()
    with monkeypatch.context() as here:
        here.setattr(sys, "stdout", io.TextIOWrapper(out, encoding, "strict"))
        here.setattr(sys, "stderr", io.TextIOWrapper(err, encoding, "strict"))
        here.setattr(sys, "argv", ["app.py", *arguments])
        try:
            code = command(list(arguments)) if command is main else command()
        except SystemExit as stop:
            code = stop.code
        sys.stdout.flush()
        sys.stderr.flush()
        # both are closed as their wrappers go
        return code, out.getvalue(), err.getvalue()


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_no_console_ends_a_command(monkeypatch, encoding, model_folder):
    for arguments in (("models",), ("--help",), ("project", "--help"), ("compare", "--help")):
        code, out, err = said(monkeypatch, encoding, *arguments)
        assert code in (0, None) and len(out.decode(encoding)) > 200 and not err
    code, out, _ = said(monkeypatch, encoding, "--help", command=page.main)
    assert code == 0 and (b"\\u2026" in out) == (encoding == "ascii")

    asked = ("--model", str(model_folder), "--prompt", "τ = 你好, 😀", "--max-new-tokens", "2")
    code, out, err = said(monkeypatch, encoding, "generate", *asked, "--json")
    header = json.loads(out.decode("utf-8").splitlines()[0])
    assert (code, header["prompt"], err) == (0, "τ = 你好, 😀", b"")
    code, out, _ = said(monkeypatch, encoding, "draw", *asked, "--panel", "ar")
    assert code == 0 and ElementTree.fromstring(out.decode("utf-8")).tag.endswith("svg")

    code, _, err = said(
        monkeypatch, encoding, "generate", "--model", "models/你好\x1b[2J\n你", "--prompt", "x"
    )
    assert code == 2 and err.count(b"\n") == 1 and b"\x1b" not in err
    code, _, err = said(monkeypatch, encoding, "--panel", "你\n好", command=page.main)
    assert code == 2 and err.count(b"\n") == 1


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_text_of_a_model_is_printed_with_what_is_lacking_escaped(monkeypatch, encoding):
    def write(options):
        print("é ≥ 你 😀 \ud83d")

    monkeypatch.setitem(sys.modules["dmtd_demo.cli.command"].COMMANDS, "models", write)
    code, out, _ = said(monkeypatch, encoding, "models")
    wanted = {
        "ascii": "\\u00e9 \\u2265 \\u4f60 \\ud83d\\ude00 \\ud83d\n",
        "cp1252": "é \\u2265 \\u4f60 \\ud83d\\ude00 \\ud83d\n",
        "utf-8": "é ≥ 你 😀 \\ud83d\n",
    }
    assert code == 0 and out.decode(encoding) == wanted[encoding]


def test_a_real_process_of_a_console_that_has_ascii_alone(model_folder):
    """One line on standard error for a prompt of 20,000 words, which a library warns of too."""
    done = subprocess.run(
        [sys.executable, "-m", "dmtd_demo", "generate", "--model", str(model_folder)]
        + ["--prompt", "wörd " * 20_000],
        env={"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PATH": "", "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.count(b"\n") == 1 and b"context of 512" in done.stderr


def test_libraries_are_silent_beside_a_command_unless_they_are_asked(monkeypatch, capsys):
    log = logging.getLogger("transformers.somewhere")

    def talk():
        warnings.warn("deprecated", stacklevel=2)
        log.warning("Token indices sequence length is longer")
        logging.getLogger("elsewhere").error("nobody listens")
        logging.warning("at the root")

    monkeypatch.setattr(sys, "warnoptions", [])
    monkeypatch.delenv("TRANSFORMERS_VERBOSITY", raising=False)
    with alone():
        talk()
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "info")
    with alone(), pytest.warns(UserWarning, match="deprecated"):
        talk()
    assert not logging.root.manager.disable


def test_a_reader_that_has_gone_is_no_fault_of_the_file(monkeypatch, capsys):
    """As `report … | head` has it."""

    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    with monkeypatch.context() as here:
        here.setattr(sys, "stdout", Gone())
        here.setattr(sys, "stderr", errors := io.StringIO())
        here.setattr(errors, "close", lambda: None)
        assert main(["report", str(ROOT / "assets/classroom/results.json")]) == 1
    assert not errors.getvalue()


def test_a_message_is_one_line_without_control_characters():
    assert one_line("a\n b\r\nc\x1b[0m \x00\u202e\ud800 é\U000e0001") == (
        "a b c\\u001b[0m \\u0000\\u202e\\ud800 é\\U000e0001"
    )


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32", "utf-16-be", "utf-8"])
def test_files_of_other_systems_are_read(tmp_path, encoding, capsys):
    mark = next((mark for mark, name in MARKS if name == encoding and "be" in name), b"")
    path = tmp_path / "file.jsonl"

    def write(text: str) -> str:
        path.write_bytes(mark + text.replace("\n", "\r\n").encode(encoding))
        return str(path)

    assert read_text(write("é\n你\u2028好\n")) == "é\n你\u2028好\n"
    task = json.dumps({"prompt": "你好\u2028\x85", "answer": "é"}, ensure_ascii=False)
    tasks = read_tasks(write(f"{task}\n\n\ufeff{task}\n"), 9)
    assert tasks == [("all", [{"role": "user", "content": "你好\u2028\x85"}], "é")] * 2
    race = Comparison.open(
        write(
            '{"type": "header", "schema": 1, "prompt": "\u2028é", "panels": '
            '[{"panel": 0, "spec": "ar"}]}\n'
        )
    )
    assert race.records[0]["prompt"] == "\u2028é"
    assert Comparison.open(write(json.dumps(race.records))).records == race.records
    results = read_text(ROOT / "assets" / "classroom" / "results.json")
    assert main(["report", write(results)]) == 0 and "| `ar` |" in capsys.readouterr().out


def test_bytes_that_are_no_text_are_said(tmp_path):
    path = tmp_path / "file.jsonl"
    for data in (b"\xff\xfeabc", b"\xff", b"PAR1\x80", b"\xef\xbb\xbf\xff", b"[" * 100_000):
        path.write_bytes(data)
        with pytest.raises(UserError):
            read_tasks(str(path), 1)
        with pytest.raises(UserError):
            Comparison.open(path)
        assert main(["report", str(path)]) == 2
