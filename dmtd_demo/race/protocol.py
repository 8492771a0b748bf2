"""The protocol of a panel in motion, and what the race says of one that has ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from dmtd_demo.models.model import Model
from dmtd_demo.race.trace import Burst, Record


class Panel(Protocol):
    """A panel in motion: a decoder of this machine (LocalPanel) or a server (RemotePanel).

    stop: how it ended, None while it goes on. message: the sentence of a failure.
    """

    index: int
    stop: str | None
    message: str | None

    @property
    def clock(self) -> float | None:
        """Seconds of its own steps; None for a panel that takes no turns."""

    @property
    def model(self) -> Model | None:
        """The model that writes it; None where none of ours does."""

    @property
    def tokens(self) -> list[Record]:
        """Every token that it has emitted."""

    def facts(self) -> Record:
        """Describe its model for the header."""

    def prepare(self) -> None:
        """Do what no clock counts."""

    def start(self) -> None:
        """Let the clock begin."""

    def take(self, should_stop: Callable[[], bool], seconds: float) -> Burst:
        """Return the records of a turn; wait at most so long for what others compute."""

    def statistics(self) -> Record:
        """Return its figures so far."""

    def verdict(self, first: Panel, audit: bool) -> Burst:
        """Return the records that follow its end: the audit, where one is made, and the summary."""

    def close(self) -> None:
        """Give back what it holds."""


def ending(panel: Panel) -> Record:
    """Say how a panel ended, with its figures: for its `end` and its `summary`."""
    return {
        "panel": panel.index,
        "stop": panel.stop,
        **({"message": panel.message} if panel.message else {}),
        **panel.statistics(),
    }
