"""JSON objects of a model's folder."""

from __future__ import annotations

import json
from pathlib import Path

from dmtd_demo.errors import UserError

# bytes of a file: no config, tokenizer or index is as large
MOST = 2**28


def read_json(path: Path, complaint: str) -> dict:
    """Read a JSON object from a file. Raises UserError, which begins with `complaint` where the
    file is not there."""
    try:
        if path.stat().st_size > MOST:
            raise UserError(f"{path} needs to be at most {MOST:,} bytes of JSON; it is larger")
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"{complaint} needs {path.name}, which is not there") from None
    except RecursionError:
        raise UserError(f"{path} needs to be JSON; it is nested too deep to be read") from None
    except (OSError, ValueError) as error:
        # of the encoding, of the syntax, or a number of too many digits
        raise UserError(f"{path} needs to be JSON; reading it gave: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} needs to be a JSON object; got {type(value).__name__}")
    return value
