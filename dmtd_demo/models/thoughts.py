"""The thought that may come before a model's answer, between `<think>` and `</think>`.

Chat templates open it themselves for some models, whose answers then begin inside it and bring the
closing mark alone. The text that is shown, kept and asked with again always has both marks or
neither.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

OPEN, CLOSE = "<think>", "</think>"
# tokens at the end of a prompt among which a mark can be
TAIL = 16


def begins_inside(tokenizer: PreTrainedTokenizerBase | None, prompt: Sequence[int]) -> bool:
    """Whether an answer to these token ids begins inside a thought: the prompt ends by opening
    one."""
    if tokenizer is None or not prompt:
        return False
    # ids beyond the tokenizer have no text
    text = tokenizer.decode(list(prompt[-TAIL:]), skip_special_tokens=False)
    return str(text).rstrip().endswith(OPEN)


class Balanced:
    """A growing text with both marks of a thought or neither.

    inside: it begins inside a thought, whose opening mark is put before it. pieces: the marks may
    come in pieces, so what may become one is held back. late: a first closing mark without an
    opening one closes all that came before it, and stays; `unopened` then says so. Any other
    closing mark that closes nothing is left out.
    """

    def __init__(self, inside: bool = False, pieces: bool = True, late: bool = False) -> None:
        self.unopened = False
        self._inside, self._pieces, self._late = inside, pieces, late
        self._before = f"{OPEN}\n" if inside else ""
        self._said = False
        self._held = ""

    def push(self, text: str) -> str:
        """Take the next piece; returns what can be shown now."""
        text, self._held = self._held + text, ""
        out = ""
        while found := [(at, mark) for mark in (OPEN, CLOSE) if (at := text.find(mark)) >= 0]:
            at, mark = min(found)
            self._said = self._said or bool(text[:at].strip())
            if self._takes(mark):
                out += self._shown(text[: at + len(mark)])
                text = text[at + len(mark) :]
            else:
                # what stood around the mark may be one now
                text = text[:at] + text[at + len(mark) :]
        keep = max(_may_become(text, OPEN), _may_become(text, CLOSE)) if self._pieces else 0
        self._held = text[len(text) - keep :]
        return out + self._shown(text[: len(text) - keep])

    def finish(self) -> str:
        """Return what was held back: nothing follows."""
        held, self._held = self._held, ""
        return self._shown(held)

    def _takes(self, mark: str) -> bool:
        """Whether the mark stays in the text."""
        if mark == OPEN:
            # a model may open once more what its template has opened
            takes = not self._inside
            self._inside, self._late = True, False
        elif self._inside:
            takes, self._inside = True, False
        else:
            takes = self._late and self._said
            self.unopened, self._late = self.unopened or takes, False
        return takes

    def _shown(self, text: str) -> str:
        before = self._before if text else ""
        self._before = "" if text else self._before
        self._said = self._said or bool(text.strip())
        return before + text


class AsItIs(Balanced):
    """The text of a model that knows of no thoughts: the marks are words as others."""

    def push(self, text: str) -> str:
        return text


def balanced(tokenizer: PreTrainedTokenizerBase | None, prompt: Sequence[int]) -> Balanced:
    """The text of an answer to these token ids."""
    if tokenizer is None:
        return AsItIs()
    one_token = CLOSE in tokenizer.get_added_vocab()
    template = str(getattr(tokenizer, "chat_template", ""))
    if not one_token and OPEN not in template and CLOSE not in template:
        return AsItIs()
    return Balanced(begins_inside(tokenizer, prompt), pieces=not one_token)


def _may_become(text: str, mark: str) -> int:
    """How many characters at the end of a text the mark may begin with."""
    longest = min(len(mark) - 1, len(text))
    return next((n for n in range(longest, 0, -1) if text.endswith(mark[:n])), 0)
