"""Where a user wants results: folders that are made, or refused in one sentence.

A long piece of work asks with `check_folder` before it begins.
"""

from __future__ import annotations

import os
from pathlib import Path

from dmtd_demo.errors import UserError


def check_folder(folder: str | Path) -> None:
    """Raise UserError where a folder can be neither written nor made; makes nothing."""
    try:
        there = Path(folder).absolute()
        while not _lies_there(there):
            there = there.parent
        is_folder = there.is_dir()
    except (OSError, ValueError) as error:
        raise _refused(folder, _reason(error)) from None
    if not is_folder:
        raise _refused(folder, f"{there} is no folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise _refused(folder, f"{there} may not be written by this user")


def make_folder(folder: str | Path) -> Path:
    """Return a folder that is there now, with those above it. Raises UserError."""
    check_folder(folder)
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _refused(folder, _reason(error)) from None
    return Path(folder)


def write_text(path: str | Path, text: str) -> None:
    """Write a file in UTF-8, in a folder that is made where it is not there. Raises UserError."""
    path = Path(path)
    make_folder(path.parent)
    if path.is_dir():
        raise UserError(f"what is saved needs the name of a file; {path} is a folder")
    try:
        path.write_text(text, encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} could not be written: {_reason(error)}") from None


def _lies_there(path: Path) -> bool:
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _refused(folder: str | Path, reason: str) -> UserError:
    return UserError(f"results need a folder that can be written; got {folder}: {reason}")


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
