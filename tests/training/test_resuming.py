"""What an interrupted run left: read again, or refused in a sentence."""

from __future__ import annotations

import json

import pytest

from dmtd_demo.errors import UserError
from dmtd_demo.training.resuming import kept_lines, kept_state


def test_a_line_that_was_cut_off_is_taken_off_the_file(tmp_path):
    file = tmp_path / "draws.jsonl"
    assert kept_lines(file) == []
    whole = [{"a": 1}, {"b": "next line \u2028 within"}]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in whole)
    # within a character too
    for cut in (b'{"c": ', b'{"c": "\xc3'):
        file.write_bytes(text.encode() + cut)
        assert kept_lines(file) == whole
        assert file.read_text(encoding="utf-8") == text


@pytest.mark.parametrize("damaged", [b"{", b"[1]", b"", b"\xff\xfe\xff", b"[" * 100_000])
def test_what_is_damaged_is_refused_in_a_sentence(damaged, tmp_path):
    file = tmp_path / "kept"
    file.write_bytes(damaged)
    with pytest.raises(UserError, match="interrupted run, needs to be a JSON object"):
        kept_state(file)
    file.write_bytes(b'{"a": 1}\n' + damaged + b"\n")
    with pytest.raises(UserError, match="interrupted run, needs to be a JSON object"):
        kept_lines(file)


@pytest.mark.parametrize(
    ("written", "cause"),
    [
        ('{"n": 1}', "it has no rows"),
        ('{"n": 1, "rows": []}', "rows is empty"),
        ('{"n": true, "rows": [{"of": 1}]}', "n is 'True', no int"),
        ('{"n": 1, "rows": [{"of": 1}, {"of": "two"}]}', "of is 'two', no float"),
    ],
)
def test_an_object_of_another_form_is_refused_in_a_sentence(written, cause, tmp_path):
    file, form = tmp_path / "kept", {"n": int, "rows": [{"of": float}]}
    whole = {"n": 1, "rows": [{"of": 0.5}, {"of": 1}], "more": None}
    file.write_text(json.dumps(whole) + "\n")
    assert kept_state(file, form) == whole and kept_lines(file, form) == [whole]
    file.write_text(f"{json.dumps(whole)}\n{written}\n")
    with pytest.raises(UserError, match=f"kept line 2, from an interrupted run, .*{cause}"):
        kept_lines(file, form)
    file.write_text(written)
    with pytest.raises(UserError, match=f"from an interrupted run, .*: {cause}"):
        kept_state(file, form)
