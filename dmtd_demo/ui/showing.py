"""What the page's events show of models, comparisons and links: the updates of its components."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import gradio as gr

from dmtd_demo.errors import UserError
from dmtd_demo.models.chat import MAX_CHARACTERS, can_think
from dmtd_demo.models.residents import Residents
from dmtd_demo.race.panels import PanelSpec
from dmtd_demo.server.allowance import FEWEST_PANELS, MOST_PANELS, Allowance, Rules
from dmtd_demo.ui import links
from dmtd_demo.ui.chat import brought_back
from dmtd_demo.ui.examples import EXAMPLES, of_the_world
from dmtd_demo.ui.first_panels import can_run
from dmtd_demo.ui.layout import Layout
from dmtd_demo.ui.model_line import model_lines
from dmtd_demo.ui.question import Question
from dmtd_demo.web import wire


class Showing:
    """Turns what came or was chosen into updates of the page's components.

    servers: the remote panels that a link may name.
    """

    def __init__(
        self,
        models: Residents,
        layout: Layout,
        rules: Rules,
        servers: Mapping[str, PanelSpec],
    ) -> None:
        self.models = models
        self.layout = layout
        self.row = layout.row
        self.rules = rules
        self.servers = servers

    def adopt(self, key: str | None, *values: Any) -> list[Any]:
        """Put all panels of this visitor on a model that has come."""
        if not key:
            return [gr.skip()] * (
                sum(len(panel.inputs) + 1 for panel in self.row.panels)
                + len(self.layout.presets)
                + len(self.layout.examples)
                + 2
            )
        model = self.models.peek(key)
        parts = [
            part
            for panel, row in zip(self.row.panels, self.row.rows(values))
            for part in panel.show_model(key, row)
        ]
        return [
            *parts,
            *(
                gr.update(visible=can_run(model, comparison.panels))
                for _, comparison, _ in self.layout.presets
            ),
            *(
                gr.update(visible=(index < len(EXAMPLES)) == of_the_world(model))
                for index in range(len(self.layout.examples))
            ),
            gr.update(visible=can_think(model.tokenizer)),
            model_lines([model] * len(self.row.panels)),
        ]

    def learned(self, key: str | None, *values: Any) -> list[Any]:
        """Show a model's other add-ons.

        The panels on it take their default thresholds, and decoders that it could not run before
        can be chosen.
        """
        parts: list[Any] = []
        rows = self.row.rows(values)
        for panel, row in zip(self.row.panels, rows):
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
                else gr.update(visible=can_run(self.models.peek(key), comparison.panels))
                for _, comparison, _ in self.layout.presets
            ),
            gr.skip()
            if key is None
            else model_lines(
                [self.models.peek(panel.key(row)) for panel, row in zip(self.row.panels, rows)]
            ),
        ]

    def arrived(self) -> list[Any]:
        """Show a new visitor the models as they are now.

        The page was built for the model that was there at the start, which may have left, or be no
        longer the only one.
        """
        keys, first = self.models.keys, self.row.panels[0].model.value
        # not asked of the page: it goes through the inputs of every event that has ended at each
        # event of a race
        built = [component.value for component in self.row.inputs]
        key = None if keys == [first] else first if first in keys else keys[-1]
        return self.adopt(key, *built)

    def change_model(self, index: int, *values: Any) -> list[Any]:
        """Put one panel on another of the models in memory."""
        rows = self.row.rows(values)
        models = [self.models.peek(panel.key(row)) for panel, row in zip(self.row.panels, rows)]
        return [
            *self.row.panels[index].show_model(
                self.row.panels[index].key(rows[index]), rows[index]
            ),
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
        for index, panel in enumerate(self.row.panels):
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
            return self.brought_back(kept, self.rules.of(request).allowance)
        return [*self._linked(request, *keys), gr.skip()]

    def brought_back(self, kept: str, allowance: Allowance) -> list[Any]:
        """Put the controls and the chat as the page's script remembered them (memory.js)."""
        controls_then: list[Any] = [gr.skip()] * len(self.layout.compared)
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
            keys, specs = self.row.chosen(question)
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

    def _linked(self, request: gr.Request, *keys: Any) -> list[Any]:
        """Show the comparison that the address of the page asks for, if it asks for one."""
        nothing, query = [gr.skip()] * len(self.layout.compared), str(request.query_params)
        try:
            comparison = links.comparison(query, self.models.peek(keys[0]), self.servers)
        except UserError as error:
            return [*nothing[:-1], wire.refusal("", f"The link cannot be opened: {error}.")]
        shown = self.show_comparison(comparison, *keys) if comparison else nothing
        if unknown := links.unknown(query):
            race = shown[-1] if isinstance(shown[-1], str) else ""
            values = {"names": ", ".join(unknown), "known": ", ".join(links.KNOWN)}
            shown[-1] = wire.noted(race, "link.unknown", values)
        return shown

    def address(self, asked: str) -> str:
        """Return the query of a link to the controls as they stand.

        It is empty, and said so by the page, where they ask for no race.
        """
        try:
            question = Question.of(asked)
            return links.query(
                question.prompt,
                self.row.chosen(question)[1],
                question.max_new_tokens,
                question.sampling,
                question.system,
                bool(question.thinking),
            )
        except UserError:
            return ""

    def show_panels(self, count: Any) -> list[Any]:
        if count not in range(FEWEST_PANELS, MOST_PANELS + 1):
            return [gr.skip()] * (1 + len(self.row.panels))  # half-typed, or wrong: Run says so
        return [
            wire.layout(count),
            *(gr.update(visible=index < count) for index in range(len(self.row.panels))),
        ]
