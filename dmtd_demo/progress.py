"""Reports of a long piece of work: its progress, and whether it is still wanted."""

from __future__ import annotations

from typing import Callable

# called with the stage, how much of it is done, and how much there is in all; raises Cancelled
# where the work is no longer wanted
Progress = Callable[[str, int, int], None]


def no_progress(stage: str, done: int, total: int) -> None:
    """Report to nobody."""
