"""Thoughts that a template opens, and marks that close nothing."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmtd_demo.models.loading import load
from dmtd_demo.models.thoughts import CLOSE, OPEN, Balanced, begins_inside
from dmtd_demo.race.panels import parse_panel
from dmtd_demo.race.race import race
from dmtd_demo.race.settings import RaceSettings

OPENS = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content"
    " + '<|im_end|>\\n' }}{%- endfor %}{{- '<|im_start|>assistant\\n<think>\\n' }}"
)


def said(parts, **how):
    text = Balanced(**how)
    return "".join(map(text.push, parts)) + text.finish(), text.unopened


@pytest.mark.parametrize(
    "pieces,how,text",
    [
        (["hm", "</think>", "\n\n4"], {"inside": True}, "<think>\nhm</think>\n\n4"),
        (["<think>", "\nhm", "</think>", "4"], {"inside": True}, "<think>\n\nhm</think>4"),
        (["hm"], {"inside": True}, "<think>\nhm"),
        (["<think>", "hm", "</think>", "4", "</think>", "5"], {}, "<think>hm</think>45"),
        (["4", "</think>", " and 5"], {}, "4 and 5"),
        (["4</", "thi", "nk> and 5 <", "b"], {}, "4 and 5 <b"),
        (["4</", "thi"], {}, "4</thi"),
        (["4</", "thi"], {"pieces": False}, "4</thi"),
        (["hm", "</think>", "4", "</think>"], {"late": True}, "hm</think>4"),
        (["</think>", "\n\n4"], {"late": True}, "\n\n4"),
    ],
)
def test_both_marks_or_neither(pieces, how, text):
    assert said(pieces, **how) == (text, text == "hm</think>4")


@given(
    st.lists(st.sampled_from([OPEN, CLOSE, "<", "a", "\n"]), max_size=12).map("".join),
    st.sets(st.integers(0, 60)),
    st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_a_closing_mark_always_closes_something(whole, cuts, inside):
    text, _ = said([whole], inside=inside)
    depth = 0
    for part in text.replace(CLOSE, f"\0{CLOSE}\0").replace(OPEN, f"\0{OPEN}\0").split("\0"):
        depth += (part == OPEN) - (part == CLOSE)
        assert depth in (0, 1), text
    # however it comes in pieces, the text is the same
    edges = [0, *sorted(cut for cut in cuts if cut < len(whole)), len(whole)]
    assert text == said([whole[a:b] for a, b in zip(edges, edges[1:])], inside=inside)[0]


def test_an_answer_begins_inside_what_the_template_opened(model_folder):
    model = load(str(model_folder), threads=1)
    ask = [[{"role": "user", "content": "2+2?"}]]
    short = RaceSettings(max_new_tokens=3, ignore_eos=True)
    before = list(race(model, [parse_panel("ar")], ask, short))[-1][-1]["text"]
    assert not before.startswith(OPEN)
    model.tokenizer.chat_template = OPENS
    records = [r for b in race(model, [parse_panel("ar")], ask, short) for r in b]
    steps = [r["tokens"][0]["text"] for r in records if r["type"] == "step"]
    assert steps[0].startswith("<think>\n") and records[-1]["text"] == "".join(steps)
    ids = model.tokenizer("<think>\n", add_special_tokens=False).input_ids
    assert begins_inside(model.tokenizer, ids) and not begins_inside(model.tokenizer, [*ids, 40])
    # what a person writes opens nothing
    asked = "<|im_start|>user\n<think><|im_end|>\n<|im_start|>assistant\n"
    assert not begins_inside(model.tokenizer, model.tokenizer(asked).input_ids)
