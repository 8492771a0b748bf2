"""The tasks of `eval --data`: what can be asked, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dmtd_demo.errors import UserError
from dmtd_demo.measure.evaluation import read_tasks

ASKED = [{"role": "user", "content": "1 + 1?"}]


def test_a_task_is_a_prompt_or_messages_and_an_answer(tmp_path: Path) -> None:
    path = tmp_path / "tasks.jsonl"
    parts = [{"role": "user", "content": [{"type": "text", "text": "1 + 1?"}]}]
    rows = [
        {"prompt": "1 + 1?", "answer": "2"},
        {"messages": parts, "answer": 2, "family": "sums"},
    ]
    path.write_text("\n\n".join(map(json.dumps, rows)))
    assert read_tasks(str(path), 9) == [("all", ASKED, "2"), ("sums", ASKED, "2")]


@pytest.mark.parametrize(
    "row,words",
    [
        ({"prompt": "1 + 1?", "answer": None}, "line 2 needs to be a JSON object with answer"),
        ({"prompt": "1 + 1?", "answer": ["2"]}, "line 2 needs to be a JSON object with answer"),
        (
            {"prompt": None, "answer": "2"},
            "line 2 cannot be asked: a conversation with an empty turn",
        ),
        ({"messages": None, "answer": "2"}, "line 2 needs to be a JSON object with answer"),
        (
            {"messages": [{"role": "tool", "content": "2"}], "answer": "2"},
            "line 2 cannot be asked: a conversation with a turn of a tool",
        ),
        (json.loads("[" * 500 + "]" * 500), "line 2 needs to be a JSON object with answer"),
    ],
)
def test_what_cannot_be_asked_is_refused_with_its_line(
    tmp_path: Path, row: Any, words: str
) -> None:
    path = tmp_path / "tasks.jsonl"
    path.write_text(json.dumps({"prompt": "1 + 1?", "answer": "2"}) + "\n" + json.dumps(row))
    with pytest.raises(UserError, match=words):
        read_tasks(str(path), 9)
