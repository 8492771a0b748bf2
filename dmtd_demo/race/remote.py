"""A remote panel in motion: a thread asks its server and stamps every piece as it arrives.

It has no virtual clock: a server elsewhere does not take turns.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from urllib.parse import urlsplit

from dmtd_demo.models.chat import Message
from dmtd_demo.models.thoughts import OPEN, Balanced
from dmtd_demo.race import trace
from dmtd_demo.race.protocol import Panel, ending
from dmtd_demo.race.remote_server import Remote
from dmtd_demo.race.remote_stream import Finish, Piece
from dmtd_demo.race.settings import RaceSettings
from dmtd_demo.race.trace import Burst

# seconds that an answer that is given up may take to let go of its connection
CLOSE_SECONDS = 1.0
# with the seconds since the question
Event = tuple[float, Piece | Finish | Exception]
Question = tuple[asyncio.AbstractEventLoop, asyncio.Task[None], threading.Thread]


class RemotePanel:
    """A server's answer as it arrives. It is a Panel (race/protocol.py).

    records: the pieces so far, as steps of one each. counted: its tokens as the server counts them.
    """

    clock = None
    model = None

    def __init__(
        self,
        index: int,
        remote: Remote,
        messages: Sequence[Message],
        settings: RaceSettings,
    ) -> None:
        self.index = index
        self.remote = remote
        self.records: list[trace.Record] = []
        self.stop: str | None = None
        self.message: str | None = None
        self.counted: int | None = None
        # a server whose template opens the thought sends the closing mark alone
        self._thoughts = Balanced(late=True)
        self._messages = messages
        self._settings = settings
        self._events: SimpleQueue[Event] = SimpleQueue()
        self._question: Question | None = None

    @property
    def tokens(self) -> list[trace.Record]:
        return [token for record in self.records for token in record["tokens"]]

    def facts(self) -> trace.Record:
        """Name the server's model for the header."""
        return {"model": self.remote.options.name or urlsplit(self.remote.server).netloc}

    def prepare(self) -> None:
        """Do nothing: the server is asked when the race starts."""

    def start(self) -> None:
        """Ask the server."""
        loop = asyncio.new_event_loop()
        task = loop.create_task(self._listen(time.perf_counter()))
        thread = threading.Thread(
            target=_complete,
            args=(loop, task),
            name=f"panel {self.index}: {self.remote.server}",
            daemon=True,
        )
        self._question = loop, task, thread
        thread.start()

    def take(self, should_stop: Callable[[], bool], seconds: float) -> Burst:
        """Return the records of all pieces that have come; wait so long for the first of them."""
        taken: Burst = []
        while self.stop is None:
            try:
                at, event = (
                    self._events.get(timeout=seconds)
                    if seconds and not taken
                    else self._events.get_nowait()
                )
            except Empty:
                break
            if isinstance(event, Piece):
                taken.append(self._step(at, event))
            elif isinstance(event, Finish):
                self.stop, self.counted = event.reason, event.tokens
                taken += self._rest(at)
            else:
                self.stop, self.message = (
                    "error",
                    f"remote failed: {' '.join(str(event).split())[:300]}",
                )
        return taken

    def close(self) -> None:
        """Give up the connection; the server then ends its work."""
        if self._question:
            loop, task, thread = self._question
            # raised where the answer has ended by itself
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(task.cancel)
            # else the end of the process would find it in the middle of that, and say so
            thread.join(CLOSE_SECONDS)

    def statistics(self) -> trace.Record:
        """Return the figures of every panel.

        Where the server counts its tokens and the pieces were not one each, its count is taken, and
        `pieces` says how many came.
        """
        figures = trace.statistics(self.records, 0)
        if self._thoughts.unopened:
            figures["text"] = f"{OPEN}\n{figures['text']}"
        if self.counted is not None and self.counted != figures["tokens"]:
            seconds = figures["decode_seconds"]
            figures |= {
                "pieces": figures["tokens"],
                "tokens": self.counted,
                "tokens_per_second": round((self.counted - 1) / seconds, 2)
                if self.counted > 1 and seconds > 0
                else None,
            }
        return figures

    def verdict(self, first: Panel, audit: bool) -> Burst:
        """Return the summary: no model of ours can be asked about the text."""
        nothing = {"agreement": None, "audit_agreement": None, "extra_parameters": None}
        return [{"type": "summary", **ending(self), **nothing}]

    def _step(self, at: float, piece: Piece) -> trace.Record:
        token = {
            "id": None,
            "text": self._thoughts.push(piece.text),
            "origin": "remote",
            "span": 0,
            "logprob": None if piece.logprob is None else round(piece.logprob, 5),
            **({"top": [[None, text, round(p, 5)] for text, p in piece.top]} if piece.top else {}),
        }
        record = {
            "type": "step",
            "panel": self.index,
            "step": len(self.records),
            "ms": round(1000 * at, 3),
            "passes": [],
            "tokens": [token],
        }
        self.records.append(record)
        return record

    def _rest(self, at: float) -> Burst:
        """Return what was held back, as one more piece."""
        held = self._thoughts.finish()
        return [self._step(at, Piece(held))] if held else []

    async def _listen(self, began: float) -> None:
        try:
            answer = self.remote.answer(self._messages, self._settings)
            async with contextlib.aclosing(answer) as parts:
                async for part in parts:
                    self._events.put((time.perf_counter() - began, part))
        except Exception as error:
            # one panel's failure is shown in that panel
            self._events.put((time.perf_counter() - began, error))


def _complete(loop: asyncio.AbstractEventLoop, task: asyncio.Task[None]) -> None:
    try:
        with contextlib.suppress(asyncio.CancelledError):
            loop.run_until_complete(task)
        # what an answer that was given up leaves behind closes by tasks of its own
        loop.run_until_complete(loop.shutdown_asyncgens())
        if left := asyncio.all_tasks(loop):
            loop.run_until_complete(asyncio.wait(left, timeout=CLOSE_SECONDS))
    finally:
        loop.close()
