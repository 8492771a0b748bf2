"""The string that carries a race to the page; no browser needed."""
from __future__ import annotations

import json

from dmtd_demo.ui.stream import WINDOW, Record


def read(text: str) -> tuple[int, list[str]]:
    head, *lines, rest = text.split("\n")
    assert rest == ""
    return json.loads(head)["first"], lines


def test_a_short_record_only_grows() -> None:
    record = Record("r")
    before = ""
    for number in range(50):
        record.add(json.dumps({"line": number}))
        assert record.window().startswith(before)
        before = record.window()
    assert record.window() == record.whole()


def test_a_long_record_drops_what_was_read_and_misses_nothing() -> None:
    record = Record("r")
    taken: list[str] = []   # as assets/race/race.js keeps it
    for number in range(4000):
        record.add(json.dumps({"line": number, "text": "x" * 80}))
        text = record.window()
        assert len(text) < 4 * WINDOW + 1000
        first, lines = read(text)
        assert first <= len(taken)
        taken += lines[len(taken) - first:]
    assert taken == record.lines
    assert read(record.whole()) == (0, record.lines)
