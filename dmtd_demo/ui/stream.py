"""A race as Gradio wants it: a generator of one string that grows, in the form of web/wire.py."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass
from typing import Callable, Generator, Iterator, Sequence

from dmtd_demo.decoders import DECODERS
from dmtd_demo.errors import UserError, is_out_of_memory
from dmtd_demo.models.chat import Conversations
from dmtd_demo.models.model import Model
from dmtd_demo.race import trace
from dmtd_demo.race.panels import PanelSpec
from dmtd_demo.race.race import race
from dmtd_demo.race.remote_server import Remote
from dmtd_demo.race.settings import RaceSettings
from dmtd_demo.race.trace import Burst
from dmtd_demo.sampling import Sampling
from dmtd_demo.web.wire import WireRecord

# ten events a second: what a page costs is their number, not their size
EVENT_SECONDS = 0.1
LONG_EVENT_SECONDS = 0.2  # once a record is LONG: drawing a long text costs more
# in the first seconds of a race that the page plays when it is over (assets/race/player.js)
HELD_EVENT_SECONDS, HELD_SECONDS = 0.5, 2.0
# before the first pass of such a race: the page draws the new turn, which would slow it down, and
# the first token's event would wait as long for the header's anyway
NEW_TURN_SECONDS = 0.08
LONG = 400  # lines, one per step
ALTERNATIVES = 5  # that every token records for its tooltip

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WantedRace:
    """A race that was asked for: the panels, one conversation per panel, and how to decode."""

    run: str
    panels: list[PanelSpec]
    conversations: Conversations
    sampling: Sampling
    max_new_tokens: int
    thinking: bool = False
    slowed: bool = False


class Stream:
    """One race on its way to the page.

    `events` yields the string; afterwards `record` is whole, and `answers` has each panel's text,
    or is empty.
    """

    def __init__(
        self,
        models: Sequence[Model],
        wanted: WantedRace,
        should_stop: Callable[[], bool],
        taken: Callable[[], int],
        racing: Callable[..., Generator[Burst, None, None]] = race,
    ) -> None:
        self.models = models
        self.racing = racing
        self.wanted = wanted
        self.should_stop = should_stop
        self.taken = taken
        self.record = WireRecord(wanted.run)
        self.summaries: dict[int, dict] = {}
        self.begun = 0.0  # when the first token went out
        # the id in the race's header, and each panel's tokens
        self.header_run = ""
        self.ids: list[list[int | None]] = [[] for _ in wanted.panels]

    def events(self) -> Iterator[str]:
        try:
            yield from self._race()
        except UserError as error:
            yield self._end("error", str(error))
        except Exception as error:
            # the edge: the visitor gets a sentence, the log the rest, and the app goes on
            logger.exception("a race failed")
            said = " ".join(str(error).split())[:300]
            yield self._end(
                "error",
                "The race ran out of memory: fewer panels, fewer new tokens, a shorter "
                "conversation or a smaller model need less."
                if is_out_of_memory(error)
                else f"The race failed: {type(error).__name__}: {said}",
            )

    def _race(self) -> Iterator[str]:
        wanted = self.wanted
        records = self.racing(
            self.models,
            wanted.panels,
            wanted.conversations,
            RaceSettings(
                wanted.sampling,
                wanted.max_new_tokens,
                top=ALTERNATIVES,
                thinking=wanted.thinking,
            ),
            self.should_stop,
        )
        try:
            sent = 0.0
            for batch in records:
                # only now is it known that nothing the visitor supplied is wrong
                if not self.record.lines:
                    self._say(
                        {
                            "type": "page",
                            "turns": wanted.conversations,
                            "notes": notes(self.models, batch[0]),
                        }
                    )
                for record in batch:
                    self._take(record)
                # what comes next may be the audit, which takes its time
                ended = any(record["type"] == "end" for record in batch)
                # the end of the race comes at once, with this
                last = len(self.summaries) == len(wanted.panels)
                now = time.monotonic()
                if not last and (ended or now - sent >= self._apart(now)):
                    sent = now
                    if not self.begun and any(self.ids):
                        self.begun = now
                    yield self.record.window(self.taken())
                    if self.wanted.slowed and not any(self.ids):
                        time.sleep(NEW_TURN_SECONDS)
        finally:
            records.close()  # a closed tab ends the race here too
        yield self._end(self.status)

    def _apart(self, now: float) -> float:
        """Return how far apart events are at this time, in seconds."""
        if self.wanted.slowed and self.begun and now - self.begun < HELD_SECONDS:
            return HELD_EVENT_SECONDS
        return EVENT_SECONDS if len(self.record.lines) < LONG else LONG_EVENT_SECONDS

    def _take(self, record: dict) -> None:
        if record["type"] == "header":
            self.header_run = record["run"]
        elif record["type"] == "step":
            self.ids[record["panel"]] += [token["id"] for token in record["tokens"]]
        elif record["type"] == "summary":
            self.summaries[record["panel"]] = record
        self.record.add(trace.dumps(record).rstrip("\n"))

    def _say(self, line: dict) -> None:
        self.record.add(json.dumps(line, ensure_ascii=False))

    def _end(self, status: str, message: str = "") -> str:
        # Before the first record there is no race to end: the page keeps what it shows and adds the
        # sentence.
        self._say(
            {
                "type": "over" if self.record.lines else "refused",
                "status": status,
                "message": message,
            }
        )
        return self.record.window(self.taken())

    @property
    def status(self) -> str:
        """Return how the race ended: "stopped" where Stop cut a panel short, "error" where no panel
        came through."""
        stops = {summary["stop"] for summary in self.summaries.values()}
        if "stopped" in stops:
            return "stopped"
        return "error" if stops == {"error"} else "done"

    @property
    def answers(self) -> list[str]:
        """Return each panel's text, where the race came to its end."""
        if len(self.summaries) < len(self.wanted.panels):
            return []
        return [self.summaries[index]["text"] for index in range(len(self.wanted.panels))]


def notes(models: Sequence[Model], header: dict) -> list[dict]:
    """Return the warnings before the text comes, as keys of sentences with their values.

    They come from the header of the race over these models, one per panel.
    """
    warnings = []
    for panel in header["panels"]:
        if panel["decoder"] == Remote.name:
            warnings.append(
                {
                    "text": "note.remote",
                    "values": {"panel": panel["panel"] + 1, "server": panel["options"]["url"]},
                }
            )
    for model in dict.fromkeys(models):
        panels = [
            panel
            for panel, own in zip(header["panels"], models)
            if own is model and panel["decoder"] != Remote.name
        ]
        if not panels:
            continue
        prompt = max(panel["prompt_tokens"] for panel in panels)
        if model.trained_length and prompt + header["max_new_tokens"] > model.trained_length:
            warnings.append(
                {
                    "text": "note.too_long",
                    "values": {
                        "prompt": prompt,
                        "new": header["max_new_tokens"],
                        "trained": model.trained_length,
                        "model": model.name,
                    },
                }
            )
        for panel in panels:
            if panel.get("takes_nothing"):
                values = {"panel": panel["panel"] + 1, "decoder": panel["decoder"]}
                warnings.append({"text": "note.takes_nothing", "values": values})
        late = [
            decoder for panel in panels if "split" in (decoder := DECODERS[panel["decoder"]]).needs
        ]
        if model.split is None and late:
            # what checks its drafts writes none of them unseen: it is slow
            key = "note.drafts_untrained" if all(d.lossless for d in late) else "note.not_trained"
            warnings.append({"text": key, "values": {"model": model.name}})
    return warnings
