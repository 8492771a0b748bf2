"""The library, for notebooks and scripts: one prompt, several decoders, a record to look at.

    from dmtd_demo import compare, load
    compare("What is a KV cache?", ["ar", "dmtd:tau=4", "clp"], model=load("classroom"))

In Jupyter the last line shows the race as the page does, to be played again; elsewhere its table.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from itertools import accumulate, cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmtd_demo.destinations import write_text
from dmtd_demo.errors import UserError
from dmtd_demo.models.chat import check_text
from dmtd_demo.models.loading import load
from dmtd_demo.models.model import Model
from dmtd_demo.race import trace
from dmtd_demo.race.panels import parse_panel
from dmtd_demo.race.race import race
from dmtd_demo.race.request import messages_of
from dmtd_demo.race.settings import RaceSettings, SettingNames
from dmtd_demo.race.table import aligned
from dmtd_demo.race.trace import TRACE_SCHEMA
from dmtd_demo.text_files import Form, lines_of, parsed, read_text, unlike
from dmtd_demo.web import replay_file

if TYPE_CHECKING:
    from plotly.graph_objects import Figure
    from typing_extensions import Unpack

# of the replay in a notebook, pixels
HEIGHT = 720
FIGURES = (
    "tokens",
    "tokens_per_second",
    "tokens_per_full_pass",
    "audit_agreement",
    "agreement",
    "repetition_ratio",
    "stop",
)
# What records of a file need so that all below can be drawn of them, by type.
HEADER: dict[str, Form] = {"header": {"panels": [{"panel": int, "spec": str}]}}
RECORDS: dict[str, Form] = {
    "step": {"panel": int, "ms": float, "tokens": list},
    "summary": {"panel": int, "text": str, "spans": dict, **dict.fromkeys(FIGURES, object)},
}
# of the page's four panels; a fifth begins anew
PANEL_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b3589a")


def compare(
    prompt: str,
    panels: Sequence[str] = ("ar", "dmtd:tau=4", "clp"),
    model: Model | str | Sequence[Model | str] = "classroom",
    *,
    system: str = "",
    **settings: Unpack[SettingNames],
) -> Comparison:
    """Race decoders on one prompt.

    panels: `decoder`, or `decoder:name=value,name=value`. model: loaded by `load`, or a name that
    `load` takes; one for all panels, or one for each. system: a system prompt before it.
    settings: max_new_tokens (256), temperature (0, greedy), top_k (0, off), top_p (1, off),
    seed (0), thinking (False), audit (True), ignore_eos (False), and top, how many alternatives
    each token records (5). Raises UserError where something does not fit: the message says what
    was needed and what was got.
    """
    settings.setdefault("top", 5)
    asked = RaceSettings.of(**settings)
    specs = [parse_panel(panel) for panel in panels]
    given = (
        list(model)
        if isinstance(model, Sequence) and not isinstance(model, str)
        else [model] * len(specs)
    )
    if len(given) != len(specs):
        raise UserError(
            f"compare needs one model, or one for each of the {len(specs)} panels; got {len(given)}"
        )
    check_text(prompt)
    loaded = {
        name: load(name) for name in dict.fromkeys(each for each in given if isinstance(each, str))
    }
    models = [loaded[each] if isinstance(each, str) else each for each in given]
    conversations = [messages_of(prompt, system if system.strip() else None)] * len(specs)
    # the garbage of loading takes a quarter of a second, which no panel is to pay for
    gc.collect()
    batches = race(models, specs, conversations, asked)
    records = [record for batch in batches for record in batch]
    return Comparison([{**records[0], "conversations": conversations}, *records[1:]])


@dataclass(frozen=True)
class Comparison:
    """A finished race.

    records: its trace (docs/design.md, "The trace"), the header first.
    """

    records: list[trace.Record]

    @classmethod
    def open(cls, path: str | Path) -> Comparison:
        """Open a race that the page or `save` wrote as JSON lines.

        Raises UserError where the file is none.
        """
        try:
            text = read_text(path)
            records = (
                parsed(text)
                if text.lstrip().startswith("[")
                else [parsed(line) for _, line in lines_of(text)]
            )
        except (OSError, ValueError) as error:
            raise UserError(f"a race needs a file of JSON lines; {path} gave: {error}") from None
        if (
            not records
            or not isinstance(records, list)
            or not isinstance(records[0], dict)
            or records[0].get("type") != "header"
            or records[0].get("schema") != TRACE_SCHEMA
        ):
            raise UserError(
                f"a race needs a header of schema {TRACE_SCHEMA} in its first line; {path} has none"
            )
        for number, record in enumerate(records, 1):
            if not isinstance(record, dict) or not isinstance(record.get("type"), str):
                raise UserError(
                    f"a race needs records that are objects with a type; record {number} of "
                    f"{path} is {str(record)[:80]}"
                )
            forms = RECORDS if number > 1 else HEADER
            cause = unlike(record, forms.get(record["type"], dict), f"record {number}")
            if cause:
                raise UserError(f"a race needs whole records; of {path}, {cause}")
            try:
                trace.dumps(record)
            except ValueError as error:
                # numbers that no JSON has, such as NaN
                raise UserError(f"record {number} of {path} cannot be shown: {error}") from None
        return cls(records)

    @property
    def panels(self) -> list[trace.Record]:
        """The header's entry of each panel."""
        return self.records[0]["panels"]

    @cached_property
    def summaries(self) -> list[trace.Record]:
        """The figures of each panel (README, "What the numbers mean")."""
        return sorted(
            (record for record in self.records if record["type"] == "summary"),
            key=lambda summary: summary["panel"],
        )

    @property
    def texts(self) -> list[str]:
        """The text of each panel."""
        return [summary["text"] for summary in self.summaries]

    def steps(self, panel: int) -> list[trace.Record]:
        """Return the step records of one panel."""
        return [
            record
            for record in self.records
            if record["type"] == "step" and record["panel"] == panel
        ]

    def save(self, path: str | Path) -> None:
        """Write the race as JSON lines, which the page opens.

        A name that ends in .html gets a file that replays itself. Folders are made where there are
        none. Raises UserError.
        """
        path = Path(path)
        text = (
            self.replay()
            if path.suffix == ".html"
            else "".join(trace.dumps(record) + "\n" for record in self.records)
        )
        write_text(path, text)

    def replay(self) -> str:
        """Return the HTML file that replays this race, without a network or a server."""
        data = {
            "record": "".join(
                trace.dumps(record) + "\n" for record in self.records if record["type"] != "end"
            ),
            "pictures": [],
        }
        return replay_file.template().replace(
            replay_file.HOLE, json.dumps(data).replace("<", "\\u003c"), 1
        )

    def tokens_over_time(self) -> Figure:
        """Draw the race as curves: tokens against each panel's own clock, in seconds."""
        from plotly import graph_objects as go

        figure = go.Figure(
            layout={"xaxis_title": "seconds", "yaxis_title": "tokens", "template": "plotly_white"}
        )
        for panel, colour in zip(self.panels, cycle(PANEL_COLOURS)):
            steps = self.steps(panel["panel"])
            figure.add_scatter(
                x=[step["ms"] / 1000 for step in steps],
                y=list(accumulate(len(step["tokens"]) for step in steps)),
                name=panel["spec"],
                line={"color": colour, "shape": "hv"},
            )
        return figure

    def span_lengths(self) -> Figure:
        """Draw how many spans each panel emitted of each length, in tokens."""
        from plotly import graph_objects as go

        figure = go.Figure(
            layout={
                "xaxis_title": "tokens in the span",
                "yaxis_title": "spans",
                "xaxis_dtick": 1,
                "barmode": "group",
                "template": "plotly_white",
            }
        )
        for panel, summary, colour in zip(self.panels, self.summaries, cycle(PANEL_COLOURS)):
            figure.add_bar(
                x=[int(length) for length in summary["spans"]],
                y=list(summary["spans"].values()),
                name=panel["spec"],
                marker_color=colour,
            )
        return figure

    def table(self) -> list[dict[str, Any]]:
        """Return a row for each panel: its figures, and its speed over that of the first."""
        first = next((summary["tokens_per_second"] for summary in self.summaries), None)
        return [
            {
                "panel": panel["spec"],
                **{name: summary[name] for name in FIGURES},
                "speed_up": round(summary["tokens_per_second"] / first, 2)
                if first and summary["tokens_per_second"]
                else None,
            }
            for panel, summary in zip(self.panels, self.summaries)
        ]

    def __str__(self) -> str:
        table = self.table()
        return aligned(table, list(table[0]), str) if table else "a race without an end"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        panels = ", ".join(panel["spec"] for panel in self.panels)
        return (
            '<iframe sandbox="allow-scripts allow-downloads" '
            f'style="width: 100%; height: {HEIGHT}px; border: 1px solid #8884" '
            f'title="A race of {escape(panels)}" srcdoc="{escape(self.replay())}"></iframe>'
        )
