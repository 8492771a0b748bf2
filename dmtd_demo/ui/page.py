"""The page: its layout and its wiring."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import gradio as gr

from dmtd_demo.decoders import DECODERS
from dmtd_demo.errors import UserError
from dmtd_demo.machine import on_zero_gpu
from dmtd_demo.models.chat import MAX_CHARACTERS, can_think, check_text, instructed
from dmtd_demo.models.fed_back import FedBackHead
from dmtd_demo.models.model import Model
from dmtd_demo.models.residents import Residents
from dmtd_demo.race.panels import PANELS, PanelSpec, make_writer, parse_panel
from dmtd_demo.race.race import race
from dmtd_demo.race.remote_server import Remote
from dmtd_demo.sampling import Sampling
from dmtd_demo.server import zero
from dmtd_demo.server.allowance import (
    FEWEST_PANELS,
    MOST_PANELS,
    Allowance,
    Rights,
    Rules,
    Turnstile,
    address_of,
)
from dmtd_demo.server.lecture import Lecture
from dmtd_demo.server.stops import Stops
from dmtd_demo.server.trust import standing_of
from dmtd_demo.server.turns import Turns
from dmtd_demo.shipped import ASSETS
from dmtd_demo.ui import branches, controls, links, stream
from dmtd_demo.ui.about import OFFER_SCRIPT, about
from dmtd_demo.ui.chat import Chat, answered, brought_back
from dmtd_demo.ui.examples import (
    EXAMPLES,
    OPEN_EXAMPLES,
    PRESETS,
    first_prompt,
    of_the_world,
)
from dmtd_demo.ui.i18n import control
from dmtd_demo.ui.model_line import HEADER_SCRIPT, SHOW_LINES, header, model_lines
from dmtd_demo.ui.models import ModelPicker
from dmtd_demo.ui.question import Question, whole
from dmtd_demo.ui.race_view import PLOTLY_PATH, RaceView
from dmtd_demo.ui.tour import Tour
from dmtd_demo.ui.training import TrainingPart
from dmtd_demo.web import replay_file, wire
from dmtd_demo.web.texts import english

PANELS_SHOWN = 3
# the race that plays before the first one: scripts/first_race.py
RECORDED = ASSETS / "first_race.jsonl"
# the first four that the model can run; the fourth is hidden at first
DEFAULT_PANELS = (
    "ar",
    "mtp-native-verified",
    "dmtd:tau=4",
    "clp",
    "mtp-native",
    "dmtd:tau=2",
    "dmtd:tau=6",
)
# where all of it was trained for a language model as it is, SmolLM2: what checks comes first
TRAINED_PANELS = ("ar", "mtp-verified", "clp", "dmtd:tau=2")
# for a language model as it is: add-ons where there are any, else what needs none and writes what
# `ar` writes
PLAIN_PANELS = (
    "ar",
    "mtp-native-verified",
    "mtp-verified",
    "clp",
    "mtp-native",
    "prompt-lookup",
    "dmtd-spec",
    "dmtd:tau=2",
)
WAITING_VISITORS = 16
CLASS = 100  # that many may wait where a class shares the page
LAST_EVENT_SECONDS = 0.1  # between the end of a race and its whole record
# between two looks of Gradio's queue whether a race was asked for: by itself it looks a thousand
# times a second, each time taking the interpreter's lock from the race
QUEUE_SECONDS = 0.02
CHAT_SECONDS = 6 * 3600  # a chat that nobody has touched for so long is dropped

# of the page before it was loaded again; its script may come after this event
KEPT = """async (kept, ...keys) => {
  while (!window.dmtdRace) await new Promise((wait) => setTimeout(wait, 20));
  return [window.dmtdRace.kept(), ...keys];
}"""

# by hint.<element id>
EXPLAINED = (
    "panels",
    "max-tokens",
    "seed",
    "temperature",
    "top-k",
    "top-p",
    "system",
    "thinking",
)


def first_panels(model: Model, given: Sequence[PanelSpec] = ()) -> list[PanelSpec]:
    """Return four panels to begin with: those given, then the default ones.

    Raises UserError where the model cannot run one that was given.
    """
    if len(given) > MOST_PANELS:
        raise UserError(f"a page has at most {MOST_PANELS} panels; got {len(given)}")
    for spec in given:
        PANELS[spec.decoder].resolve(make_writer(spec).options, model)
    # a head that was trained beside a model is not the model's own
    trained = isinstance(model.addons.get("native_mtp"), FedBackHead)
    names = DEFAULT_PANELS if model.split else PLAIN_PANELS
    specs = [*given] + [
        spec
        for spec in map(parse_panel, TRAINED_PANELS if trained else names)
        if not DECODERS[spec.decoder].missing(model) and spec not in given
    ]
    return [*specs, *[parse_panel("ar")] * MOST_PANELS][:MOST_PANELS]


class Page:
    """The page.

    Visitors share the models and the device; chats, stop flags and what the panels use are each
    visitor's own.

    models: those that are there at the start. rules: what the owner may, and what strangers may.
    own: whether the page is the owner's as it comes, and a stranger's after a moment, or the other
    way round. panels: those to begin with; the servers of remote ones among them are the only ones
    that can be asked. lecture: where a class shares the page, the owner is the lecturer.
    """

    def __init__(
        self,
        models: Residents,
        rules: Rules = Rules(),
        own: bool = False,
        panels: Sequence[PanelSpec] = (),
        lecture: Lecture | None = None,
    ) -> None:
        self.models = models
        self.rules = rules
        self.built_for = rules.owner if own else rules.stranger
        self.lecture = lecture
        self.turns = Turns() if lecture else None
        self.lent = on_zero_gpu()
        self.racing = zero.Lent(models, gr.Error).race if self.lent else race
        # loading takes the device from everybody
        fixed = self.lent or lecture is not None
        self.picker = ModelPicker(self.models, rules, fixed, shown=self.built_for.anything)
        train = (rules.owner.train or rules.stranger.train) and not fixed
        self.training = TrainingPart(self.models, rules) if train else None
        self.first = model = models.get(models.keys[0])
        self.stops = Stops()
        self.turnstiles = {
            rights: Turnstile(rights.allowance) for rights in (rules.owner, rules.stranger)
        }
        self.specs = first_panels(model, panels)
        self.shown = max(FEWEST_PANELS, len(panels)) if panels else PANELS_SHOWN
        self.servers = {str(spec): spec for spec in panels if spec.decoder == Remote.name}

    def build(self) -> gr.Blocks:
        with gr.Blocks(
            title=english("page.title"), analytics_enabled=False, fill_width=True
        ) as page:
            head = gr.HTML(
                header(self.first, self.lecture is not None),
                js_on_load=HEADER_SCRIPT,
                apply_default_css=False,
                elem_id="head",
            )
            self.tour = Tour()
            self.picker.build()
            with gr.Row(elem_id="ask"):
                self.prompt = gr.Textbox(
                    first_prompt(self.first),
                    lines=1,
                    max_lines=6,
                    show_label=False,
                    container=False,
                    elem_id="prompt",
                    placeholder=control("control.prompt"),
                )
                with gr.Row(elem_id="buttons"):
                    self.run = gr.Button(control("control.run"), variant="primary", elem_id="run")
                    self.stop = gr.Button(control("control.stop"), elem_id="stop")
                    self.new_chat = gr.Button(control("control.new_chat"), elem_id="new-chat")
            gr.HTML(
                about(self.first, offered=not self.picker.fixed),
                js_on_load=OFFER_SCRIPT,
                apply_default_css=False,
                elem_id="about",
            )
            with gr.Row(elem_id="strip"):
                self._examples()
                self._settings()
            with gr.Row(elem_id="panel-row"):
                self.panels = [
                    controls.PanelControls(
                        self.models, index, spec, index < self.shown, self.servers
                    )
                    for index, spec in enumerate(self.specs)
                ]
            hints = {name: f"hint.{name}" for name in EXPLAINED} | controls.option_hints()
            self.view = RaceView(
                wire.layout(self.shown),
                hints,
                PLOTLY_PATH.lstrip("/"),
                replay_file.template(),
                RECORDED.read_text(encoding="utf-8"),
                elem_id="race",
            )
            if self.training:
                self.training.build(visible=self.built_for.train)
            self.chat = gr.State(Chat(), time_to_live=CHAT_SECONDS)
            self.raced = gr.State(None, time_to_live=CHAT_SECONDS)
            # filled by the page's script as Run is pressed (question.py)
            self.question = gr.Textbox(visible=False)
            self.run_id = gr.Textbox(visible=False)
            self.lines_taken = gr.Number(visible=False, precision=0)
            # the page's script presses these
            self.take = gr.Button("", elem_id="take")
            self.remember = gr.Button("", elem_id="remember")
            # likewise, for what is asked under the texts
            self.go_on = gr.Button("", elem_id="go-on")
            if not self.lent:
                # as a token is asked about, that ar would not have chosen
                self.branch_ask = gr.Button("", elem_id="branch-ask")
                self.branch_asked = gr.Textbox(visible=False)
                self.branch_said = gr.Textbox(visible=False)
            self._wire(page)
            # Gradio's page else goes through the outputs of all events so far at each event of a
            # race, to mark them as waiting: 14 ms on a laptop
            for event in page.fns.values():
                event.show_progress_on = [head]
        # nobody passes by the queue, in which one race at a time has the device
        page.queue(max_size=CLASS if self.lecture else WAITING_VISITORS, api_open=False)
        page._queue.sleep_when_free = page._queue.progress_update_sleep_when_free = QUEUE_SECONDS
        return page

    def _examples(self) -> None:
        # of the one kind of model and of the other: the row of the first panel's is shown
        world = of_the_world(self.first)
        self.examples = []
        with gr.Row(elem_id="examples"):
            for examples, shown in ((EXAMPLES, world), (OPEN_EXAMPLES, not world)):
                for name, text in examples:
                    button = gr.Button(control(name), size="sm", visible=shown)
                    self.examples.append(button)
                    button.click(
                        None,
                        None,
                        self.prompt,
                        js=f"() => {json.dumps(text)}",
                        show_progress="hidden",
                    )

    def _settings(self) -> None:
        with gr.Row(elem_id="settings"):
            with gr.Accordion(
                control("control.presets"), open=False, elem_id="presets", elem_classes="popover"
            ):
                with gr.Column(elem_id="preset-list"):
                    self.presets = [self._preset(*preset) for preset in PRESETS]
                    self.link = gr.Button(
                        control("control.copy_link"), size="sm", elem_id="copy-link"
                    )
            self.count = controls.OpenNumber(
                self.shown,
                label=control("control.panels"),
                minimum=FEWEST_PANELS,
                maximum=MOST_PANELS,
                step=1,
                elem_id="panels",
                min_width=0,
            )
            self.max_tokens = controls.OpenNumber(
                256,
                label=control("control.max_tokens"),
                minimum=1,
                step=1,
                elem_id="max-tokens",
                min_width=0,
            )
            self.seed = controls.OpenNumber(
                0, label=control("control.seed"), minimum=0, step=1, elem_id="seed", min_width=0
            )
            with gr.Accordion(
                control("control.sampling"), open=False, elem_id="sampling", elem_classes="popover"
            ):
                with gr.Row(elem_id="sampling-row"):
                    self.temperature = controls.OpenNumber(
                        0,
                        label=control("control.temperature"),
                        minimum=0,
                        step=0.1,
                        elem_id="temperature",
                        min_width=0,
                    )
                    self.top_k = controls.OpenNumber(
                        0,
                        label=control("control.top_k"),
                        minimum=0,
                        step=1,
                        elem_id="top-k",
                        min_width=0,
                    )
                    self.top_p = controls.OpenNumber(
                        1,
                        label=control("control.top_p"),
                        minimum=0,
                        maximum=1,
                        step=0.05,
                        elem_id="top-p",
                        min_width=0,
                    )
            with gr.Accordion(
                control("control.system"),
                open=False,
                elem_id="system-prompt",
                elem_classes="popover",
            ):
                with gr.Column(elem_id="system-box"):
                    self.system = gr.Textbox(
                        "",
                        lines=3,
                        max_lines=8,
                        label=control("control.system_prompt"),
                        elem_id="system",
                        placeholder=control("control.none"),
                    )
                    self.thinking = gr.Checkbox(
                        False,
                        label=control("control.thinking"),
                        visible=can_think(self.first.tokenizer),
                        elem_id="thinking",
                    )

    def _preset(
        self, name: str, panels: tuple[str, ...], prompt: str, open_prompt: str
    ) -> tuple[gr.Button, links.LinkedComparison, str]:
        comparison = links.LinkedComparison(
            prompt, tuple(map(parse_panel, panels)), None, Sampling()
        )
        return (
            gr.Button(control(name), size="sm", visible=_can_run(self.first, comparison.panels)),
            comparison,
            open_prompt,
        )

    def _wire(self, page: gr.Blocks) -> None:
        now: dict[str, Any] = {
            "queue": False,
            "show_progress": "hidden",
            "api_visibility": "private",
        }
        settings = [
            self.count,
            self.max_tokens,
            self.seed,
            self.temperature,
            self.top_k,
            self.top_p,
            self.system,
            self.thinking,
        ]
        panel_inputs = [component for panel in self.panels for component in panel.inputs]
        controls_now = [self.prompt, *settings, *panel_inputs]
        pressed = gr.on(
            [self.run.click, self.prompt.submit, self.go_on.click],
            None,
            controls_now,
            self.question,
            js="(...values) => window.dmtdRace.start(values)",
            **now,
        )
        racing = pressed.success(
            self.race,
            [self.question, self.chat],
            [self.view, self.chat, self.raced],
            concurrency_id="device",
            concurrency_limit=None if self.turns else 1,
            trigger_mode="once",
            show_progress="hidden",
            api_visibility="private",
        )
        if not self.lent:
            self.branch_ask.click(
                self.branch,
                [self.branch_asked, self.raced],
                self.branch_said,
                js="(asked, raced) => [window.dmtdRace.branch(), raced]",
                concurrency_id="device",
                concurrency_limit=None if self.turns else 1,
                trigger_mode="always_last",
                show_progress="hidden",
                api_visibility="private",
            ).success(
                None,
                self.branch_said,
                None,
                js="(text) => { window.dmtdRace.branched(text); }",
                **now,
            )
        racing.success(None, None, None, js="() => { window.dmtdRace.settled(); }")
        racing.failure(
            None, None, None, js="() => { window.dmtdRace.failed(); window.dmtdRace.settled(); }"
        )
        self.stop.click(
            self.request_stop, self.run_id, None, js="() => window.dmtdRace.stop()", **now
        )
        self.take.click(
            self.note_taken,
            [self.run_id, self.lines_taken],
            None,
            js="() => window.dmtdRace.taken()",
            **now,
        )
        self.new_chat.click(
            self.start_over,
            [self.run_id, self.count],
            [self.view, self.chat],
            js="(id, count) => [window.dmtdRace.forget(), count]",
            **now,
        )
        compared = [
            self.prompt,
            *settings,
            *(
                part
                for panel in self.panels
                for part in (panel.column, *panel.inputs, panel.sentence)
            ),
            self.view,
        ]
        keys = [panel.model for panel in self.panels]
        for button, comparison, open_prompt in self.presets:
            button.click(partial(self.show_preset, comparison, open_prompt), keys, compared, **now)
        self.tour.wire(
            self.models, [self.prompt, *settings], self.panels, compared, self.show_comparison, now
        )
        line = gr.Textbox(visible=False)
        controls_of = [part for panel in self.panels for part in (*panel.inputs, panel.sentence)]
        shown_by_model = [*(button for button, *_ in self.presets), *self.examples]
        adopted = [*controls_of, *shown_by_model, self.thinking, line]
        show_lines: dict[str, Any] = {
            "fn": None,
            "inputs": line,
            "outputs": None,
            "js": SHOW_LINES,
            "show_progress": "hidden",
        }
        self.picker.wire(now).success(
            self.adopt, [self.picker.arrived, *panel_inputs], adopted, **now
        ).then(**show_lines)
        if self.training:
            for trained in self.training.wire(now):
                trained.success(
                    self.learned,
                    [self.training.arrived, *panel_inputs],
                    [*controls_of, *(button for button, *_ in self.presets)],
                    **now,
                )
        for index, panel in enumerate(self.panels):
            panel.model.input(
                partial(self.change_model, index),
                panel_inputs,
                [*panel.inputs, panel.sentence, line],
                **now,
            ).then(**show_lines)
        granted = [self.picker.choice] * self.picker.anything
        granted += [self.training.part] if self.training else []
        page.load(self.arrive, None, [*adopted, *granted], **now).then(**show_lines).then(
            self.open_link,
            [self.question, *keys],
            [*compared, self.chat],
            js=KEPT,
            **now,
        )
        self.remember.click(
            None,
            controls_now,
            None,
            js="(...values) => { window.dmtdRace.remember(values); }",
            show_progress="hidden",
        )
        address = gr.Textbox(visible=False)
        self.link.click(
            None,
            controls_now,
            self.question,
            js="(...values) => window.dmtdRace.question(values)",
            **now,
        ).success(self.address, self.question, address, **now).success(
            None, address, None, js="(query) => { window.dmtdRace.copyLink(query); }", **now
        )
        self.count.input(
            self.show_panels,
            self.count,
            [self.view, *(panel.column for panel in self.panels)],
            **now,
        )
        page.unload(self.leave)

    def race(self, request: gr.Request, asked: str, chat: Chat) -> Iterator[tuple[Any, Any, Any]]:
        with contextlib.ExitStack() as held:
            run = ""
            try:
                question = Question.of(asked)
                run, how = question.run, question.how
                flag = self.stops.flag(str(request.session_hash), run)
                keys, specs = self._chosen(question)
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

    def _chosen(self, question: Question) -> tuple[list[Any], list[PanelSpec]]:
        """Return the models' keys and the panels that it names. Raises UserError."""
        count = whole("Panels", question.count)
        if count not in range(FEWEST_PANELS, MOST_PANELS + 1):
            raise UserError(f"a race needs {FEWEST_PANELS} to {MOST_PANELS} panels; got {count}")
        if len(question.panels) != sum(len(panel.inputs) for panel in self.panels):
            raise UserError(
                f"a race needs the values of {len(self.panels)} panels' controls; got "
                f"{len(question.panels)} values"
            )
        rows = self._rows(question.panels)[:count]
        keys = [panel.key(row) for panel, row in zip(self.panels, rows)]
        specs = [panel.spec(row) for panel, row in zip(self.panels, rows)]
        for key, spec in zip(keys, specs):
            if missing := PANELS[spec.decoder].missing(self.models.get(key)):
                raise UserError(" ".join(missing))
        return keys, specs

    def _rows(self, values: Sequence[Any]) -> list[list[Any]]:
        """Return the values of each panel's inputs."""
        width = len(self.panels[0].inputs)
        return [
            list(values[index * width : (index + 1) * width]) for index in range(len(self.panels))
        ]

    def adopt(self, key: str | None, *values: Any) -> list[Any]:
        """Put all panels of this visitor on a model that has come."""
        if not key:
            return [gr.skip()] * (
                sum(len(panel.inputs) + 1 for panel in self.panels)
                + len(self.presets)
                + len(self.examples)
                + 2
            )
        model = self.models.peek(key)
        parts = [
            part
            for panel, row in zip(self.panels, self._rows(values))
            for part in panel.show_model(key, row)
        ]
        return [
            *parts,
            *(
                gr.update(visible=_can_run(model, comparison.panels))
                for _, comparison, _ in self.presets
            ),
            *(
                gr.update(visible=(index < len(EXAMPLES)) == of_the_world(model))
                for index in range(len(self.examples))
            ),
            gr.update(visible=can_think(model.tokenizer)),
            model_lines([model] * len(self.panels)),
        ]

    def learned(self, key: str | None, *values: Any) -> list[Any]:
        """Show a model's other add-ons.

        The panels on it take their default thresholds, and decoders that it could not run before
        can be chosen.
        """
        parts: list[Any] = []
        for panel, row in zip(self.panels, self._rows(values)):
            if key is None or panel.key(row) != key:
                parts += [gr.skip()] * (len(panel.inputs) + 1)
                continue
            spec = panel.spec_or_default(row)
            parts += panel.show_spec(
                PanelSpec(
                    spec.decoder,
                    {name: value for name, value in spec.options.items() if name != "threshold"},
                ),
                key,
            )
        return [
            *parts,
            *(
                gr.skip()
                if key is None
                else gr.update(visible=_can_run(self.models.peek(key), comparison.panels))
                for _, comparison, _ in self.presets
            ),
        ]

    def arrive(self, request: gr.Request) -> list[Any]:
        """Show a new visitor what has changed since the page was built.

        The page was built for the model that was there at the start, which may have left, or be no
        longer the only one; and for the owner, or for strangers.
        """
        keys, first = self.models.keys, self.panels[0].model.value
        # not asked of the page: it goes through the inputs of every event that has ended at each
        # event of a race
        built = [component.value for panel in self.panels for component in panel.inputs]
        key = None if keys == [first] else first if first in keys else keys[-1]
        return [*self.adopt(key, *built), *self._granted(self.rules.of(request))]

    def _granted(self, rights: Rights) -> list[Any]:
        """Show what a visitor may beyond those for whom the page was built, or may not."""
        as_built = rights == self.built_for
        parts = [gr.skip() if as_built else self.picker.show_choices(rights)] * self.picker.anything
        if self.training:
            parts.append(gr.skip() if as_built else gr.update(visible=rights.train))
        return parts

    def change_model(self, index: int, *values: Any) -> list[Any]:
        """Put one panel on another of the models in memory."""
        rows = self._rows(values)
        models = [self.models.peek(panel.key(row)) for panel, row in zip(self.panels, rows)]
        return [
            *self.panels[index].show_model(self.panels[index].key(rows[index]), rows[index]),
            model_lines(models),
        ]

    def show_preset(
        self, comparison: links.LinkedComparison, open_prompt: str, *keys: Any
    ) -> list[Any]:
        """Show a preset, with a prompt that suits the model of the first panel."""
        if not of_the_world(self.models.peek(keys[0])):
            comparison = replace(comparison, prompt=open_prompt)
        return self.show_comparison(comparison, *keys)

    def show_comparison(self, comparison: links.LinkedComparison, *keys: Any) -> list[Any]:
        """Return the updates that put a comparison on the page.

        The race on screen stays where the number of panels does.
        """
        keep = gr.skip()
        sampling, panels = comparison.sampling, comparison.panels
        settings = [
            len(panels) or keep,
            comparison.max_new_tokens or keep,
            sampling.seed,
            sampling.temperature,
            sampling.top_k,
            sampling.top_p,
            keep if comparison.system is None else comparison.system,
            keep if comparison.thinking is None else comparison.thinking,
        ]
        parts: list[Any] = []
        for index, panel in enumerate(self.panels):
            parts += (
                [
                    gr.update(visible=index < len(panels)),
                    *panel.show_spec(panels[index], keys[index]),
                ]
                if index < len(panels)
                else [
                    gr.update(visible=False) if panels else keep,
                    *[keep] * (len(panel.inputs) + 1),
                ]
            )
        return [
            keep if comparison.prompt is None else comparison.prompt,
            *settings,
            *parts,
            wire.layout(len(panels)) if panels else keep,
        ]

    def open_link(self, request: gr.Request, kept: str, *keys: Any) -> list[Any]:
        """Show what the page was before it was loaded again; else what its address asks for."""
        if kept:
            return self._brought_back(kept, self.rules.of(request).allowance)
        return [*self._linked(request, *keys), gr.skip()]

    def _brought_back(self, kept: str, allowance: Allowance) -> list[Any]:
        """Put the controls and the chat as the page's script remembered them (memory.js)."""
        controls_then: list[Any] = [gr.skip()] * self._compared
        chat: Any = gr.skip()
        try:
            values, talk = json.loads(kept)
            turns, answers = (talk["turns"], talk["answers"]) if talk else (None, None)
        except (ValueError, TypeError, KeyError, RecursionError):
            return [*controls_then, chat]
        # what cannot be put back, as a panel on a model that has left, stays as the page came
        with contextlib.suppress(UserError):
            most = allowance.prompt_characters
            chat = brought_back(turns, answers, 4 * most if most else MAX_CHARACTERS)
        with contextlib.suppress(UserError):
            question = Question.of(json.dumps(["", "", values]))
            controls_then[0] = question.prompt
            keys, specs = self._chosen(question)
            then = links.LinkedComparison(
                question.prompt,
                tuple(specs),
                question.max_new_tokens,
                question.sampling,
                question.system,
                bool(question.thinking),
            )
            controls_then = self.show_comparison(then, *keys)
        return [*controls_then, chat]

    @property
    def _compared(self) -> int:
        """How many updates `show_comparison` returns."""
        return 10 + sum(len(panel.inputs) + 2 for panel in self.panels)

    def _linked(self, request: gr.Request, *keys: Any) -> list[Any]:
        """Show the comparison that the address of the page asks for, if it asks for one."""
        nothing = [gr.skip()] * (self._compared - 1)
        try:
            comparison = links.comparison(
                str(request.query_params), self.models.peek(keys[0]), self.servers
            )
        except UserError as error:
            return [*nothing, wire.refusal("", f"The link cannot be opened: {error}.")]
        return self.show_comparison(comparison, *keys) if comparison else [*nothing, gr.skip()]

    def address(self, asked: str) -> str:
        """Return the query of a link to the controls as they stand.

        It is empty, and said so by the page, where they ask for no race.
        """
        try:
            question = Question.of(asked)
            return links.query(
                question.prompt,
                self._chosen(question)[1],
                question.max_new_tokens,
                question.sampling,
                question.system,
                bool(question.thinking),
            )
        except UserError:
            return ""

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
            count if count in range(FEWEST_PANELS, MOST_PANELS + 1) else self.shown, clear=True
        ), Chat()

    def show_panels(self, count: Any) -> list[Any]:
        if count not in range(FEWEST_PANELS, MOST_PANELS + 1):
            return [gr.skip()] * (1 + len(self.panels))  # half-typed, or wrong: Run says so
        return [
            wire.layout(count),
            *(gr.update(visible=index < count) for index in range(len(self.panels))),
        ]

    def leave(self, request: gr.Request) -> None:
        if request.session_hash:
            self.stops.drop(request.session_hash)
            self.picker.jobs.drop(request.session_hash)
            if self.training:
                self.training.jobs.drop(request.session_hash)


def _can_run(model: Model, panels: Sequence[PanelSpec]) -> bool:
    return not any(DECODERS[panel.decoder].missing(model) for panel in panels)


def build(
    models: Residents,
    rules: Rules = Rules(),
    own: bool = False,
    panels: Sequence[PanelSpec] = (),
    lecture: Lecture | None = None,
) -> gr.Blocks:
    return Page(models, rules, own, panels, lecture).build()
