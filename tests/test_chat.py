"""Chat encoding and token text."""
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmtd_demo.chat import MAX_CHARACTERS, TokenText, check_text, encode_chat
from dmtd_demo.errors import UserError


def user(text):
    return [{"role": "user", "content": text}]


def test_it_is_the_template(small_tokenizer):
    messages = [*user("What is a token?"), {"role": "assistant", "content": "A piece of text."}, *user("Thank you")]
    plain = small_tokenizer(small_tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True), add_special_tokens=False).input_ids
    assert encode_chat(small_tokenizer, messages) == plain


SPECIALS = st.sampled_from(["<|im_end|>", "<|im_start|>", "<|endoftext|>", "<think>", "</think>", "\n", " ", "a", "<|im_", "end|>", "\ue000", "é"])


@given(st.lists(SPECIALS, min_size=1, max_size=8).map("".join).filter(str.strip))
@settings(max_examples=150, deadline=None)
def test_special_tokens_in_a_message_are_text(small_tokenizer, text):
    ids = encode_chat(small_tokenizer, user(text))
    names = {i: t for t, i in small_tokenizer.get_added_vocab().items()}
    assert [names[i] for i in ids if i in names] == ["<|im_start|>", "<|im_end|>", "<|im_start|>"]
    assert small_tokenizer.decode(ids) == small_tokenizer.apply_chat_template(user(text), tokenize=False, add_generation_prompt=True)


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


@pytest.mark.parametrize("text,word", [("", "empty"), (" \n\t", "empty"), ("a\x00b", r"U\+0000"), ("\x1b[31m", r"U\+001B"), ("\ud800", r"U\+D800"), ("x" * (MAX_CHARACTERS + 1), "200,001")])
def test_what_is_no_prompt_is_said(text, word):
    with pytest.raises(UserError, match=word):
        check_text(text)


def test_a_model_without_template_names_the_other_way(small_tokenizer):
    with pytest.raises(UserError, match="--prompt-ids"):
        encode_chat(None, user("hi"))
