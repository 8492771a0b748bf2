"""The small world that `classroom` is trained on: chats in English, made from a seed.

A family is a generator of examples. Compositional families draw their content from a space too
large to be learned by heart, and a hash of that content (the pair of numbers, the set of words, the
story's cast) decides whether it belongs to training or is held out: the seed never does.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from hashlib import sha256
from typing import Callable

HELD_OUT_SHARE = 10  # one in ten contents is held out


@dataclass(frozen=True)
class Example:
    """A conversation whose last message, the assistant's, is what is trained on and scored.

    messages: (role, text) pairs, roles "user" and "assistant" in turn, the last one "assistant".
    content: what makes it new: equal contents are equal tasks whatever their phrasing. None where
    nothing can be held out (facts, talk).
    """

    messages: tuple[tuple[str, str], ...]
    content: str | None = None

    def __post_init__(self) -> None:
        roles = [role for role, _ in self.messages]
        if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
            raise ValueError(
                f"an example needs user and assistant in turn, ending with assistant; got {roles}"
            )

    @property
    def answer(self) -> str:
        return self.messages[-1][1]


@dataclass(frozen=True)
class Family:
    """name: as shown in `eval`.

    sample: draws one example. compositional: its answer is a function of the prompt and its content
    is held out by hash, so exact match counts. weight: its share of the training mix.
    """

    name: str
    sample: Callable[[random.Random], Example]
    compositional: bool = False
    weight: float = 1.0


def held_out(content: str) -> bool:
    """Whether this content is kept out of training: a property of the content alone."""
    return sha256(content.encode()).digest()[0] * HELD_OUT_SHARE // 256 == 0
