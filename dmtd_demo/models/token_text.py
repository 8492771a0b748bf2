"""Token ids back to text, one token at a time, by the tokenizer's own rules."""

from __future__ import annotations

import codecs
import re
from functools import lru_cache
from typing import Protocol

from transformers import PreTrainedTokenizerBase

BYTE = re.compile(r"<0x([0-9A-F]{2})>")
# tokens that wait for the end of a character at most: a character has four bytes, and what never
# becomes one is shown as it is
WAITING = 8


class Stream(Protocol):
    """The text of a growing sequence of tokens."""

    def push(self, token: int) -> str:
        """Take the next token; returns the text that is certain now."""
        ...


class TokenText:
    """The text of single tokens.

    A byte-level tokenizer's tokens are bytes, whatever stands before them. For any other, such as
    SentencePiece's with its marks for spaces and its strips, the tokenizer decodes the sequence.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None) -> None:
        self._tokenizer = tokenizer
        self._by_bytes = tokenizer is None or is_byte_level(tokenizer)
        self._added = (
            {}
            if tokenizer is None
            else {index: text for text, index in tokenizer.get_added_vocab().items()}
        )
        self._known: dict[int, bytes] = {}

    def bytes_of(self, token: int) -> bytes:
        """The UTF-8 bytes that this token stands for; empty without a tokenizer, and for ids beyond
        it."""
        if self._tokenizer is None:
            return b""
        if token not in self._known:
            self._known[token] = self._look_up(self._tokenizer, token)
        return self._known[token]

    def _look_up(self, tokenizer: PreTrainedTokenizerBase, token: int) -> bytes:
        if token in self._added:
            return self._added[token].encode()
        piece = tokenizer.convert_ids_to_tokens(token)
        if not isinstance(piece, str):
            return b""
        if self._by_bytes:
            return bytes(_byte_of()[c] for c in piece if c in _byte_of())
        byte = BYTE.fullmatch(piece)
        return bytes([int(byte[1], 16)]) if byte else piece.replace("▁", " ").encode()

    def piece(self, token: int) -> str:
        """The token alone; bytes that are no character by themselves as \\xe2."""
        return self.bytes_of(token).decode("utf-8", "backslashreplace")

    def stream(self) -> Stream:
        if self._tokenizer is None or self._by_bytes:
            return TextStream(self)
        return DecodedStream(self._tokenizer)


class TextStream:
    """The text of a growing sequence: bytes that are not yet valid UTF-8 are held until the token
    that completes them."""

    def __init__(self, texts: TokenText) -> None:
        self._texts = texts
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        return self._decoder.decode(self._texts.bytes_of(token))


class DecodedStream:
    """The text of a growing sequence as the tokenizer decodes it.

    Of a few tokens at a time: the new text is by how much a window's text grew. The window begins
    one piece of text earlier, so that what is stripped at a beginning is stripped once.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []
        # of the window's tokens, how many have been shown, and their text
        self._shown = 0
        self._text = ""

    def push(self, token: int) -> str:
        self._window.append(token)
        text = self._decode(self._window)
        unfinished = text.endswith("\ufffd") and len(self._window) - self._shown < WAITING
        if unfinished or len(text) <= len(self._text):
            return ""
        new = text[len(self._text) :]
        self._window = self._window[self._shown :]
        self._shown = len(self._window)
        self._text = self._decode(self._window)
        return new

    def _decode(self, ids: list[int]) -> str:
        # ids beyond the tokenizer have no text
        known = [i for i in ids if i < len(self._tokenizer)]
        text = self._tokenizer.decode(
            known, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return str(text)


def is_byte_level(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether its tokens are bytes in GPT-2's stand-ins, which one after another are the text."""
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    # of several decoders in a row, each by its kind in the JSON that is its state
    state = b"" if decoder is None else decoder.__getstate__()
    kinds = set(re.findall(rb'"type":"(\w+)"', state)) - {b"Sequence", b"Fuse"}
    return kinds == {b"ByteLevel"}


@lru_cache(1)
def _byte_of() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes, which Qwen's byte-level BPE uses, to the bytes."""
    plain = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = [b for b in range(256) if b not in set(plain)]
    return {**{chr(b): b for b in plain}, **{chr(256 + i): b for i, b in enumerate(others)}}
