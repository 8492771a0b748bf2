"""The page's question: its controls as they stand, gathered by its script into one string.

One input in place of sixty: at each event of a race Gradio's page goes through all inputs of the
events that were sent, which took 7 ms, 20 times a second.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from dmtd_demo.errors import UserError
from dmtd_demo.sampling import Sampling

# in the order of the controls; those of the panels follow
SETTINGS = (
    "prompt",
    "count",
    "max_tokens",
    "seed",
    "temperature",
    "top_k",
    "top_p",
    "system",
    "thinking",
)


def whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise UserError(
            f"{name} needs a whole number; got {'an empty field' if value is None else value}"
        )
    return value


def number(name: str, value: Any) -> float:
    if not isinstance(value, (int, float)):
        raise UserError(
            f"{name} needs a number; got {'an empty field' if value is None else value}"
        )
    return float(value)


@dataclass(frozen=True)
class Question:
    """The controls as they stood when Run was pressed.

    run: the id that the page gave the race.

    how: "" for a conversation that begins with it; "reply" for a further turn; "edit" or "again" in
    place of the last one; "tour" outside the conversation. panels: the values of all panels'
    controls. slowed: whether the page plays it when it is over, and needs little of it before.

    What the controls hold is checked as it is used, so that the visitor gets a sentence in the race
    view.
    """

    run: str
    how: str
    prompt: str
    count: Any
    max_tokens: Any
    seed: Any
    temperature: Any
    top_k: Any
    top_p: Any
    system: str
    thinking: bool
    panels: list[Any]
    slowed: bool = False

    @classmethod
    def of(cls, text: str) -> Question:
        """Read the script's JSON: the run, how, and the controls' values as in `SETTINGS`.

        Raises UserError where it is another's.
        """
        try:
            run, how, values, *slowed = json.loads(text)
            settings = dict(zip(SETTINGS, values[: len(SETTINGS)], strict=True))
            question = cls(
                run=run,
                how=how,
                slowed=True in slowed,
                **settings | {"system": settings["system"] or ""},
                panels=values[len(SETTINGS) :],
            )
            if slowed not in ([], [False], [True]) or not all(
                isinstance(part, str) for part in (run, how, question.prompt, question.system)
            ):
                raise TypeError
        except (ValueError, TypeError, RecursionError):
            raise UserError(
                "a race needs to be asked for as this page's script does; got something else"
            ) from None
        return question

    @property
    def sampling(self) -> Sampling:
        """Return the sampling that is asked for. Raises UserError."""
        return Sampling(
            temperature=number("Temperature", self.temperature),
            top_k=whole("Top-k", self.top_k),
            top_p=number("Top-p", self.top_p),
            seed=whole("Seed", self.seed),
        )

    @property
    def max_new_tokens(self) -> int:
        """Return the most new tokens of a panel. Raises UserError."""
        return whole("Max tokens", self.max_tokens)
