"""A visitor's long piece of work, in a thread of its own: how far it is, and its cancelling."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from typing import Any, TypeVar

from dmtd_demo.errors import Cancelled
from dmtd_demo.progress import Progress

Result = TypeVar("Result")
LOOK_SECONDS = 0.15  # between two looks at how far it is


class Job:
    """A piece of work that can be cancelled.

    state: what is being done, how much of it, and of how much; 0 in all: not known.
    """

    def __init__(self) -> None:
        self.cancelled = threading.Event()
        self.state: tuple[str, int, int] = ("", 0, 0)

    def run(
        self, work: Callable[[Progress], Result], wait: bool
    ) -> Generator[tuple[str, int, int], None, Result]:
        """Yield the state while the work goes on; return what it returns.

        Raises what the work raises, and Cancelled where it was cancelled: once it has ended where
        `wait`, else at once.

        Closing the generator cancels the work.
        """
        ended: list[tuple[bool, Any]] = []

        def whole() -> None:
            try:
                ended.append((True, work(self._told)))
            except BaseException as error:  # it is raised below, where somebody waits for it
                ended.append((False, error))

        thread = threading.Thread(target=whole, daemon=True)
        thread.start()
        shown = None
        try:
            while thread.is_alive():
                if self.cancelled.is_set() and not wait:
                    raise Cancelled
                if self.state != shown:
                    shown = self.state
                    yield shown
                thread.join(LOOK_SECONDS)
        finally:
            if thread.is_alive():
                self.cancelled.set()
                if wait:
                    thread.join()
        good, value = ended[0]
        if not good:
            raise value
        return value

    def _told(self, stage: str, done: int, total: int) -> None:
        self.state = (stage, done, total)
        if self.cancelled.is_set():
            raise Cancelled


class Jobs:
    """The latest job of each session."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._jobs: dict[str, Job] = {}

    def new(self, session: str) -> Job:
        """Begin a visitor's only job: an earlier one is cancelled."""
        with self._lock:
            earlier = self._jobs.get(session)
            job = self._jobs[session] = Job()
        if earlier:
            earlier.cancelled.set()
        return job

    def latest(self, session: str) -> Job:
        with self._lock:
            return self._jobs.setdefault(session, Job())

    def drop(self, session: str) -> None:
        """Cancel the job of a visitor who has left."""
        with self._lock:
            job = self._jobs.pop(session, None)
        if job:
            job.cancelled.set()
