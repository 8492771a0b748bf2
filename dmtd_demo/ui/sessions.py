"""The states that the server keeps of each visitor, the chat among them, and no more.

Gradio also copies every component's config for each visitor, with each value that it sends, so that
a deep link could bring the page back: a quarter of a megabyte and 18 ms when a visitor comes, and
the whole record of each race, for as long as the server runs. This page has no deep links; its own
are made from the controls (ui/links.py).
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from gradio.blocks import Blocks
from gradio.state_holder import SessionState, StateHolder

# visitors whose chats are kept; beyond them the one that has been quiet the longest begins a new
# one
SESSIONS = 2000


class Session(SessionState):
    def __init__(self, blocks: Blocks) -> None:
        # no component whose config would be copied
        without = SimpleNamespace(default_config=blocks.default_config, blocks=())
        super().__init__(cast(Blocks, without))

    def _update_config(self, key: int) -> None:
        pass

    def _update_value_in_config(self, key: int, value: Any) -> None:
        pass


class Sessions(StateHolder):
    def __getitem__(self, session_id: str) -> SessionState:
        if session_id not in self.session_data:
            self.session_data[session_id] = Session(self.blocks)
        return super().__getitem__(session_id)
