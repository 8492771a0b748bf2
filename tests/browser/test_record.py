"""The string that carries a race to the page; no browser needed."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from dmtd_demo.web.wire import READ, WireRecord


def read(text: str) -> tuple[int, list[str]]:
    head, *lines, rest = text.split("\n")
    assert rest == ""
    return json.loads(head)["first"], lines


def test_a_short_record_only_grows() -> None:
    record = WireRecord("r")
    before = ""
    for number in range(50):
        record.add(json.dumps({"line": number}))
        assert record.window(number).startswith(before)
        before = record.window(number)
    assert record.window(50) == record.whole()


@given(
    st.lists(st.tuples(st.integers(1, 40), st.booleans(), st.booleans()), max_size=400),
    st.integers(10, 3000),
)
def test_a_page_that_lags_misses_nothing(events: list[tuple[int, bool, bool]], size: int) -> None:
    """Of each event: how many lines it brought, whether the page saw it, and whether it then said
    what it has.
    """
    record = WireRecord("r")
    taken: list[str] = []  # as assets/race/race.js keeps it
    said = 0
    for count, seen, says in events:
        for _ in range(count):
            record.add(json.dumps({"line": len(record.lines), "text": "x" * size}))
        text = record.window(said)
        first, lines = read(text)
        assert first <= len(taken) and taken[first:] == lines[: len(taken) - first]
        if seen:
            taken += lines[len(taken) - first :]
            assert taken == record.lines
        said = len(taken) if says else said
    assert read(record.window(said))[0] <= said
    assert read(record.whole()) == (0, record.lines)


def test_a_page_that_keeps_up_gets_short_strings() -> None:
    record = WireRecord("r")
    for number in range(4000):
        record.add(json.dumps({"line": number, "text": "x" * 80}))
        assert len(record.window(number)) < READ + 1000
    record.add("x" * READ)
    assert read(record.window(10**9)) == (4001, [])  # more than there are
