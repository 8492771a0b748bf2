"""The race view: one gr.HTML component whose script draws a race.

The script (assets/race/*.js) draws it from a growing JSON-lines string.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gradio as gr
import plotly

from dmtd_demo.web.files import script

PLOTLY_PATH = "/plotly.min.js"  # where the door serves it
PLOTLY = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"

# No ${value} in the template: Gradio never touches what the script draws.
TEMPLATE = '<section class="race" data-status="idle"></section>'


class RaceView(gr.HTML):
    """The component that draws a race.

    value: JSON lines; the first one, "layout" or "page", says what is shown, and has the id of the
    run.

    hints: element id, or its end for the options of a panel -> key of what the control does.
    plotly: the address of Plotly's script. template: the HTML file that replays a race
    (web/replay_file.py). recorded: the JSON lines of the race that plays before the first one.
    """

    # Gradio builds the component anew, without a value, for an update of its properties.
    def __init__(
        self,
        value: str | None = None,
        hints: dict[str, str] | None = None,
        plotly: str = "",
        template: str = "",
        recorded: str = "",
        **kwargs: Any,
    ) -> None:
        # not properties: Gradio's page compares all of those at every event
        given = json.dumps(
            {
                "hints": hints or {},
                "plotly": plotly,
                "template": template,
                "recorded": recorded,
            },
            ensure_ascii=False,
        )
        super().__init__(
            value,
            html_template=TEMPLATE,
            js_on_load=f"const given = {given};\n{script()}",
            apply_default_css=False,
            **kwargs,
        )

    def postprocess(self, value: str | None) -> str | None:
        # data for the script, never HTML: gr.HTML's own search for <script> tags in it would be for
        # nothing
        return value

    def __getattr__(self, name: str) -> Any:
        # gr.HTML would search the script for an event of that name, a quarter of a second for each
        # visitor
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def get_block_name(self) -> str:
        return "html"
