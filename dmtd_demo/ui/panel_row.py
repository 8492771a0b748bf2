"""The panels' controls side by side, and what their values ask for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from dmtd_demo.errors import UserError
from dmtd_demo.models.residents import Residents
from dmtd_demo.race.panels import PANELS, PanelSpec
from dmtd_demo.server.allowance import FEWEST_PANELS, MOST_PANELS
from dmtd_demo.ui.controls import PanelControls
from dmtd_demo.ui.question import Question, whole


class PanelRow:
    """Reads the values of all panels' controls, which come as one list."""

    def __init__(self, models: Residents, panels: list[PanelControls]) -> None:
        self.models = models
        self.panels = panels
        self.inputs: list[gr.components.Component] = [
            component for panel in panels for component in panel.inputs
        ]
        self.models_chosen = [panel.model for panel in panels]
        self.shown = sum(panel.column.visible for panel in panels)  # as the page opens

    @property
    def parts(self) -> list[gr.blocks.Block]:
        """What another model or other add-ons update of each panel."""
        return [part for panel in self.panels for part in (*panel.inputs, panel.sentence)]

    def chosen(self, question: Question) -> tuple[list[Any], list[PanelSpec]]:
        """Return the models' keys and the panels that it names. Raises UserError."""
        count = whole("Panels", question.count)
        if count not in range(FEWEST_PANELS, MOST_PANELS + 1):
            raise UserError(f"a race needs {FEWEST_PANELS} to {MOST_PANELS} panels; got {count}")
        if len(question.panels) != sum(len(panel.inputs) for panel in self.panels):
            raise UserError(
                f"a race needs the values of {len(self.panels)} panels' controls; got "
                f"{len(question.panels)} values"
            )
        rows = self.rows(question.panels)[:count]
        keys = [panel.key(row) for panel, row in zip(self.panels, rows)]
        specs = [panel.spec(row) for panel, row in zip(self.panels, rows)]
        for key, spec in zip(keys, specs):
            if missing := PANELS[spec.decoder].missing(self.models.get(key)):
                raise UserError(" ".join(missing))
        return keys, specs

    def rows(self, values: Sequence[Any]) -> list[list[Any]]:
        """Return the values of each panel's inputs."""
        width = len(self.panels[0].inputs)
        return [
            list(values[index * width : (index + 1) * width]) for index in range(len(self.panels))
        ]
