"""What an interrupted run left in its folder, read again by the run that goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dmtd_demo.errors import UserError
from dmtd_demo.models.causes import in_one_line
from dmtd_demo.text_files import Form, parsed, unlike


def kept_lines(path: Path, form: Form = dict) -> list[dict[str, Any]]:
    """Return the whole lines of a file of JSON lines; none where there is no file.

    The last line, which may have been cut off, is taken off the file where it was. Raises UserError
    where another cannot be read, or has another form.
    """
    if not path.exists():
        return []
    written = path.read_bytes()
    whole = written[: written.rfind(b"\n") + 1]
    if whole != written:
        path.write_bytes(whole)
    # JSON may have other separators of lines within a text
    lines = enumerate(whole.split(b"\n")[:-1], 1)
    return [
        checked(_object(line, f"{path} line {n}"), f"{path} line {n}", form) for n, line in lines
    ]


def kept_state(path: Path, form: Form = dict) -> dict[str, Any]:
    """Return the JSON object of a file. Raises UserError where it holds none of this form."""
    return checked(_object(path.read_bytes(), str(path)), str(path), form)


def checked(value: dict[str, Any], where: str, form: Form) -> dict[str, Any]:
    """Return an object that has this form. where: it stands. Raises UserError."""
    if cause := unlike(value, form):
        raise _damaged(where, cause)
    return value


def _object(text: bytes, where: str) -> dict[str, Any]:
    try:
        value = parsed(text.decode("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise _damaged(where, in_one_line(error)) from None
    if not isinstance(value, dict):
        raise _damaged(where, f"it holds {type(value).__name__}")
    return value


def _damaged(where: str, cause: str) -> UserError:
    return UserError(
        f"{where}, from an interrupted run, needs to be a JSON object; reading it gave: {cause}. "
        "Give another --output, or delete what is in this one"
    )
