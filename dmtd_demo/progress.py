"""How far a long piece of work has come, and whether it is still wanted."""

from __future__ import annotations

from typing import Callable

# Called with what is being done, how much of it is done, and how much there is in all; raises Cancelled where it is wanted no longer.
Progress = Callable[[str, int, int], None]


def no_progress(stage: str, done: int, total: int) -> None:
    """Nobody listens."""
