"""The causes that libraries name, as sentences of our own."""

from __future__ import annotations

import re
from pathlib import Path

from dmtd_demo.errors import UserError, is_out_of_memory

MOST = 300


def in_one_line(error: BaseException) -> str:
    """The cause that a library's error names, without the lines around it, cut between words."""
    words = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, KeyError):
        # all that it says is the name
        words = f"there is nothing by the name {words}"
    words = re.sub(r"^(Class v|V)alidation error for .*?: (\w+: )?", "", words)
    words = words.partition(" Errors: ")[0]
    return words if len(words) <= MOST else f"{words[:MOST].rpartition(' ')[0]} …"


def not_whole(path: Path, error: Exception) -> UserError:
    """The refusal of a safetensors file that cannot be read."""
    if is_out_of_memory(error):
        return UserError(
            f"reading {path} ran out of memory: close what else runs here, or take a smaller model"
        )
    return UserError(
        f"{path} needs to be a whole safetensors file; reading it gave: {in_one_line(error)}"
    )
