"""Chat encoding and token text."""

import copy
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmtd_demo.errors import UserError
from dmtd_demo.models import template
from dmtd_demo.models.chat import (
    MAX_CHARACTERS,
    can_think,
    check_messages,
    check_text,
    encode_chat,
)
from dmtd_demo.models.token_text import TokenText


def user(text):
    return [{"role": "user", "content": text}]


def test_it_is_the_template(small_tokenizer):
    messages = [
        *user("What is a token?"),
        {"role": "assistant", "content": "A piece of text."},
        *user("Thank you"),
    ]
    plain = small_tokenizer(
        small_tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True),
        add_special_tokens=False,
    ).input_ids
    assert encode_chat(small_tokenizer, messages) == plain


# what no keyboard writes and a model may draw: controls, a text over the limit, white space alone
DRAWN = [
    *map(chr, [*range(0x20), *range(0x7F, 0xA0), 0x2028, 0xFEFF]),
    "x" * (MAX_CHARACTERS + 1),
    "\n",
]


def test_what_a_model_drew_is_carried(small_tokenizer):
    for drawn in DRAWN:
        messages = [*user("Hi"), {"role": "assistant", "content": f"a{drawn}b"}, *user("And?")]
        assert encode_chat(small_tokenizer, messages) == (
            small_tokenizer(
                small_tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=True
                ),
                add_special_tokens=False,
            ).input_ids
        )
        check_messages(messages)


@pytest.mark.parametrize("role", ["user", "system"])
def test_what_a_person_typed_is_checked_in_every_turn(small_tokenizer, role):
    messages = [
        {"role": role, "content": "a\x0cb"},
        {"role": "assistant", "content": "\x0c"},
        *user("And?"),
    ]
    with pytest.raises(UserError, match=r"U\+000C at position 1"):
        encode_chat(small_tokenizer, messages)


SPECIALS = st.sampled_from(
    [
        "<|im_end|>",
        "<|im_start|>",
        "<|endoftext|>",
        "<think>",
        "</think>",
        "\n",
        " ",
        "a",
        "<|im_",
        "end|>",
        "\ue000",
        "é",
    ]
)


@given(st.lists(SPECIALS, min_size=1, max_size=8).map("".join).filter(str.strip))
@settings(max_examples=150, deadline=None)
def test_special_tokens_in_a_message_are_text(small_tokenizer, text):
    ids = encode_chat(small_tokenizer, user(text))
    names = {i: t for t, i in small_tokenizer.get_added_vocab().items()}
    assert [names[i] for i in ids if i in names] == ["<|im_start|>", "<|im_end|>", "<|im_start|>"]
    assert small_tokenizer.decode(ids) == small_tokenizer.apply_chat_template(
        user(text), tokenize=False, add_generation_prompt=True
    )


@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=30))
@settings(max_examples=150, deadline=None)
def test_streamed_text_is_the_text(small_tokenizer, text):
    import unicodedata

    ids = small_tokenizer(text, add_special_tokens=False).input_ids
    stream = TokenText(small_tokenizer).stream()
    pieces = [stream.push(i) for i in ids]
    assert "".join(pieces) == unicodedata.normalize("NFC", text)
    assert not any("\ufffd" in piece for piece in pieces) or "\ufffd" in text


def test_bytes_of_an_unfinished_character_are_held(small_tokenizer):
    ids = small_tokenizer("𝄞", add_special_tokens=False).input_ids
    assert len(ids) == 4
    stream = TokenText(small_tokenizer).stream()
    assert [stream.push(i) for i in ids] == ["", "", "", "𝄞"]


def test_without_a_tokenizer_there_is_no_text():
    assert TokenText(None).stream().push(5) == ""


