"""The races of the page's visitors: each from its question to its record, and what is asked of one.

Visitors share the models and the device; stop flags are each visitor's own.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from typing import Any

import gradio as gr

from dmtd_demo.errors import UserError
from dmtd_demo.machine import on_zero_gpu
from dmtd_demo.models.chat import can_think, check_text, instructed
from dmtd_demo.models.residents import Residents
from dmtd_demo.race.race import race
from dmtd_demo.server import zero
from dmtd_demo.server.allowance import (
    FEWEST_PANELS,
    MOST_PANELS,
    Rules,
    Turnstile,
    address_of,
)
from dmtd_demo.server.lecture import Lecture
from dmtd_demo.server.stops import Stops
from dmtd_demo.server.trust import standing_of
from dmtd_demo.server.turns import Turns
from dmtd_demo.ui import branches, stream
from dmtd_demo.ui.chat import Chat, answered
from dmtd_demo.ui.panel_row import PanelRow
from dmtd_demo.ui.question import Question
from dmtd_demo.web import wire

LAST_EVENT_SECONDS = 0.1  # between the end of a race and its whole record


class VisitorRaces:
    """Runs what visitors ask for, within what they may.

    row: the panels whose values a question holds. lecture: where a class shares the page, everybody
    sees the lecturer's races, and they run before those of the class.
    """

    def __init__(
        self, models: Residents, row: PanelRow, rules: Rules, lecture: Lecture | None = None
    ) -> None:
        self.models = models
        self.row = row
        self.rules = rules
        self.lecture = lecture
        self.turns = Turns() if lecture else None
        self.racing = zero.Lent(models, gr.Error).race if on_zero_gpu() else race
        self.stops = Stops()
        self.turnstiles = {
            rights: Turnstile(rights.allowance) for rights in (rules.owner, rules.stranger)
        }

    def race(self, request: gr.Request, asked: str, chat: Chat) -> Iterator[tuple[Any, Any, Any]]:
        with contextlib.ExitStack() as held:
            run = ""
            try:
                question = Question.of(asked)
                run, how = question.run, question.how
                flag = self.stops.flag(str(request.session_hash), run)
                keys, specs = self.row.chosen(question)
                models = held.enter_context(self.models.using(keys))  # until the race is over
                sampling = question.sampling
                if how in ("reply", "edit", "again") and not chat.prompt:
                    raise UserError("a reply needs a race to go on from; got none")
                if how not in ("reply", "edit", "again"):
                    chat = Chat()
                conversations = chat.asked(
                    chat.prompt if how == "again" else question.prompt,
                    len(specs),
                    again=how in ("edit", "again"),
                )
                prompt = conversations[0][-1]["content"]
                check_text(prompt)
                turnstile = self.turnstiles[self.rules.of(request)]
                turnstile.allowance.check(prompt, question.max_new_tokens, len(specs))
                turnstile.enter(address_of(request))
                wanted = stream.WantedRace(
                    run,
                    specs,
                    instructed(conversations, question.system),
                    sampling,
                    question.max_new_tokens,
                    question.thinking and any(can_think(model.tokenizer) for model in models),
                    question.slowed,
                )
            except UserError as error:
                yield wire.refusal(run, str(error)), gr.skip(), gr.skip()
                return
            if self.turns:
                ahead = held.enter_context(
                    self.turns.waiting(address_of(request), self._lectures(request))
                )
                shown = 0
                while (count := ahead()) and not flag.stop.is_set():
                    if count != shown:
                        shown = count
                        yield wire.waiting(count), gr.skip(), gr.skip()
                if count:
                    yield wire.refusal(run, "", "stopped"), gr.skip(), gr.skip()
                    return
            running = stream.Stream(
                models, wanted, flag.stop.is_set, lambda: flag.taken, self.racing
            )
            for text in running.events():
                if self.lecture and self._lectures(request):
                    self.lecture.publish(running.record)
                yield text, gr.skip(), gr.skip()
            # the whole record, a megabyte for 4,000 tokens, would hold up the few bytes of the end
            time.sleep(LAST_EVENT_SECONDS)
            kept: Any = chat
            if flag.forget or how == "tour":
                kept = gr.skip()
            elif running.answers:
                kept = answered(conversations, running.answers)
            raced = branches.Raced(
                running.header_run,
                keys,
                wanted.conversations,
                wanted.thinking,
                [None if None in ids else [i for i in ids if i is not None] for ids in running.ids],
            )
            yield running.record.whole(), kept, raced

    def branch(self, request: gr.Request, asked: str, raced: branches.Raced | None) -> str:
        """Return as JSON what `ar` writes from a token of the last race on, or why it does not."""
        said: dict[str, Any] = {}
        try:
            wanted = branches.Branching.of(asked, raced)
            assert raced is not None
            said["asked"] = [wanted.run, wanted.panel, wanted.index]
            self.turnstiles[self.rules.of(request)].enter(address_of(request))
            with contextlib.ExitStack() as held:
                if self.turns:
                    ahead = held.enter_context(
                        self.turns.waiting(address_of(request), self._lectures(request))
                    )
                    while ahead():
                        pass
                (model,) = held.enter_context(self.models.using([raced.keys[wanted.panel]]))
                said["text"] = branches.go_on(model, raced, wanted)
        except UserError as error:
            said.setdefault("asked", None)
            said["message"] = str(error)
        return json.dumps(said, ensure_ascii=False)

    def _lectures(self, request: gr.Request) -> bool:
        """Say whether a request is the lecturer's, whose races everybody sees."""
        return self.lecture is not None and standing_of(request).owner

    def request_stop(self, run: str, request: gr.Request) -> None:
        self.stops.flag(str(request.session_hash), run).stop.set()

    def note_taken(self, run: str, lines: Any, request: gr.Request) -> None:
        if isinstance(lines, int):
            self.stops.take(str(request.session_hash), run, lines)

    def start_over(self, run: str, count: Any, request: gr.Request) -> tuple[str, Chat]:
        flag = self.stops.flag(str(request.session_hash), run)
        flag.forget = True
        flag.stop.set()
        return wire.layout(
            count if count in range(FEWEST_PANELS, MOST_PANELS + 1) else self.row.shown, clear=True
        ), Chat()

    def leave(self, request: gr.Request) -> None:
        """Stop what runs for a visitor who has gone."""
        self.stops.drop(str(request.session_hash))
