"""Text that somebody else's program wrote: UTF-8, or what its byte-order mark says."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# that of UTF-32 begins as that of UTF-16 does
MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def read_text(path: str | Path) -> str:
    r"""Return a file's text without a byte-order mark, its line ends as \n.

    Spreadsheets and editors of Windows write such a mark, and its shell, for `> FILE`, UTF-16.
    Raises OSError, and UnicodeDecodeError where the bytes are no such text.
    """
    return _decoded(Path(path).read_bytes()).replace("\r\n", "\n").replace("\r", "\n")


def lines_of(text: str) -> Iterator[tuple[int, str]]:
    r"""Yield the lines that are not empty, with their numbers from 1.

    They end at \n alone: JSON may have other separators of lines within a text. Marks of files that
    were put one behind the other are taken off.
    """
    for number, line in enumerate(text.split("\n"), 1):
        plain = line.removeprefix("\ufeff")
        if plain.strip():
            yield number, plain


def parsed(text: str) -> Any:
    """Return the value of a JSON text.

    Raises json.JSONDecodeError, also for lists within lists without end.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise json.JSONDecodeError("nested too deeply", text[:80], 0) from None


# What a JSON value has to be: a type, where a whole number will do for a float and anything for an
# object; [form] for a list of one or more such; {key: form} for an object with at least these keys.
Form = type | list["Form"] | dict[str, "Form"]


def unlike(value: Any, form: Form, name: str = "it") -> str | None:
    """Say in a few words where a JSON value differs from a form; None where it does not."""
    kind = form if isinstance(form, type) else type(form)
    # a bool is an int to Python
    fits: Any = (int, float) if kind is float else kind
    if not isinstance(value, fits) or (isinstance(value, bool) and kind not in (bool, object)):
        return f"{name} is {str(value)[:40]!r}, no {kind.__name__}"
    if isinstance(form, list) and not value:
        return f"{name} is empty"
    if isinstance(form, dict) and (missing := [key for key in form if key not in value]):
        return f"{name} has no {', '.join(missing)}"
    parts: list[tuple[str, Any, Form]] = []
    if isinstance(form, list):
        parts = [(f"{name}[{i}]", each, form[0]) for i, each in enumerate(value)]
    elif isinstance(form, dict):
        parts = [(key, value[key], each) for key, each in form.items()]
    return next((said for key, each, of in parts if (said := unlike(each, of, key))), None)


def _decoded(data: bytes) -> str:
    for mark, encoding in MARKS:
        if data.startswith(mark):
            return data[len(mark) :].decode(encoding)
    return data.decode("utf-8")