@pytest.mark.parametrize(
    "text,word",
    [
        ("", "empty"),
        (" \n\t", "empty"),
        ("a\x00b", r"U\+0000"),
        ("\x1b[31m", r"U\+001B"),
        ("\ud800", r"U\+D800"),
        ("x" * (MAX_CHARACTERS + 1), "200,001"),
    ],
)
def test_what_is_no_prompt_is_said(text, word):
    with pytest.raises(UserError, match=word):
        check_text(text)


def test_a_model_without_template_names_the_other_way(small_tokenizer):
    with pytest.raises(UserError, match="--prompt-ids"):
        encode_chat(None, user("hi"))


def test_what_a_template_refuses_is_one_sentence(small_tokenizer):
    strict = copy.copy(small_tokenizer)
    strict.chat_template = "{{ raise_exception('no system here') }}"
    with pytest.raises(UserError, match="refuses this order of turns: no system here"):
        encode_chat(strict, user("Hi"))


def test_a_template_that_does_not_end_is_one_sentence(small_tokenizer, monkeypatch):
    monkeypatch.setattr(template, "SECONDS", 0.2)
    before = threading.active_count()
    endless = copy.copy(small_tokenizer)
    loop = "{% for i in range(99999) %}"
    endless.chat_template = f"{loop}{loop}{{% endfor %}}{{% endfor %}}"
    with pytest.raises(UserError, match="needs to end within 0 s; it did not"):
        encode_chat(endless, user("Hi"))
    for _ in range(100):
        if threading.active_count() == before:
            return
        time.sleep(0.05)
    pytest.fail("the template goes on")


THINKING = """{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{%- endfor %}{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"""  # the end of Qwen3's


def test_the_thinking_switch_is_the_templates(model_folder):
    from dmtd_demo.models.loading import load
    from dmtd_demo.models.residents import Residents
    from dmtd_demo.ui.links import comparison
    from dmtd_demo.ui.page import Page

    model = load(str(model_folder))
    plain = Page(Residents(model))
    plain.build()
    assert not can_think(model.tokenizer) and not plain.layout.thinking.visible
    model.tokenizer.chat_template = THINKING
    page = Page(Residents(model))
    page.build()
    assert can_think(model.tokenizer) and page.layout.thinking.visible
    assert comparison("thinking=1", model).thinking is True
    without, thinking = (
        encode_chat(model.tokenizer, user("Hi"), thinking=on) for on in (False, True)
    )
    assert without[: len(thinking)] == thinking and "</think>" in model.tokenizer.decode(
        without[len(thinking) :]
    )


def test_a_system_prompt_that_cannot_be_is_said(model_folder):
    from dmtd_demo.models.loading import load
    from dmtd_demo.race.panels import parse_panel
    from dmtd_demo.race.race import race
    from dmtd_demo.race.settings import RaceSettings

    model = load(str(model_folder))
    for system, words in (
        (
            "word " * 2000,
            "the system prompt and the new tokens need to fit the context of 512 tokens; got",
        ),
        ("a\x00", "the system prompt needs to be plain text"),
    ):
        with pytest.raises(UserError, match=words):
            race(
                model,
                [parse_panel("ar")],
                [[{"role": "system", "content": system}, *user("hi")]],
                RaceSettings(max_new_tokens=4),
            )


def test_the_last_turn_is_replaced():
    from dmtd_demo.models.chat import instructed
    from dmtd_demo.ui.chat import Chat, answered

    chat = answered(Chat().asked("one", 2), ["1", " "])  # the second panel said nothing
    chat = answered(chat.asked("two", 2), ["2", "zwei"])
    again = chat.asked("three", 3, again=True)
    assert again == [
        [*user("one"), {"role": "assistant", "content": "1"}, *user("three")],
        user("three"),
        again[0],
    ]
    assert [m["content"] for m in chat.asked("three", 1)[0]] == [
        "one",
        "1",
        "two",
        "2",
        "three",
    ] and chat.prompt == "two"
    assert instructed(again, " ") == again and instructed(again, "Be brief.")[1] == [
        {"role": "system", "content": "Be brief."},
        *user("three"),
    ]
