"""A race as Gradio wants it: a generator of one string that grows, so that each event carries no more than its new end.

The string is JSON lines for assets/race/race.js. Its first line names the run and says which line of the record comes next; the record is
a "page" line, the race's own records as they are, and an "over" line. Gradio's page compares the whole string at every event (2,000 tokens
in three panels: 19 s for 10 s of work), so what the page says that it has is dropped from it now and then. It has to say so: where it lags,
it sees only the last of the events that came meanwhile. When the race is over, its whole record comes once more, for readers without that script.
"""
from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass
from typing import Callable, Iterator, Sequence

from dmtd_demo import trace
from dmtd_demo.decoders import DECODERS, PanelSpec, Remote
from dmtd_demo.errors import UserError, is_out_of_memory
from dmtd_demo.loading import Model
from dmtd_demo.race import Batch, race
from dmtd_demo.sampling import Sampling
from dmtd_demo.ui.chat import Conversations

EVENT_SECONDS = 0.1          # ten events a second: what a page costs is their number, not their size
LONG_EVENT_SECONDS = 0.2    # once a record is LONG: drawing a long text costs more
LONG = 400                   # lines, one per step
ALTERNATIVES = 5             # that every token records for its tooltip
READ = 60_000                # characters that the page has: from so many on they are dropped, and what is left is sent again

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wanted:
    """A race that was asked for: the panels, one conversation per panel, and how to decode."""
    run: str
    panels: list[PanelSpec]
    conversations: Conversations
    sampling: Sampling
    max_new_tokens: int
    thinking: bool = False


class Record:
    """The lines of one race so far, and the string that shows them to the page."""

    def __init__(self, run: str) -> None:
        self.run = run
        self.lines: list[str] = []
        self.first = 0     # of the lines, the first that the string still has
        self.tail = ""     # the lines from there on

    def add(self, line: str) -> None:
        self.lines.append(line)
        self.tail += line + "\n"

    def window(self, taken: int) -> str:
        """taken: lines of the record that the page has."""
        read = sum(len(line) + 1 for line in self.lines[self.first:taken])
        if read > READ:
            self.first, self.tail = min(taken, len(self.lines)), self.tail[read:]
        return self._from(self.first) + self.tail

    def whole(self) -> str:
        return self._from(0) + "".join(line + "\n" for line in self.lines)

    def _from(self, first: int) -> str:
        return json.dumps({"run": self.run, "first": first}) + "\n"


class Stream:
    """One race on its way to the page. `events` yields the string; afterwards `record` is whole, and `answers` has each panel's text, or is empty."""

    def __init__(self, models: Sequence[Model], wanted: Wanted, should_stop: Callable[[], bool], taken: Callable[[], int],
                 racing: Callable[..., Iterator[Batch]] = race) -> None:
        self.models = models
        self.racing = racing
        self.wanted = wanted
        self.should_stop = should_stop
        self.taken = taken
        self.record = Record(wanted.run)
        self.summaries: dict[int, dict] = {}

    def events(self) -> Iterator[str]:
        try:
            yield from self._race()
        except UserError as error:
            yield self._end("error", str(error))
        except Exception as error:   # the edge: the visitor gets a sentence, the log the rest, and the app goes on
            logger.exception("a race failed")
            yield self._end("error", "The race ran out of memory: fewer panels, fewer new tokens, a shorter conversation or a smaller model need less." if is_out_of_memory(error)
                            else f"The race failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}")

    def _race(self) -> Iterator[str]:
        wanted = self.wanted
        records = self.racing(self.models, wanted.panels, wanted.conversations, wanted.sampling,
                              max_new_tokens=wanted.max_new_tokens, thinking=wanted.thinking, top=ALTERNATIVES, should_stop=self.should_stop)
        try:
            sent = 0.0
            for batch in records:
                if not self.record.lines:   # only now is it known that nothing the visitor supplied is wrong
                    self._say({"type": "page", "turns": wanted.conversations, "notes": notes(self.models, batch[0])})
                for record in batch:
                    self._take(record)
                ended = any(record["type"] == "end" for record in batch)   # what comes next may be the audit, which takes its time
                last = len(self.summaries) == len(wanted.panels)   # the end of the race comes at once, with this
                if not last and (ended or time.monotonic() - sent >= (EVENT_SECONDS if len(self.record.lines) < LONG else LONG_EVENT_SECONDS)):
                    sent = time.monotonic()
                    yield self.record.window(self.taken())
        finally:
            records.close()   # a closed tab ends the race here too
        yield self._end(self.status)

    def _take(self, record: dict) -> None:
        if record["type"] == "summary":
            self.summaries[record["panel"]] = record
        self.record.add(trace.dumps(record).rstrip("\n"))

    def _say(self, line: dict) -> None:
        self.record.add(json.dumps(line, ensure_ascii=False))

    def _end(self, status: str, message: str = "") -> str:
        # Before the first record there is no race to end: the page keeps what it shows and adds the sentence.
        self._say({"type": "over" if self.record.lines else "refused", "status": status, "message": message})
        return self.record.window(self.taken())

    @property
    def status(self) -> str:
        """How the race ended: "stopped" where Stop cut a panel short, "error" where no panel came through."""
        stops = {summary["stop"] for summary in self.summaries.values()}
        if "stopped" in stops:
            return "stopped"
        return "error" if stops == {"error"} else "done"

    @property
    def answers(self) -> list[str]:
        """Each panel's text, where the race came to its end."""
        if len(self.summaries) < len(self.wanted.panels):
            return []
        return [self.summaries[index]["text"] for index in range(len(self.wanted.panels))]


def refusal(run: str, message: str, status: str = "error") -> str:
    """The string of a race that does not begin."""
    record = Record(run)
    record.add(json.dumps({"type": "refused", "status": status, "message": message}, ensure_ascii=False))
    return record.whole()


def waiting(ahead: int) -> str:
    """The string of a race that comes after so many others."""
    record = Record("")
    record.add(json.dumps({"type": "waiting", "ahead": ahead}))
    return record.whole()


def layout(panels: int, clear: bool = False) -> str:
    """The string of a page without a race."""
    record = Record("")
    record.add(json.dumps({"type": "layout", "panels": panels, "clear": clear}))
    return record.whole()


def notes(models: Sequence[Model], header: dict) -> list[dict]:
    """What to warn about before the text comes, as the key of the sentence and its values, from the header of the race over these models, one per panel."""
    warnings = []
    for panel in header["panels"]:
        if panel["decoder"] == Remote.name:
            warnings.append({"text": "note.remote", "values": {"panel": panel["panel"] + 1, "server": panel["options"]["url"]}})
    for model in dict.fromkeys(models):
        panels = [panel for panel, own in zip(header["panels"], models) if own is model and panel["decoder"] != Remote.name]
        if not panels:
            continue
        prompt = max(panel["prompt_tokens"] for panel in panels)
        if model.trained_length and prompt + header["max_new_tokens"] > model.trained_length:
            warnings.append({"text": "note.too_long", "values": {"prompt": prompt, "new": header["max_new_tokens"], "trained": model.trained_length, "model": model.name}})
        if model.split is None and any("split" in DECODERS[panel["decoder"]].needs for panel in panels):
            warnings.append({"text": "note.not_trained", "values": {"model": model.name}})
    return warnings
