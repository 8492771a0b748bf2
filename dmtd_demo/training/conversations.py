"""Conversations as files and data sets have them: what is learned of them, and what is left out.

Only text can be learned from. A conversation that holds something else is left out whole, because
its answers may depend on it.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from dmtd_demo.errors import UserError
from dmtd_demo.models.chat import Message, check_text

# the names of roles elsewhere, by those of chat templates
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}
TOOLS = {"tool", "function", "ipython", "observation", "function_call", "tool_call"}
CALLS = ("tool_calls", "function_call")
TEXT_PARTS = {"text", "input_text", "output_text"}


class LeftOut(Exception):
    """A conversation that nothing is learned from. Its message says what it has, or lacks."""

    def __init__(self, reason: str) -> None:
        # a file's own words are in some of them
        super().__init__("".join(c if c.isprintable() else "\ufffd" for c in reason))


class Reasons:
    """Why conversations were left out, and how many for each reason."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def add(self, reason: str) -> None:
        """Count one more."""
        self.counts[reason] += 1

    @property
    def total(self) -> int:
        """How many were left out."""
        return self.counts.total()

    def __str__(self) -> str:
        return ", ".join(f"{count:,} {reason}" for reason, count in self.counts.most_common())


def messages_in(turns: Any) -> list[Message]:
    """Return the turns of one conversation as messages with a role and a text.

    Parts of text are joined; an empty system prompt is none; a name beside a role is not read. A
    conversation may begin with the assistant. Raises LeftOut for a conversation of which nothing
    can be learned, TypeError or KeyError for what is none.
    """
    messages: list[Message] = []
    for turn in list(turns):
        role = _role(turn)
        if any(turn.get(call) for call in CALLS):
            raise LeftOut("with a call of a tool")
        text = _text(turn["content"] if "content" in turn else turn.get("value"))
        if not text.strip():
            if role == "system":
                continue
            raise LeftOut(f"with an empty turn of the {role}")
        try:
            check_text(text)
        except UserError:
            raise LeftOut("with control characters, or a turn that is too long") from None
        messages.append({"role": role, "content": text})
    if not any(message["role"] == "user" for message in messages):
        raise LeftOut("without a turn of a user")
    if messages[-1]["role"] == "system":
        raise LeftOut("that end with a system prompt")
    return messages


def _role(turn: Any) -> str:
    """Return the role of a turn, by its name in chat templates."""
    name = turn["role"] if "role" in turn else turn["from"]
    if not isinstance(name, str):
        raise TypeError
    plain = name.strip().lower()
    if plain in TOOLS:
        raise LeftOut("with a turn of a tool")
    if plain not in ROLES:
        raise LeftOut(f"with a turn of another role ({name[:20]})")
    return ROLES[plain]


def _text(content: Any) -> str:
    """Return the text of a turn, its parts joined; none where there is no content."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    return "".join(map(_part, parts))


def _part(part: Any) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type", "text") if isinstance(part, dict) else type(part).__name__
    if kind in TEXT_PARTS and isinstance(part.get("text"), str):
        return str(part["text"])
    raise LeftOut(f"with a part that is no text ({str(kind)[:20]})")
