"""The components of the page, in the order in which they stand; page.py wires them."""

from __future__ import annotations

from dataclasses import dataclass

import gradio as gr

from dmtd_demo.models.chat import can_think
from dmtd_demo.models.residents import Residents
from dmtd_demo.race.panels import PanelSpec, parse_panel
from dmtd_demo.sampling import Sampling
from dmtd_demo.server.allowance import FEWEST_PANELS, MOST_PANELS
from dmtd_demo.shipped import ASSETS
from dmtd_demo.ui import controls, links
from dmtd_demo.ui.about import OFFER_SCRIPT, about
from dmtd_demo.ui.chat import Chat
from dmtd_demo.ui.examples import (
    EXAMPLES,
    OPEN_EXAMPLES,
    PRESETS,
    first_prompt,
    of_the_world,
)
from dmtd_demo.ui.first_panels import can_run
from dmtd_demo.ui.i18n import control
from dmtd_demo.ui.model_line import HEADER_SCRIPT, header
from dmtd_demo.ui.models import ModelPicker
from dmtd_demo.ui.panel_row import PanelRow
from dmtd_demo.ui.race_view import PLOTLY_PATH, RaceView
from dmtd_demo.ui.tour import Tour
from dmtd_demo.ui.training import TrainingPart
from dmtd_demo.web import replay_file, wire

# the race that plays before the first one: scripts/first_race.py
RECORDED = ASSETS / "first_race.jsonl"
CHAT_SECONDS = 6 * 3600  # a chat that nobody has touched for so long is dropped

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


@dataclass(frozen=True)
class Opening:
    """What the page shows as it opens."""

    panels: tuple[PanelSpec, ...]  # all that may be shown
    shown: int
    servers: dict[str, PanelSpec]  # of remote panels, by what they are called
    lectures: bool  # whether a class shares the page
    trains: bool  # whether the part for training is shown
    branches: bool  # whether a race can be gone on with from any of its tokens


class Layout:
    """The page's components. Made inside the page's `gr.Blocks`."""

    def __init__(
        self,
        models: Residents,
        opening: Opening,
        picker: ModelPicker,
        training: TrainingPart | None,
    ) -> None:
        self.first = models.get(models.keys[0])
        self.head = gr.HTML(
            header(self.first, opening.lectures),
            js_on_load=HEADER_SCRIPT,
            apply_default_css=False,
            elem_id="head",
        )
        self.tour = Tour()
        picker.build()
        self._ask()
        gr.HTML(
            about(self.first, offered=not picker.fixed),
            js_on_load=OFFER_SCRIPT,
            apply_default_css=False,
            elem_id="about",
        )
        with gr.Row(elem_id="strip"):
            self._examples()
            self._settings(opening)
        with gr.Row(elem_id="panel-row"):
            self.row = PanelRow(
                models,
                [
                    controls.PanelControls(
                        models, index, spec, index < opening.shown, opening.servers
                    )
                    for index, spec in enumerate(opening.panels)
                ],
            )
        hints = {name: f"hint.{name}" for name in EXPLAINED} | controls.option_hints()
        self.view = RaceView(
            wire.layout(opening.shown),
            hints,
            PLOTLY_PATH.lstrip("/"),
            replay_file.template(),
            RECORDED.read_text(encoding="utf-8"),
            elem_id="race",
        )
        if training:
            training.build(visible=opening.trains)
        self._hidden(opening)

    @property
    def settings(self) -> list[gr.components.Component]:
        """The fields beside the prompt, in the order of `question.SETTINGS`."""
        return [
            self.count,
            self.max_tokens,
            self.seed,
            self.temperature,
            self.top_k,
            self.top_p,
            self.system,
            self.thinking,
        ]

    @property
    def asked(self) -> list[gr.components.Component]:
        """All that a question holds (question.py)."""
        return [self.prompt, *self.settings, *self.row.inputs]

    @property
    def compared(self) -> list[gr.blocks.Block]:
        """All that a comparison updates (showing.py)."""
        return [
            self.prompt,
            *self.settings,
            *(
                part
                for panel in self.row.panels
                for part in (panel.column, *panel.inputs, panel.sentence)
            ),
            self.view,
        ]

    @property
    def adopted(self) -> list[gr.blocks.Block]:
        """All that another model in the panels updates (showing.py)."""
        return [
            *self.row.parts,
            *self.preset_buttons,
            *(button for button, _ in self.examples),
            self.thinking,
            self.model_lines,
        ]

    @property
    def preset_buttons(self) -> list[gr.Button]:
        return [button for button, *_ in self.presets]

    def _ask(self) -> None:
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
                self.to_reply = gr.Button(control("reply"), elem_id="to-reply")
                self.new_chat = gr.Button(control("control.new_chat"), elem_id="new-chat")

    def _examples(self) -> None:
        # of the one kind of model and of the other: the row of the first panel's is shown
        world = of_the_world(self.first)
        self.examples: list[tuple[gr.Button, str]] = []
        with gr.Row(elem_id="examples"):
            for examples, shown in ((EXAMPLES, world), (OPEN_EXAMPLES, not world)):
                for name, text in examples:
                    button = gr.Button(control(name), size="sm", visible=shown)
                    self.examples.append((button, text))

    def _settings(self, opening: Opening) -> None:
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
                opening.shown,
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
            self._sampling()
            self._system()

    def _sampling(self) -> None:
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

    def _system(self) -> None:
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
            gr.Button(control(name), size="sm", visible=can_run(self.first, comparison.panels)),
            comparison,
            open_prompt,
        )

    def _hidden(self, opening: Opening) -> None:
        """Build what is never seen: states, and what the page's script fills and presses."""
        self.chat = gr.State(Chat(), time_to_live=CHAT_SECONDS)
        self.raced = gr.State(None, time_to_live=CHAT_SECONDS)
        # filled by the page's script as Run is pressed (question.py)
        self.question = gr.Textbox(visible=False)
        self.run_id = gr.Textbox(visible=False)
        self.lines_taken = controls.OpenNumber(visible=False)
        # the page's script presses these
        self.take = gr.Button("", elem_id="take")
        self.remember = gr.Button("", elem_id="remember")
        # likewise, for what is asked under the texts
        self.go_on = gr.Button("", elem_id="go-on")
        if opening.branches:
            # as a token is asked about, that ar would not have chosen
            self.branch_ask = gr.Button("", elem_id="branch-ask")
            self.branch_asked = gr.Textbox(visible=False)
            self.branch_said = gr.Textbox(visible=False)
        # what the models that the panels are on are, for the head; the query of a link
        self.model_lines = gr.Textbox(visible=False)
        self.address = gr.Textbox(visible=False)
