"""The figures of a training as the page draws them: loss, accuracies, confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from dmtd_demo.training.any_model import Moment
from dmtd_demo.web.texts import span

POINTS = 120  # of a curve, at most


@dataclass
class Curves:
    """The figures seen of one training."""

    loss: list[tuple[int, float]] = field(default_factory=list)
    right: dict[str, list[tuple[int, float]]] = field(default_factory=dict)  # accuracies by name
    confusion: list[list[int]] | None = None

    def see(self, moment: Moment) -> None:
        self.loss.append((moment.step, moment.loss))
        for name, value in moment.figures.items():
            if name.startswith("acc"):
                self.right.setdefault(name, []).append((moment.step, value))
        self.confusion = moment.confusion or self.confusion


def picture(curves: Curves) -> str:
    """Draw the loss, the accuracies and the confusion matrix, as HTML."""
    if not curves.loss:
        return ""
    curved = [_curve("train.loss", {"": curves.loss}, max(value for _, value in curves.loss))]
    if curves.right:
        curved.append(
            _curve(
                "train.right" if len(curves.right) == 1 else "train.right_heads",
                {name.removeprefix("acc"): points for name, points in curves.right.items()},
                1.0,
            )
        )
    matrix = _matrix(curves.confusion) if curves.confusion else ""
    return f'<div class="train-pictures"><div>{"".join(curved)}</div>{matrix}</div>'


def _curve(key: str, series: dict[str, Sequence[tuple[int, float]]], top: float) -> str:
    """Draw lines from 0 to `top` over the updates; beside each its last value."""
    last = max(points[-1][0] for points in series.values())
    lines, ends = [], []
    for index, (name, points) in enumerate(series.items()):
        every = -(-len(points) // POINTS)
        shown = [*points[:-1:every], points[-1]]
        path = " ".join(
            f"{300 * step / last:.1f},{100 - 100 * min(value, top) / (top or 1):.1f}"
            for step, value in shown
        )
        lines.append(f'<polyline points="{path}" class="line-{index}"/>')
        ends.append(
            f'<b class="line-{index}">{escape(name)}{" " if name else ""}{points[-1][1]:.3f}</b>'
        )
    return (
        f"<figure><figcaption>{span(key)} {' '.join(ends)}</figcaption>"
        '<svg viewBox="0 0 300 100" preserveAspectRatio="none" '
        f'aria-hidden="true">{"".join(lines)}</svg>'
        f'<div class="axis"><span>0–{top:.2g}</span>'
        f"<span>{span('train.updates', number=last)}</span></div></figure>"
    )


def _matrix(counts: list[list[int]]) -> str:
    """Draw a table in per cent of its rows: how many tokens were right, by how many it said."""
    heads = "".join(f'<th scope="col">{length}</th>' for length in range(len(counts)))
    rows = []
    for true, row in enumerate(counts):
        whole = sum(row)
        cells = "".join(
            f'<td style="--share:{count / max(whole, 1):.3f}"'
            f"{' class=right' if said == true else ''}>"
            f"{f'{100 * count / whole:.0f}' if whole else '–'}</td>"
            for said, count in enumerate(row)
        )
        rows.append(f'<tr><th scope="row">{true}</th>{cells}<td class="whole">{whole:,}</td></tr>')
    return (
        f"<figure><figcaption>{span('train.matrix')}</figcaption><table><thead><tr><td></td>{heads}"
        f'<td class="whole">{span("train.positions")}</td></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
        f'<p class="axis">{span("train.matrix.about")}</p></figure>'
    )
