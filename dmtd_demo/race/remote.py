"""A remote panel in motion: its server is asked in a thread of its own, and what comes is stamped as it arrives. No virtual clock: a server elsewhere does not take turns."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Sequence
from queue import Empty, SimpleQueue

from dmtd_demo.models.chat import Message
from dmtd_demo.race import trace
from dmtd_demo.race.remote_server import Finish, Piece, Remote
from dmtd_demo.sampling import Sampling

Event = tuple[float, Piece | Finish | Exception]  # seconds since the question


class Arrivals:
    """records: what has come so far, as steps of one piece each. stop: how it ended; None while it goes on."""

    def __init__(
        self,
        index: int,
        remote: Remote,
        messages: Sequence[Message],
        sampling: Sampling,
        max_new_tokens: int,
        top: int,
        ignore_eos: bool,
        thinking: bool,
    ) -> None:
        self.index = index
        self.remote = remote
        self.records: list[trace.Record] = []
        self.stop: str | None = None
        self.message: str | None = None
        self.counted: int | None = None  # tokens, by the server
        self._question = (messages, sampling, max_new_tokens)
        self._more = {"top": top, "ignore_eos": ignore_eos, "thinking": thinking}
        self._events: SimpleQueue[Event] = SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """The clock begins."""
        self._loop = asyncio.new_event_loop()
        self._task = self._loop.create_task(self._listen(time.perf_counter()))
        threading.Thread(
            target=self._run, name=f"panel {self.index}: {self.remote.server}", daemon=True
        ).start()

    def take(self, seconds: float = 0.0) -> list[trace.Record]:
        """The records of what has come since; waits so long for the first of them."""
        taken: list[trace.Record] = []
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
            else:
                self.stop, self.message = (
                    "error",
                    f"remote failed: {' '.join(str(event).split())[:300]}",
                )
        return taken

    def close(self) -> None:
        """The connection is given up; the server then ends its work."""
        if self._loop:
            with contextlib.suppress(RuntimeError):  # it has ended by itself
                self._loop.call_soon_threadsafe(self._task.cancel)

    def statistics(self) -> trace.Record:
        """As of every panel. Where the server counts its tokens and what came was not one each, its count; pieces: how many came."""
        figures = trace.statistics(self.records, 0)
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

    def _step(self, at: float, piece: Piece) -> trace.Record:
        token = {
            "id": None,
            "text": piece.text,
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

    def _run(self) -> None:
        try:
            with contextlib.suppress(asyncio.CancelledError):
                self._loop.run_until_complete(self._task)
        finally:
            self._loop.close()

    async def _listen(self, began: float) -> None:
        try:
            async with contextlib.aclosing(
                self.remote.answer(*self._question, **self._more)
            ) as parts:
                async for part in parts:
                    self._events.put((time.perf_counter() - began, part))
        except Exception as error:  # one panel's failure is shown in that panel
            self._events.put((time.perf_counter() - began, error))
