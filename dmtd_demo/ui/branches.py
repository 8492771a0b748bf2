"""What `ar` would have written: its own text from one token of a race that is over.

The page asks for it where a token is not `ar`'s choice (assets/race/branch.js).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from dmtd_demo.errors import UserError
from dmtd_demo.models.chat import Conversations, encode_chat
from dmtd_demo.models.model import Model
from dmtd_demo.race.panels import PanelSpec
from dmtd_demo.race.race import race_ids
from dmtd_demo.race.settings import RaceSettings

MOST_TOKENS = 40


@dataclass(frozen=True)
class Raced:
    """The last race of a visitor, as a gr.State keeps it.

    run: the id in its header. keys: of each panel's model. ids: each panel's text as tokens; None
    for one that a server elsewhere wrote.
    """

    run: str
    keys: list[Any]
    conversations: Conversations
    thinking: bool
    ids: list[list[int] | None]


@dataclass(frozen=True)
class Branching:
    """Where `ar` is to go on: before the token `index` of a panel of the race `run`."""

    run: str
    panel: int
    index: int

    @classmethod
    def of(cls, text: str, raced: Raced | None) -> Branching:
        """Read the script's JSON. Raises UserError where it is not of this race."""
        try:
            run, panel, index = json.loads(text)
        except (ValueError, TypeError, RecursionError):
            run, panel, index = None, None, None
        if raced is None or run != raced.run:
            raise UserError("ar can go on only from the last race of this page")
        if type(panel) is not int or not 0 <= panel < len(raced.ids):
            raise UserError(f"ar needs one of the panels to go on from; got {panel!r}")
        ids = raced.ids[panel]
        if ids is None or type(index) is not int or not 0 <= index < len(ids):
            raise UserError(f"ar needs a token of the panel to go on from; got {index!r}")
        return cls(run, panel, index)


def go_on(model: Model, raced: Raced, branching: Branching) -> str:
    """Return up to MOST_TOKENS tokens of `ar`, greedy, given the text before the token."""
    ids = raced.ids[branching.panel]
    assert ids is not None
    conversation = raced.conversations[branching.panel]
    prompt = [
        *encode_chat(model.tokenizer, conversation, raced.thinking),
        *ids[: branching.index],
    ]
    room = model.context - len(prompt)
    if room < 1:
        raise UserError(f"the text fills the context of {model.context} tokens; got no room for ar")
    settings = RaceSettings(max_new_tokens=min(MOST_TOKENS, room), audit=False)
    summary: dict[str, Any] = {}
    for batch in race_ids(model, [PanelSpec("ar")], [prompt], settings):
        summary = batch[-1]
    return str(summary["text"])
