"""A chat in which every panel has its own answers.

It says what each panel is asked next, and what it keeps of a race.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from dmtd_demo.errors import UserError
from dmtd_demo.models.chat import Conversations, check_text
from dmtd_demo.server.allowance import MOST_PANELS


@dataclass(frozen=True)
class Chat:
    """Plain data, because it lives in a gr.State.

    No system prompt in it: that one is asked with as it stands on the page.
    """

    turns: Conversations = field(default_factory=list)
    before: Conversations = field(default_factory=list)  # as they were before the last turn
    # what the last turn asked; empty before the first
    prompt: str = ""

    def asked(self, prompt: str, panels: int, again: bool = False) -> Conversations:
        """Return the conversation of each panel with the prompt at its end.

        again: in place of the last turn.

        A panel that joins later takes over panel 1's conversation.
        """
        chat = self.before if again else self.turns
        earlier = [
            chat[index] if index < len(chat) else (chat[0] if chat else [])
            for index in range(panels)
        ]
        return [[*messages, {"role": "user", "content": prompt}] for messages in earlier]


def brought_back(conversations: Any, answers: Any, most: int) -> Chat:
    """Return the chat as the page remembered it: what it asked last, and what came of it.

    conversations: of each panel, the user's turn last; a system prompt is left out. answers: one of
    each. most: the characters that all of it may have. Raises UserError for what this page never
    made.
    """
    try:
        own = [
            [message for message in messages if message["role"] != "system"]
            for messages in conversations
        ]
        texts = [message["content"] for messages in own for message in messages] + answers
        if sum(map(len, texts)) > most:
            raise UserError(f"a chat can be brought back up to {most:,} characters; got more")
        for messages in own:
            for turn, message in enumerate(messages):
                if message["role"] != ("user", "assistant")[turn % 2]:
                    raise ValueError
                if message["role"] == "user":
                    check_text(message["content"])
        if not 1 <= len(own) == len(answers) <= MOST_PANELS:
            raise ValueError
        whole = [len(messages) % 2 == 1 for messages in own]
        if not all(whole) or not all(isinstance(text, str) for text in texts):
            raise ValueError
        plain = [[{"role": m["role"], "content": m["content"]} for m in each] for each in own]
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UserError(
            "a chat needs to be brought back as this page's script does; got something else"
        ) from None
    return answered(plain, answers)


def answered(conversations: Conversations, answers: Iterable[str]) -> Chat:
    """Return the chat after a race over these conversations.

    An answer that was stopped counts as far as it came; a question without any is left out for its
    panel, since no message of a conversation may be empty.
    """
    before = [messages[:-1] for messages in conversations]
    turns = [
        [*messages, {"role": "assistant", "content": answer}] if answer.strip() else messages[:-1]
        for messages, answer in zip(conversations, answers)
    ]
    return Chat(turns, before, conversations[0][-1]["content"])
