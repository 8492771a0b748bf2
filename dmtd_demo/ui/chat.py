"""A chat in which every panel has its own answers: what each panel is asked next, and what it keeps of a race."""
from __future__ import annotations

from typing import Iterable

Message = dict[str, str]
Chat = list[list[Message]]   # one list of messages per panel; plain data, because it lives in a gr.State


def asked(chat: Chat, prompt: str, panels: int) -> Chat:
    """The conversation of each panel with the new prompt at its end. A panel that joins later takes over panel 1's conversation."""
    earlier = [chat[index] if index < len(chat) else (chat[0] if chat else []) for index in range(panels)]
    return [[*messages, {"role": "user", "content": prompt}] for messages in earlier]


def answered(conversations: Chat, answers: Iterable[str]) -> Chat:
    """The chat after a race over these conversations. An answer that was stopped counts as far as it came; a question without any is
    left out for its panel, since no message of a conversation may be empty."""
    return [[*messages, {"role": "assistant", "content": answer}] if answer.strip() else messages[:-1] for messages, answer in zip(conversations, answers)]
