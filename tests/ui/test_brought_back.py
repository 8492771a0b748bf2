"""A chat that the page remembered over a reload: what the server takes of it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dmtd_demo.errors import UserError
from dmtd_demo.models.loading import load
from dmtd_demo.models.residents import Residents
from dmtd_demo.server.allowance import PUBLIC
from dmtd_demo.ui.chat import answered, brought_back
from dmtd_demo.ui.page import Page
from dmtd_demo.web.wire import layout

SYSTEM = {"role": "system", "content": "Be brief."}
ASKED = {"role": "user", "content": "1 + 1?"}
TWO = {"role": "assistant", "content": "2\x0c"}
AND = {"role": "user", "content": "And 2 + 2?"}


def test_a_chat_is_what_it_was() -> None:
    turns = [[SYSTEM, ASKED, TWO, AND], [SYSTEM, AND]]
    back = brought_back(turns, ["4", ""], 100)
    # as the race itself would have left it; a question without an answer is left out
    assert back == answered([[ASKED, TWO, AND], [AND]], ["4", ""])
    assert back.turns == [[ASKED, TWO, AND, {"role": "assistant", "content": "4"}], []]
    assert back.prompt == "And 2 + 2?"


@pytest.mark.parametrize(
    "turns,answers",
    [
        (None, None),
        ({}, {}),
        ([], []),
        ([[ASKED]], []),
        ([[ASKED]], [None]),
        ([[ASKED]], "x"),
        ([[ASKED]] * 5, ["x"] * 5),
        ([[]], ["x"]),
        ([[ASKED, TWO]], ["x"]),
        ([[TWO, ASKED, TWO]], ["x"]),
        ([[{"role": "user"}]], ["x"]),
        ([[{"role": "user", "content": 7}]], ["x"]),
        ([[{"role": "user", "content": "a\x00"}]], ["x"]),
        ([[{"role": "user", "content": " "}]], ["x"]),
        ([[{"role": "tool", "content": "x"}]], ["x"]),
        ([["x"]], ["x"]),
        ([[{**ASKED, "content": "x" * 101}]], ["x"]),
        ([[ASKED]], ["x" * 101]),
    ],
)
def test_what_this_page_never_made_is_refused(turns: Any, answers: Any) -> None:
    with pytest.raises(UserError):
        brought_back(turns, answers, 100)


def test_controls_come_back_as_far_as_they_can_be(model_folder) -> None:
    page = Page(Residents(load(str(model_folder))))
    page.build()
    values = [
        *("a draft", 2, 64, 17, 0.5, 5, 0.9, "Be brief.", False),
        *(part.value for part in page.layout.row.inputs),
    ]
    talk = {"turns": [[ASKED]], "answers": ["2"]}
    nothing = page.showing.brought_back("{", PUBLIC)

    def brought(*kept: Any) -> list[Any]:
        found = page.showing.brought_back(json.dumps(kept), PUBLIC)
        assert len(found) == len(nothing)
        return found

    found = brought(values, talk)
    assert found[:9] == ["a draft", 2, 64, 17, 0.5, 5, 0.9, "Be brief.", False]
    assert found[-2] == layout(2) and found[-1].prompt == "1 + 1?"
    half = [*values[:2], None, *values[3:]]
    found = brought(half, talk)
    assert found[0] == "a draft" and found[1:-1] == nothing[1:-1] and found[-1].prompt
    # the chat of another page, and a page without a chat
    assert brought(values, {"turns": [[TWO]], "answers": [""]})[:9] == brought(values, None)[:9]
    for other in (1, [], [1, 2, 3], [values, 7], "x", None):
        assert page.showing.brought_back(json.dumps(other), PUBLIC) == nothing
