"""Files of models, each with a fault drawn by chance, and what loading them says.

Used by `test_mutated.py` for a few, and by `scripts/fuzz_models.py` for many.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmtd_demo.errors import UserError
from dmtd_demo.models.chat import encode_chat
from dmtd_demo.models.loading import load
from dmtd_demo.race.panels import parse_panel
from dmtd_demo.race.race import race_ids
from dmtd_demo.race.settings import RaceSettings

VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 7, 10**6, 2**31, 2**63, 10**30, 0.0, -0.5, 1.5, 1e308, -1e-9,
    float("nan"), float("inf"), "", "x", "\0", "\ud800", "a\nb", "9" * 5000, [], {}, [[]], [0], ["x"],
    [None], {"x": 1}, "full_attention", "yarn", "gelu", "awq", "../x", "{{ 1/0 }}",
    "{% for i in range(10**9) %}{% endfor %}", "{{ messages[9] }}",
]  # fmt: skip
NUMBERS = (0, 1, 2, 4, 5, 7, 8, 9, 13, 0x7F, 0xFF, 2**16, 2**24, 2**31, 2**32 - 1, 2**63, 2**64 - 1)
ONCE = RaceSettings(max_new_tokens=2, audit=False)
AR = [parse_panel("ar")]


@dataclass(frozen=True)
class Case:
    """One file of one model, changed. number: what its fault is drawn by."""

    base: Path
    file: str
    number: int

    def __str__(self) -> str:
        return f"{self.base.name}/{self.file} {self.number}"


def files_of(base: Path) -> list[str]:
    """The files of a model that can be changed; a GGUF file is its only one."""
    if base.is_file():
        return [base.name]
    return sorted(str(p.relative_to(base)) for p in base.rglob("*") if p.is_file())


def write(case: Case, folder: Path) -> Path:
    """Write the model of the case into a folder; returns what is to be loaded."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    rng = random.Random(f"{case.file} {case.number}")
    source = case.base if case.base.is_file() else case.base / case.file
    changed = _changed(source, rng)
    if case.base.is_file():
        (folder / case.file).write_bytes(changed)
        return folder / case.file
    for name in files_of(case.base):
        (folder / name).parent.mkdir(exist_ok=True)
        if name != case.file:
            os.link(case.base / name, folder / name)
    (folder / case.file).write_bytes(changed)
    return folder


def outcome(path: Path) -> str:
    """Load a model, encode a chat and draw two tokens: "read", or the sentence that refuses it.

    Raises AssertionError for what is no sentence, and whatever else comes up.
    """
    try:
        model = load(str(path), threads=1)
        prompt = [1]
        if model.tokenizer is not None and getattr(model.tokenizer, "chat_template", None):
            prompt = encode_chat(model.tokenizer, [{"role": "user", "content": "the <think> 7"}])
        for _ in race_ids(model, AR, [prompt], ONCE):
            pass
    except UserError as error:
        words = str(error)
        assert "\n" not in words and words.strip() and not words.rstrip().endswith(":"), words
        assert len(words) < 2000 and "report" not in words and "Traceback" not in words, words
        return words
    return "read"


def _changed(path: Path, rng: random.Random) -> bytes:
    data = path.read_bytes()
    how: list[Callable[[bytes, random.Random], bytes]] = [_bytes]
    if path.suffix == ".json":
        how = [_json, _json, _json, _bytes]
    elif path.suffix == ".safetensors":
        how = [_safetensors, _safetensors, _header, _bytes]
    elif path.suffix == ".gguf":
        how = [_header, _header, _header, _bytes]
    return rng.choice(how)(data, rng)


def _json(data: bytes, rng: random.Random) -> bytes:
    value = json.loads(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        value = _other(value, rng)
    # the way in which Python writes NaN, large numbers and halves of characters
    return json.dumps(value).encode("utf-8", "surrogatepass")


def _other(value: Any, rng: random.Random) -> Any:
    """A JSON value with one place of it changed."""
    holder, at = None, None
    found = value
    while isinstance(found, (dict, list)) and found and (holder is None or rng.random() < 0.8):
        holder, at = (
            found,
            rng.choice(list(found) if isinstance(found, dict) else range(len(found))),
        )
        found = found[at]
    if holder is None:
        return rng.choice(VALUES)
    kind = rng.random()
    if kind < 0.15:
        del holder[at]
    elif kind < 0.25 and isinstance(holder, dict):
        holder[rng.choice(("x", "", "to_dict", "__class__", "model_type"))] = rng.choice(VALUES)
    elif kind < 0.35 and type(found) is int:
        holder[at] = found + rng.choice((-1, 1, 2, found))
    elif kind < 0.4:
        nested: Any = found
        for _ in range(rng.choice((1, 50, 400))):
            nested = [nested]
        holder[at] = nested
    else:
        holder[at] = rng.choice(VALUES)
    return value


def _safetensors(data: bytes, rng: random.Random) -> bytes:
    (size,) = struct.unpack("<Q", data[:8])
    head = _json(data[8 : 8 + size], rng)
    return struct.pack("<Q", len(head)) + head + data[8 + size :]


def _header(data: bytes, rng: random.Random) -> bytes:
    """Numbers of the first bytes replaced by ones that are seldom right."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 6))):
        width = rng.choice((1, 4, 8))
        at = rng.randrange(min(len(out), rng.choice((32, 512, 65536))))
        number = rng.choice(NUMBERS) % 2 ** (8 * width)
        out[at : at + width] = number.to_bytes(width, "little")
    return bytes(out)


def _bytes(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    to = min(len(data), at + rng.choice((1, 3, 64, 5000)))
    return rng.choice(
        (
            data[:at],
            data[:at] + data[to:],
            data[:at] + rng.randbytes(to - at) + data[to:],
            data[:at] + data[at:to] * 3 + data[to:],
            data[at:],
            b"",
            b"\xef\xbb\xbf" + data,
            data[:at] + bytes(to - at) + data[to:],
        )
    )
