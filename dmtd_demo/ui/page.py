"""The page: what its components do.

layout.py builds them, races.py runs what visitors ask for, showing.py says what they show.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from typing import Any

import gradio as gr
from gradio.utils import LRUCache

from dmtd_demo.machine import on_zero_gpu
from dmtd_demo.models.residents import Residents
from dmtd_demo.race.panels import PanelSpec
from dmtd_demo.race.remote_server import Remote
from dmtd_demo.server.allowance import FEWEST_PANELS, Rules
from dmtd_demo.server.lecture import Lecture
from dmtd_demo.ui.first_panels import first_panels
from dmtd_demo.ui.layout import Layout, Opening
from dmtd_demo.ui.model_line import SHOW_LINES
from dmtd_demo.ui.models import ModelPicker
from dmtd_demo.ui.races import VisitorRaces
from dmtd_demo.ui.showing import Showing
from dmtd_demo.ui.training import TrainingPart
from dmtd_demo.web.texts import english

PANELS_SHOWN = 3
WAITING_VISITORS = 16
CLASS = 100  # that many may wait where a class shares the page
# between two looks of Gradio's queue whether a race was asked for: by itself it looks a thousand
# times a second, each time taking the interpreter's lock from the race
QUEUE_SECONDS = 0.02
COUNTED_EVENTS = 500  # more than there can be in the queue and at work

# of the page before it was loaded again; its script may come after this event
KEPT = """async (kept, ...keys) => {
  while (!window.dmtdRace) await new Promise((wait) => setTimeout(wait, 20));
  return [window.dmtdRace.kept(), ...keys];
}"""

# how an event is handled that waits for nobody, and one that has the device for itself
NOW: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
ON_DEVICE: dict[str, Any] = {
    "concurrency_id": "device",
    "show_progress": "hidden",
    "api_visibility": "private",
}


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
        lent = on_zero_gpu()
        # loading takes the device from everybody
        fixed = lent or lecture is not None
        self.picker = ModelPicker(self.models, rules, fixed, shown=self.built_for.anything)
        train = (rules.owner.train or rules.stranger.train) and not fixed
        self.training = TrainingPart(self.models, rules) if train else None
        self.opening = Opening(
            panels=tuple(first_panels(models.get(models.keys[0]), panels)),
            shown=max(FEWEST_PANELS, len(panels)) if panels else PANELS_SHOWN,
            servers={str(spec): spec for spec in panels if spec.decoder == Remote.name},
            lectures=lecture is not None,
            trains=self.built_for.train,
            branches=not lent,
        )

    def build(self) -> gr.Blocks:
        with gr.Blocks(
            title=english("page.title"), analytics_enabled=False, fill_width=True
        ) as page:
            self.layout = Layout(self.models, self.opening, self.picker, self.training)
            self.races = VisitorRaces(self.models, self.layout.row, self.rules, self.lecture)
            self.showing = Showing(self.models, self.layout, self.rules, self.opening.servers)
            self._wire_races()
            self._wire_branches()
            self._wire_comparisons()
            self._wire_models()
            self._wire_visits(page)
            # Gradio's page else goes through the outputs of all events so far at each event of a
            # race, to mark them as waiting: 14 ms on a laptop
            for event in page.fns.values():
                event.show_progress_on = [self.layout.head]
        # nobody passes by the queue, in which one race at a time has the device
        page.queue(max_size=CLASS if self.lecture else WAITING_VISITORS, api_open=False)
        page._queue.sleep_when_free = page._queue.progress_update_sleep_when_free = QUEUE_SECONDS
        # for a page of statistics that is closed here: it puts them all in a table at each event
        page._queue.event_analytics = LRUCache(COUNTED_EVENTS)
        page._queue.compute_analytics_summary = lambda _: {}
        return page

    def _wire_races(self) -> None:
        """Begin a race, stop it, take what it has written so far, and begin another chat."""
        layout, races = self.layout, self.races
        pressed = gr.on(
            [layout.run.click, layout.prompt.submit, layout.go_on.click],
            None,
            layout.asked,
            layout.question,
            js="(...values) => window.dmtdRace.start(values)",
            **NOW,
        )
        racing = pressed.success(
            races.race,
            [layout.question, layout.chat],
            [layout.view, layout.chat, layout.raced],
            concurrency_limit=None if races.turns else 1,
            trigger_mode="once",
            **ON_DEVICE,
        )
        racing.success(None, None, None, js="() => { window.dmtdRace.settled(); }")
        racing.failure(
            None, None, None, js="() => { window.dmtdRace.failed(); window.dmtdRace.settled(); }"
        )
        layout.stop.click(
            races.request_stop, layout.run_id, None, js="() => window.dmtdRace.stop()", **NOW
        )
        layout.take.click(
            races.note_taken,
            [layout.run_id, layout.lines_taken],
            None,
            js="() => window.dmtdRace.taken()",
            **NOW,
        )
        layout.to_reply.click(
            None, None, None, js="() => { window.dmtdRace.toReply(); }", show_progress="hidden"
        )
        layout.new_chat.click(
            races.start_over,
            [layout.run_id, layout.count],
            [layout.view, layout.chat],
            js="(id, count) => [window.dmtdRace.forget(), count]",
            **NOW,
        )

    def _wire_branches(self) -> None:
        """Ask what `ar` writes from a token of the last race on."""
        if not self.opening.branches:
            return
        layout = self.layout
        layout.branch_ask.click(
            self.races.branch,
            [layout.branch_asked, layout.raced],
            layout.branch_said,
            js="(asked, raced) => [window.dmtdRace.branch(), raced]",
            concurrency_limit=None if self.races.turns else 1,
            trigger_mode="always_last",
            **ON_DEVICE,
        ).success(
            None,
            layout.branch_said,
            None,
            js="(text) => { window.dmtdRace.branched(text); }",
            **NOW,
        )

    def _wire_comparisons(self) -> None:
        """Put an example, a preset, a step of the tour or another number of panels on the page,
        and copy a link to what stands there.
        """
        layout, showing = self.layout, self.showing
        for button, text in layout.examples:
            button.click(
                None,
                None,
                layout.prompt,
                js=f"() => {json.dumps(text)}",
                show_progress="hidden",
            )
        for button, comparison, open_prompt in layout.presets:
            button.click(
                partial(showing.show_preset, comparison, open_prompt),
                layout.row.models_chosen,
                layout.compared,
                **NOW,
            )
        layout.tour.wire(
            self.models,
            [layout.prompt, *layout.settings],
            layout.row.panels,
            layout.compared,
            showing.show_comparison,
            NOW,
        )
        layout.count.input(
            showing.show_panels,
            layout.count,
            [layout.view, *(panel.column for panel in layout.row.panels)],
            **NOW,
        )
        layout.link.click(
            None,
            layout.asked,
            layout.question,
            js="(...values) => window.dmtdRace.question(values)",
            **NOW,
        ).success(showing.address, layout.question, layout.address, **NOW).success(
            None, layout.address, None, js="(query) => { window.dmtdRace.copyLink(query); }", **NOW
        )

    def _wire_models(self) -> None:
        """Put panels on a model that has come or was chosen, and show what one has learned."""
        layout, showing = self.layout, self.showing
        self._then_lines(
            self.picker.wire(NOW).success(
                showing.adopt,
                [self.picker.arrived, *layout.row.inputs],
                layout.adopted,
                **NOW,
            )
        )
        if self.training:
            for trained in self.training.wire(NOW):
                self._then_lines(
                    trained.success(
                        showing.learned,
                        [self.training.arrived, *layout.row.inputs],
                        [*layout.row.parts, *layout.preset_buttons, layout.model_lines],
                        **NOW,
                    )
                )
        for index, panel in enumerate(layout.row.panels):
            self._then_lines(
                panel.model.input(
                    partial(showing.change_model, index),
                    layout.row.inputs,
                    [*panel.inputs, panel.sentence, layout.model_lines],
                    **NOW,
                )
            )

    def _wire_visits(self, page: gr.Blocks) -> None:
        """Greet a visitor, who may come back or follow a link, and let them go."""
        layout, showing = self.layout, self.showing
        granted = [self.picker.choice] * self.picker.anything
        granted += [self.training.part] if self.training else []
        self._then_lines(page.load(self.arrive, None, [*layout.adopted, *granted], **NOW)).then(
            showing.open_link,
            [layout.question, *layout.row.models_chosen],
            [*layout.compared, layout.chat],
            js=KEPT,
            **NOW,
        )
        layout.remember.click(
            None,
            layout.asked,
            None,
            js="(...values) => { window.dmtdRace.remember(values); }",
            show_progress="hidden",
        )
        page.unload(self.leave)

    def _then_lines(self, event: gr.events.Dependency) -> gr.events.Dependency:
        """Show in the head what the models are that the panels are on, after an event said it."""
        return event.then(
            None, self.layout.model_lines, None, js=SHOW_LINES, show_progress="hidden"
        )

    def arrive(self, request: gr.Request) -> list[Any]:
        """Show a new visitor what has changed since the page was built, and what they may."""
        rights = self.rules.of(request)
        as_built = rights == self.built_for
        granted = [
            gr.skip() if as_built else self.picker.show_choices(rights)
        ] * self.picker.anything
        if self.training:
            granted.append(gr.skip() if as_built else gr.update(visible=rights.train))
        return [*self.showing.arrived(), *granted]

    def leave(self, request: gr.Request) -> None:
        if request.session_hash:
            self.races.leave(request)
            self.picker.jobs.drop(request.session_hash)
            if self.training:
                self.training.jobs.drop(request.session_hash)


def build(
    models: Residents,
    rules: Rules = Rules(),
    own: bool = False,
    panels: Sequence[PanelSpec] = (),
    lecture: Lecture | None = None,
) -> gr.Blocks:
    return Page(models, rules, own, panels, lecture).build()
