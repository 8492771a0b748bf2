"""Random mutations of lines of JSON: of their bytes, and of their values."""

from __future__ import annotations

import copy
import json
import os
import random
from typing import Any

FULL = os.environ.get("DMTD_STRESS") == "full"
ODD: list[Any] = [
    None,
    True,
    -1,
    2**64,
    1e308,
    float("nan"),
    "",
    "\ud800",
    "\u2028\x00",
    [],
    {},
    [[]],
    {"type": "header"},
    "x" * 5000,
]
BYTES = [
    b"\x00",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
    b"[" * 5000,
    b'{"a":' * 3000,
    b"1e999",
    b"NaN",
    b"\r",
    b'"',
    b"\\u",
    b"9" * 5000,
]


def changed(value: Any, rng: random.Random) -> Any:
    """A copy of which one part, at any depth, is another, is missing, or is there twice."""
    if isinstance(value, (list, dict)) and value and rng.random() < 0.85:
        value = copy.copy(value)
        key = rng.choice(range(len(value)) if isinstance(value, list) else list(value))
        kind = rng.random()
        if kind < 0.15:
            del value[key]
        elif kind < 0.25 and isinstance(value, list):
            value.append(value[key])
        else:
            value[key] = changed(value[key], rng)
        return value
    return rng.choice(ODD)


def mutated(lines: list[Any], rng: random.Random) -> bytes:
    """JSON lines, now and then as a list, of which some values and some bytes are others."""
    lines = list(lines)
    for _ in range(rng.choice([0, 1, 1, 2])):
        at = rng.randrange(len(lines))
        lines[at] = changed(lines[at], rng)
    data = bytearray(
        json.dumps(lines).encode()
        if rng.random() < 0.1
        else "\n".join(map(json.dumps, lines)).encode()
    )
    for _ in range(rng.choice([0, 0, 1, 3])):
        at, kind = rng.randrange(len(data) + 1), rng.random()
        if kind < 0.4:
            data[at:at] = rng.choice(BYTES)
        elif kind < 0.6:
            del data[at : at + rng.randrange(1, 200)]
        elif kind < 0.7:
            del data[at:]
        elif at < len(data):
            data[at] = rng.randrange(256)
    return bytes(data)
