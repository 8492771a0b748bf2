"""A chat in which every panel has its own answers.

It says what each panel is asked next, and what it keeps of a race.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from dmtd_demo.models.chat import Conversations


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
