"""Token ids back to text, one token at a time."""

from __future__ import annotations

import codecs
from functools import lru_cache

from transformers import PreTrainedTokenizerBase


class TokenText:
    """The text of single tokens of a byte-level tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None) -> None:
        self._tokenizer = tokenizer
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
            self._known[token] = self._look_up(token)
        return self._known[token]

    def _look_up(self, token: int) -> bytes:
        if token in self._added:
            return self._added[token].encode()
        assert self._tokenizer is not None
        piece = self._tokenizer.convert_ids_to_tokens(token)
        return b"" if piece is None else bytes(_byte_of()[c] for c in piece if c in _byte_of())

    def piece(self, token: int) -> str:
        """The token alone; bytes that are no character by themselves as \\xe2."""
        return self.bytes_of(token).decode("utf-8", "backslashreplace")

    def stream(self) -> TextStream:
        return TextStream(self)


class TextStream:
    """The text of a growing sequence: bytes that are not yet valid UTF-8 are held until the token
    that completes them."""

    def __init__(self, texts: TokenText) -> None:
        self._texts = texts
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        return self._decoder.decode(self._texts.bytes_of(token))


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
