"""The order of races where a class shares one machine.

The lecturer's is next, then that of whoever has waited longest since the last race of theirs.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

LOOK_SECONDS = 0.25  # between two looks at whether a waiting visitor has given up
MOST_ADDRESSES = 10_000


@dataclass(eq=False)
class Ticket:
    address: str
    first: bool
    number: int


class Turns:
    """One race at a time.

    Nobody gets a second turn while somebody waits who came before that turn and had none.
    """

    def __init__(self) -> None:
        self._free = threading.Condition()
        self._numbers = itertools.count(1)
        self._waiting: list[Ticket] = []
        self._busy = False
        self._served: dict[str, int] = {}  # by address: the number of its last race

    @contextlib.contextmanager
    def waiting(self, address: str, first: bool = False) -> Iterator[Callable[[], int]]:
        """Give a function that waits a moment and says how many races are ahead.

        0: it is this one's turn, until the block ends.
        """
        ticket = Ticket(address, first, next(self._numbers))
        with self._free:
            self._waiting.append(ticket)
        mine = False

        def ahead() -> int:
            nonlocal mine
            with self._free:
                for look in range(2):
                    before = self._before(ticket)
                    if not before and not self._busy:
                        self._waiting.remove(ticket)
                        self._busy = mine = True
                        if len(self._served) > MOST_ADDRESSES:
                            self._served.clear()
                        self._served[address] = next(self._numbers)
                        return 0
                    if look == 0:
                        self._free.wait(LOOK_SECONDS)
                return self._before(ticket) + self._busy

        try:
            yield ahead
        finally:
            with self._free:
                if mine:
                    self._busy = False
                else:
                    self._waiting.remove(ticket)
                self._free.notify_all()

    def _before(self, ticket: Ticket) -> int:
        return sum(self._rank(other) < self._rank(ticket) for other in self._waiting)

    def _rank(self, ticket: Ticket) -> tuple[bool, int, int]:
        return not ticket.first, self._served.get(ticket.address, 0), ticket.number
