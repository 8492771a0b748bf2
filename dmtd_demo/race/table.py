"""Figures of panels as a table of plain text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any


def aligned(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[str], shown: Callable[[Any], str]
) -> str:
    """Format rows under their columns' names; None is a dash.

    shown: the form of a figure; text stays as it is.
    """

    def cell(value: Any) -> str:
        if value is None:
            return "–"
        return value if isinstance(value, str) else shown(value)

    lines = [list(columns), *([cell(row[column]) for column in columns] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths)).rstrip() for line in lines
    )
