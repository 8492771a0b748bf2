"""The library, for notebooks and scripts: one prompt, several decoders, and a record that shows itself.

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
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmtd_demo.errors import UserError
from dmtd_demo.models.chat import check_text, instructed
from dmtd_demo.models.loading import load
from dmtd_demo.models.model import Model
from dmtd_demo.race import trace
from dmtd_demo.race.panels import parse_panel
from dmtd_demo.race.race import race
from dmtd_demo.sampling import Sampling
from dmtd_demo.web import replay_file

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

HEIGHT = 720  # of the replay in a notebook, pixels
COLUMNS = (
    "tokens",
    "tokens_per_second",
    "tokens_per_full_pass",
    "audit_agreement",
    "agreement",
    "repetition_ratio",
    "stop",
)
PANEL_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b3589a")


def compare(
    prompt: str,
    panels: Sequence[str] = ("ar", "dmtd:tau=4", "clp"),
    model: Model | str | Sequence[Model | str] = "classroom",
    *,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    system: str = "",
    thinking: bool = False,
    top: int = 5,
    audit: bool = True,
) -> Comparison:
    """Race decoders on one prompt. panels: `decoder`, or `decoder:name=value,name=value`. model: loaded by `load`, or what `load` takes; one for all panels, or one each.
    top: how many alternatives each token records. Raises UserError where something does not fit: the message says what was needed and what was got."""
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
    conversations = instructed([[{"role": "user", "content": prompt}]] * len(specs), system)
    gc.collect()  # what loading left; a quarter of a second, which no panel is to pay for
    batches = race(
        models,
        specs,
        conversations,
        Sampling(temperature, top_k, top_p, seed),
        max_new_tokens=max_new_tokens,
        top=top,
        thinking=thinking,
        audit=audit,
    )
    records = [record for batch in batches for record in batch]
    return Comparison([{**records[0], "conversations": conversations}, *records[1:]])


@dataclass(frozen=True)
class Comparison:
    """A finished race. records: its trace (docs: the page's JSON, one record a line), the header first."""

    records: list[trace.Record]

    @classmethod
    def open(cls, path: str | Path) -> Comparison:
        """A race that the page or `save` wrote as JSON lines. Raises UserError."""
        try:
            records = [
                json.loads(line)
                for line in Path(path).read_text(encoding="utf-8").splitlines()
                if line.strip()
            ]
        except (OSError, ValueError) as error:
            raise UserError(f"a race needs a file of JSON lines; {path} gave: {error}") from None
        if (
            not records
            or not isinstance(records[0], dict)
            or records[0].get("type") != "header"
            or records[0].get("schema") != trace.SCHEMA
        ):
            raise UserError(
                f"a race needs a header of schema {trace.SCHEMA} in its first line; {path} has none"
            )
        return cls(records)

    @property
    def panels(self) -> list[trace.Record]:
        return self.records[0]["panels"]

    @cached_property
    def summaries(self) -> list[trace.Record]:
        """The figures of each panel (docs: README, "What the numbers mean")."""
        return sorted(
            (record for record in self.records if record["type"] == "summary"),
            key=lambda summary: summary["panel"],
        )

    @property
    def texts(self) -> list[str]:
        return [summary["text"] for summary in self.summaries]

    def steps(self, panel: int) -> list[trace.Record]:
        return [
            record
            for record in self.records
            if record["type"] == "step" and record["panel"] == panel
        ]

    def save(self, path: str | Path) -> None:
        """As JSON lines, which the page opens; or where the name ends in .html as a file that replays itself."""
        path = Path(path)
        text = (
            self.replay()
            if path.suffix == ".html"
            else "".join(trace.dumps(record) + "\n" for record in self.records)
        )
        path.write_text(text, encoding="utf-8")

    def replay(self) -> str:
        """The HTML file that replays this race, without a network or a server."""
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
        """The race as curves: tokens against each panel's own clock, in seconds."""
        from plotly import graph_objects as go

        figure = go.Figure(
            layout={"xaxis_title": "seconds", "yaxis_title": "tokens", "template": "plotly_white"}
        )
        for panel, colour in zip(self.panels, PANEL_COLOURS):
            steps = self.steps(panel["panel"])
            figure.add_scatter(
                x=[step["ms"] / 1000 for step in steps],
                y=list(accumulate(len(step["tokens"]) for step in steps)),
                name=panel["spec"],
                line={"color": colour, "shape": "hv"},
            )
        return figure

    def span_lengths(self) -> Figure:
        """How many spans each panel emitted of each length."""
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
        for panel, summary, colour in zip(self.panels, self.summaries, PANEL_COLOURS):
            figure.add_bar(
                x=[int(length) for length in summary["spans"]],
                y=list(summary["spans"].values()),
                name=panel["spec"],
                marker_color=colour,
            )
        return figure

    def table(self) -> list[dict[str, Any]]:
        """One row per panel: its figures, and how many times as fast as the first it was."""
        first = self.summaries[0]["tokens_per_second"]
        return [
            {
                "panel": panel["spec"],
                **{name: summary[name] for name in COLUMNS},
                "speed_up": round(summary["tokens_per_second"] / first, 2)
                if first and summary["tokens_per_second"]
                else None,
            }
            for panel, summary in zip(self.panels, self.summaries)
        ]

    def __str__(self) -> str:
        rows = [
            list(self.table()[0]),
            *(
                [str("–" if value is None else value) for value in row.values()]
                for row in self.table()
            ),
        ]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
            for row in rows
        )

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return (
            f'<iframe sandbox="allow-scripts allow-downloads" style="width: 100%; height: {HEIGHT}px; border: 1px solid #8884" title="A race of {escape(", ".join(panel["spec"] for panel in self.panels))}" '
            f'srcdoc="{escape(self.replay())}"></iframe>'
        )
