"""The guided tour's part in Python.

It remembers the controls, puts a step's comparison on them, and puts them back as they were.

The tour itself is assets/race/tour.js; it presses the hidden buttons that stand here. A race of the
tour is no part of the conversation (races.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gradio as gr

from dmtd_demo.errors import UserError
from dmtd_demo.models.residents import Residents
from dmtd_demo.server.allowance import FEWEST_PANELS, MOST_PANELS
from dmtd_demo.ui import links
from dmtd_demo.ui.controls import PanelControls
from dmtd_demo.web.texts import label


class Tour:
    """Made inside the page's layout, above everything that it speaks of."""

    def __init__(self) -> None:
        gr.HTML(
            f'<section id="tour-card" {label("tour.label")} hidden></section>',
            elem_id="tour",
            apply_default_css=False,
        )
        self.begin, self.show, self.end = (
            gr.Button(name, elem_id=f"tour-{name}", visible="hidden")
            for name in ("begin", "show", "end")
        )
        self.query = gr.Textbox(visible=False)
        self.before = gr.State([])

    def wire(
        self,
        models: Residents,
        controls: list[gr.components.Component],
        panels: list[PanelControls],
        compared: list[Any],
        show_comparison: Callable[..., list[Any]],
        now: dict[str, Any],
    ) -> None:
        """Wire the tour's hidden buttons.

        controls: prompt and settings, the number of panels second.

        compared: what show_comparison updates, the race view last. Every race of the tour runs on
        the model that panel 1 had as it began; where that has left the memory, the race says so.
        """
        inputs = [*controls, *(component for panel in panels for component in panel.inputs)]

        def comparison(query: str, before: list[Any]) -> list[Any]:
            try:
                key = panels[0].key(before[len(controls) :])
                wanted = links.comparison(query, models.peek(key))
            except (UserError, TypeError, IndexError):
                wanted = None
            # of no step of the tour
            if wanted is None:
                return [gr.skip()] * len(compared)
            return show_comparison(replace(wanted, system="", thinking=False), *[key] * MOST_PANELS)

        def restore(values: list[Any] | None) -> list[Any]:
            # of a tour that never began, or on a model that has left
            try:
                return put_back(values) if values else [gr.skip()] * len(compared)
            except (UserError, TypeError, LookupError):
                return [gr.skip()] * len(compared)

        def put_back(values: list[Any]) -> list[Any]:
            count, width, updates = values[1], len(panels[0].inputs), list(values[: len(controls)])
            for index, panel in enumerate(panels):
                own = values[len(controls) + index * width : len(controls) + (index + 1) * width]
                sentence, *options, shown_for = panel.show_options(own[0], panel.key(own))
                for update, value in zip(options, own[3:]):
                    if update.get("visible"):
                        update["value"] = value
                shown = (
                    gr.update(visible=index < count)
                    if count in range(FEWEST_PANELS, MOST_PANELS + 1)
                    else gr.skip()
                )
                updates += [shown, own[0], shown_for, panel.key(own), *options, sentence]
            return [*updates, gr.skip()]

        self.begin.click(lambda *values: list(values), inputs, self.before, **now).success(
            None, None, None, js="() => { window.dmtdRace.tour.first(); }"
        )
        self.show.click(
            comparison,
            [self.query, self.before],
            compared,
            js="(query, before) => [window.dmtdRace.tour.query, before]",
            **now,
        ).success(None, None, None, js="() => { window.dmtdRace.tour.shown(); }")
        self.end.click(restore, self.before, compared, **now)
