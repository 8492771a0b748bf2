"""The page's words to a race that runs.

They are: to stop, which a race asks before every pass, and how much of its record has come.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field

# of whoever never says that they leave, as a script does not; more than can wait at once
MOST_FLAGS = 2000


@dataclass
class Flag:
    # the id that the page gave this race when Run was pressed
    run: str
    stop: threading.Event = field(default_factory=threading.Event)
    # a new chat has begun: the answers are not kept
    forget: bool = False
    # lines of its record that the page has
    taken: int = 0


class Stops:
    """The flag of each session's latest race.

    The race and the Stop button name it by its id, so a Stop that comes while the race still waits
    for the device counts, and one that comes too late stops nothing else.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._flags: OrderedDict[str, Flag] = OrderedDict()

    def flag(self, session: str, run: str) -> Flag:
        with self._lock:
            flag = self._flags.get(session)
            if flag is None or flag.run != run:
                flag = self._flags[session] = Flag(run)
                if len(self._flags) > MOST_FLAGS:
                    self._flags.popitem(last=False)
            self._flags.move_to_end(session)
            return flag

    def take(self, session: str, run: str, lines: int) -> None:
        """Note that the page has so many lines of this race, if it is the session's latest."""
        with self._lock:
            flag = self._flags.get(session)
            if flag is not None and flag.run == run:
                flag.taken = max(flag.taken, lines)

    def drop(self, session: str) -> None:
        """Forget a visitor who has left: a race of theirs ends at its next pass."""
        with self._lock:
            flag = self._flags.pop(session, None)
        if flag is not None:
            flag.stop.set()
