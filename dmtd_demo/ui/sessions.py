"""The states that the server keeps of each visitor, the chat among them, and no more.

Gradio also copies every component's config for each visitor, with each value that it sends, so that
a deep link could bring the page back: a quarter of a megabyte and 18 ms when a visitor comes, and
the whole record of each race, for as long as the server runs. This page has no deep links; its own
are made from the controls (ui/links.py). And of each component that an event changes it makes one
anew for each visitor, thirty of 10 KB as one arrives: here those that are built alike are one.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import MutableMapping
from types import SimpleNamespace
from typing import Any, cast
from weakref import WeakValueDictionary

from gradio.blocks import Block, Blocks
from gradio.components import State
from gradio.state_holder import SessionState, StateHolder

# visitors whose chats are kept; beyond them the one that has been quiet the longest begins a new
# one
SESSIONS = 2000

# by its id and what it was built with
Built = MutableMapping[tuple[int, str], Block]


class Session(SessionState):
    """One visitor's chat, and the components that differ for them. built: those of all visitors."""

    def __init__(self, blocks: Blocks, built: Built) -> None:
        # no component whose config would be copied
        without = SimpleNamespace(default_config=blocks.default_config, blocks=())
        super().__init__(cast(Blocks, without))
        self.built = built
        # what is the same for everybody is there once
        self.blocks_config.fns = blocks.default_config.fns
        self.blocks_config.blocks = cast(
            dict[int, Any], ChainMap({}, cast(dict[int, Any], blocks.default_config.blocks))
        )

    def __setitem__(self, key: int, value: Any) -> None:
        if isinstance(self.blocks_config.blocks.get(key), State):
            super().__setitem__(key, value)
            self.config_values.clear()
        else:
            alike = (key, repr(value.constructor_args))
            self.blocks_config.blocks[key] = self.built.setdefault(alike, value)

    def _update_config(self, key: int) -> None:
        pass

    def _update_value_in_config(self, key: int, value: Any) -> None:
        pass


class Sessions(StateHolder):
    def __init__(self) -> None:
        super().__init__()
        self.built: Built = WeakValueDictionary()

    def __getitem__(self, session_id: str) -> SessionState:
        if session_id not in self.session_data:
            self.session_data[session_id] = Session(self.blocks, self.built)
        return super().__getitem__(session_id)
