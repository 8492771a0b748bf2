"""`train data`: conversations that a model writes itself, resumed to the same ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dmtd_demo.errors import Cancelled, UserError
from dmtd_demo.models.model import Model
from dmtd_demo.training import magpie
from dmtd_demo.training.corpus import read_rows
from dmtd_demo.training.magpie import (
    DataSettings,
    read_openings,
    users_turn,
    write_conversations,
)
from tiny import tiny_model

SETTINGS = DataSettings(12, batch=8, turns=2)


@pytest.fixture
def model(small_tokenizer) -> Model:
    """A random model of which every tenth token ends a turn, so that it ends some of them."""
    ends = frozenset(range(0, len(small_tokenizer), 10)) | {small_tokenizer.eos_token_id}
    return tiny_model(
        "qwen2",
        tokenizer=small_tokenizer,
        eos=ends,
        vocab_size=len(small_tokenizer),
        max_position_embeddings=512,
    )


def contents(folder: Path) -> list[list[dict]]:
    return [
        [json.loads(line) for line in (folder / name).read_text().splitlines()]
        for name in (magpie.CONVERSATIONS, magpie.HELD_OUT)
    ]


def test_conversations_are_kept_counted_and_learned_from(model, tmp_path, monkeypatch):
    writer = write_conversations(model, tmp_path / "whole", SETTINGS)
    trained, held = contents(tmp_path / "whole")
    assert len(trained) + len(held) == writer.kept == 12
    assert all(magpie.is_held_out(line["messages"]) for line in held)
    assert not any(magpie.is_held_out(line["messages"]) for line in trained)
    for line in trained + held:
        roles = [message["role"] for message in line["messages"]]
        assert roles in (["user", "assistant"], ["user", "assistant"] * 2)
        assert all(message["content"].strip() for message in line["messages"])
    first = [line["messages"][0]["content"].lower() for line in trained + held]
    assert len(set(first)) == 12
    drawn = sum(draw["kept"] for draw in writer.draws) + writer.dropped.total()
    assert drawn >= writer.sum("drawn") - 16 and writer.dropped.total()
    card = (tmp_path / "whole" / magpie.CARD).read_text()
    assert "Magpie" in card and all(reason in card for reason in writer.dropped)
    rows = read_rows(model, str(tmp_path / "whole" / magpie.CONVERSATIONS), tmp_path / "own")
    assert len(rows) == len(trained)

    # killed in its second draw, a line cut short, then resumed
    def stop(stage: str, done: int, total: int) -> None:
        if done:
            raise Cancelled

    cut = tmp_path / "cut"
    with pytest.raises(Cancelled):
        write_conversations(model, cut, SETTINGS, stop)
    assert 0 < sum(map(len, contents(cut))) < 12
    with (cut / magpie.CONVERSATIONS).open("a") as file:
        file.write(json.dumps({"messages": [], "draw": 1}) + '\n{"mess')
    assert write_conversations(model, cut, SETTINGS).kept == 12
    assert contents(cut) == contents(tmp_path / "whole")
    with pytest.raises(UserError, match="give another --output"):
        write_conversations(model, cut, DataSettings(12, batch=4))
    # the answers that the text says, greedy
    assert write_conversations(model, cut, SETTINGS).kept == 12


def test_what_is_left_out_and_who_cannot_write(model, small_tokenizer, tmp_path, monkeypatch):
    prompt, ends = users_turn(model, [{"role": "user", "content": "a"}])
    assert small_tokenizer.decode(prompt).endswith("<|im_start|>user\n")
    assert small_tokenizer.eos_token_id in ends
    endless = tiny_model(tokenizer=small_tokenizer, vocab_size=len(small_tokenizer))
    monkeypatch.setattr(magpie, "HOPELESS", 16)
    monkeypatch.setattr(magpie, "USER", 8)
    with pytest.raises(UserError, match="of which none can be kept .*user turn cut off"):
        write_conversations(endless, tmp_path, SETTINGS)
    with pytest.raises(UserError, match="no chat template.*--data FILE"):
        write_conversations(tiny_model(), tmp_path / "base", SETTINGS)
    for wrong in ({"conversations": 0}, {"batch": 0}, {"turns": 0}, {"temperature": -1}):
        with pytest.raises(UserError, match="needs"):
            DataSettings(**{"conversations": 1, **wrong})
    assert magpie.repetition([1, 2, 3, 4] * 8) > 0.8 and magpie.repetition(range(50)) == 0


def test_first_messages_begin_with_the_openings_that_are_given(model, tmp_path):
    file = tmp_path / "openings.txt"
    file.write_text("What is\n\n Give me a \n")
    openings = read_openings(str(file))
    assert openings == ("What is", "Give me a") and read_openings(None) == ()
    settings = DataSettings(12, batch=8, turns=2, openings=openings)
    write_conversations(model, tmp_path / "run", settings)
    conversations = [line["messages"] for lines in contents(tmp_path / "run") for line in lines]
    asked = [m["content"] for messages in conversations for m in messages if m["role"] == "user"]
    first = [messages[0]["content"] for messages in conversations]
    assert all(text.startswith(openings) for text in first)
    assert len({text.startswith("What is") for text in first}) == 2
    # a later message begins as the model likes
    assert len([text for text in asked if text.startswith(openings)]) == len(first) < len(asked)
    assert "2 given openings" in (tmp_path / "run" / magpie.CARD).read_text()
    with pytest.raises(UserError, match="give another --output"):
        write_conversations(model, tmp_path / "run", SETTINGS)
    file.write_text("\n")
    with pytest.raises(UserError, match="needs a file with an opening on each line"):
        read_openings(str(file))
    with pytest.raises(UserError, match="needs a text file"):
        read_openings(str(tmp_path / "none.txt"))
    aside = magpie.OPENINGS.with_name("prompts.txt").read_text().splitlines()
    shipped = read_openings("everyday")
    assert len(set(shipped)) == len(shipped) > 500
    # the form of what is kept aside to judge by, not its topic
    assert all(len(o.split()) <= 6 for o in shipped for a in aside if a.startswith(o))


def test_with_an_end_by_the_clock_the_bar_goes_on_within_a_draw(model, tmp_path):
    said: list[int] = []
    settings = DataSettings(10_000, batch=8, seconds=0.5)
    writer = write_conversations(
        model, tmp_path, settings, tell=lambda stage, done, total: said.append(1000 * done // total)
    )
    assert writer.kept < 10_000 and said == sorted(said)
    # by what is kept alone it would stand at 0 of so many
    assert len(set(said)) > 1 and said[-1] <= 1000
