"""Conversations to token ids through the model's chat template."""

from __future__ import annotations

import re
import secrets
from typing import Sequence

from transformers import PreTrainedTokenizerBase

from dmtd_demo.errors import UserError
from dmtd_demo.models.template import render

# of one message: beyond it no model here has the context, and tokenizing would only cost time
MAX_CHARACTERS = 200_000
Message = dict[str, str]
Conversations = list[list[Message]]  # one list of messages per panel


def encode_chat(
    tokenizer: PreTrainedTokenizerBase | None, messages: Sequence[Message], thinking: bool = False
) -> list[int]:
    """Encode a conversation to token ids, the generation prompt included.

    Special tokens written in a message are encoded as text, so no message can end its own turn.
    Raises UserError without a tokenizer or template, or for an empty or oversized message of a
    person's.
    """
    if tokenizer is None or not getattr(tokenizer, "chat_template", None):
        lacks = "tokenizer" if tokenizer is None else "chat template"
        raise UserError(
            f"this model has no {lacks}, which a prompt in words needs; generate, compare and draw "
            "take token ids by --prompt-ids"
        )
    check_messages(messages)
    added = sorted(tokenizer.get_added_vocab(), key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, added))) if added else None
    mark = f"\ue000{secrets.token_hex(8)}\ue001"  # no message can hold it by intent
    hidden: list[str] = []
    shown: list[Message] = []
    for message in messages:
        # what a model writes itself may hold its own <think> tags, which templates read
        if pattern and message["role"] != "assistant" and pattern.search(message["content"]):
            shown.append({**message, "content": f"{mark}{len(hidden)}{mark}"})
            hidden.append(message["content"])
        else:
            shown.append(message)
    text = render(tokenizer, shown, enable_thinking=thinking)
    ids: list[int] = []
    for index, part in enumerate(re.split(rf"{mark}(\d+){mark}", text) if hidden else [text]):
        # breaking each special token's text after its first character leaves nothing that the
        # tokenizer would take for the token
        pieces = [part] if index % 2 == 0 else _broken(hidden[int(part)], pattern)
        for piece in pieces:
            ids += (
                tokenizer(whole(piece), add_special_tokens=False, verbose=False).input_ids
                if piece
                else []
            )
    return ids


def whole(text: str) -> str:
    """Replace halves of characters (lone surrogates), which no tokenizer takes, by U+FFFD."""
    return re.sub("[\ud800-\udfff]", "\ufffd", text)


def can_think(tokenizer: PreTrainedTokenizerBase | None) -> bool:
    """Whether the chat template has Qwen3's thinking switch."""
    return "enable_thinking" in str(getattr(tokenizer, "chat_template", ""))


def check_messages(messages: Sequence[Message]) -> None:
    """Check the messages that a person wrote; raises UserError where one cannot be.

    What a model wrote is carried as it is: drawn by chance it may hold any character, and a check
    that blames the prompt for it would end the chat for good.
    """
    for message in messages:
        if message["role"] == "assistant":
            continue
        check_text(
            message["content"], "the system prompt" if message["role"] == "system" else "a prompt"
        )


def check_text(text: str, what: str = "a prompt") -> None:
    """Check a prompt; raises UserError where it is empty, over the size limit, or has characters
    that are no text."""
    if not isinstance(text, str):
        raise UserError(f"{what} needs to be text; got {type(text).__name__}")
    if not text.strip():
        raise UserError(f"{what} needs at least one visible character; got an empty one")
    if len(text) > MAX_CHARACTERS:
        raise UserError(
            f"{what} needs to be at most {MAX_CHARACTERS:,} characters long; got {len(text):,}"
        )
    bad = re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]", text)
    if bad:
        raise UserError(
            f"{what} needs to be plain text; got the control character U+{ord(bad[0]):04X} at "
            f"position {bad.start()}"
        )


def _broken(text: str, pattern: re.Pattern[str] | None) -> list[str]:
    cuts = (
        [0, *(match.start() + 1 for match in pattern.finditer(text)), len(text)]
        if pattern
        else [0, len(text)]
    )
    return [text[a:b] for a, b in zip(cuts, cuts[1:])]


def instructed(conversations: Conversations, system: str | None) -> Conversations:
    """Put the conversations under a system prompt, where there is one."""
    return (
        [[{"role": "system", "content": system}, *messages] for messages in conversations]
        if system and system.strip()
        else conversations
    )
