"""A GGUF file's header: metadata, and where each tensor lies.

Every length is checked against the file.
The package `gguf` reads it too, slowly and without bounds. Format:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from dmtd_demo.errors import UserError

NUMBERS = {0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "<u1",
           10: "<u8", 11: "<i8", 12: "<f8"}  # fmt: skip
MOST = 2**24  # entries of a list: lists of numbers take forty times their bytes here
FLOAT32, BOOL, STRING, ARRAY = 6, 7, 8, 9


@dataclass(frozen=True)
class Tensor:
    """A tensor's place. shape: as PyTorch has it, rows first; offset, size: bytes of the file."""

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    offset: int
    size: int


@dataclass(frozen=True)
class _Entry:
    """A tensor as the header lists it. dims: the shortest stride first; offset: into the data."""

    name: str
    dims: list[int]
    kind: int
    offset: int


@dataclass(frozen=True, eq=False)
class File:
    """A checked header. path: the file itself, or None where only the header was read. size: bytes
    of the whole file."""

    name: str
    path: Path | None
    size: int
    metadata: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def architecture(self) -> str:
        return self.metadata["general.architecture"]

    @property
    def permuted(self) -> bool:
        """Whether the rows of queries and keys lie in llama.cpp's order: pairs side by side."""
        return self.architecture == "llama"

    def own(self, key: str, default: Any = None) -> Any:
        """The architecture's metadata of this name."""
        return self.metadata.get(f"{self.architecture}.{key}", default)

    def bytes_of(self, tensor: Tensor) -> np.ndarray:
        """The tensor's bytes [rows, bytes of a row], mapped from the file, where it is here."""
        assert self.path is not None
        shape = (tensor.shape[0], tensor.size // tensor.shape[0])
        return np.memmap(self.path, np.uint8, "r", tensor.offset, shape)

    def refuse(self, words: str) -> UserError:
        return UserError(f"{self.name} {words}")


def read_header(stream: BinaryIO, size: int, name: str, path: Path | None = None) -> File:
    """Read the header from the beginning of a stream. size: bytes of the whole file. path: where
    it lies, if it does. Raises UserError."""
    reader = _Reader(stream, size, name)
    _check_magic(reader)
    n_tensors, n_values = reader.number("<u8"), reader.number("<u8")
    metadata: dict[str, Any] = {}
    for _ in range(reader.count(n_values, 13)):
        key = reader.text()
        if key in metadata:
            raise UserError(f"{name} needs every key once; got {key[:80]!r} twice")
        metadata[key] = reader.value(reader.number("<u4"))
    file = File(name, path, size, metadata, {})
    entries = [_entry(reader) for _ in range(reader.count(n_tensors, 32))]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 1 <= alignment <= 2**20:
        raise file.refuse(f"needs an alignment of 1 to {2**20:,} bytes; got {str(alignment)[:80]}")
    start = -(-reader.position // alignment) * alignment
    end = start
    for entry in sorted(entries, key=lambda entry: entry.offset):
        tensor = _place(file, entry, start, alignment)
        if tensor.offset < end:
            raise file.refuse(f"needs tensors that do not overlap; {tensor.name} does")
        end = tensor.offset + tensor.size
        if end > size:
            raise file.refuse(
                f"needs {end:,} bytes for its tensor {tensor.name}; it has {size:,}: it was cut "
                "off, fetch it again"
            )
        file.tensors[tensor.name] = tensor
    if len(file.tensors) < len(entries):
        raise file.refuse("needs every tensor once; it names one twice")
    return file


def _check_magic(reader: _Reader) -> None:
    name, magic = reader.name, reader.take(4)
    if magic[:2] == b"PK":
        raise UserError(f"{name} needs to be a GGUF file; it is a zip archive: unpack it first")
    if magic != b"GGUF":
        raise UserError(f"{name} needs to be a GGUF file, which begins with GGUF; got {magic!r}")
    version = reader.number("<u4")
    if version & 0xFFFF == 0 and version:
        raise UserError(
            f"{name} needs to be little-endian; it is a GGUF file for big-endian machines: take "
            "the ordinary one"
        )
    if version not in (2, 3):
        raise UserError(f"{name} needs GGUF's version 2 or 3; got {version}")


def _entry(reader: _Reader) -> _Entry:
    name = reader.text()
    rank = reader.number("<u4")
    if not 1 <= rank <= 4:
        raise UserError(
            f"{reader.name} needs tensors of 1 to 4 dimensions; {name[:80]!r} has {rank}"
        )
    dims = [reader.number("<u8") for _ in range(rank)]
    return _Entry(name, dims, reader.number("<u4"), reader.number("<u8"))


def _place(file: File, entry: _Entry, start: int, alignment: int) -> Tensor:
    """Find the tensor in the file. start: where its data begins. Raises UserError."""
    name, dims, offset = entry.name, entry.dims, entry.offset
    try:
        kind = GGMLQuantizationType(entry.kind)
    except ValueError:
        raise file.refuse(
            f"needs tensors of known types; {name[:80]!r} has type {entry.kind}"
        ) from None
    block, size = GGML_QUANT_SIZES[kind]
    if not all(dims) or dims[0] % block:
        raise file.refuse(
            f"needs rows of whole blocks of {block}; {name[:80]!r} has the shape {dims[::-1]}"
        )
    if offset % alignment:
        raise file.refuse(
            f"needs offsets of a multiple of {alignment}; {name[:80]!r} lies at {offset:,}"
        )
    size *= math.prod(dims) // block
    return Tensor(name, tuple(reversed(dims)), kind, start + offset, size)


class _Reader:
    """Takes little-endian values from a stream, and nothing beyond the file's size."""

    def __init__(self, stream: BinaryIO, size: int, name: str) -> None:
        self._stream, self.size, self.name, self.position = stream, size, name, 0

    def take(self, n: int) -> bytes:
        data = self._stream.read(n) if n <= self.size - self.position else b""
        if len(data) < n:
            raise UserError(
                f"{self.name} needs {n:,} bytes at {self.position:,} of its header; it has "
                f"{self.size:,} in all: it is damaged or was cut off, fetch it again"
            )
        self.position += n
        return data

    def count(self, n: int, size: int) -> int:
        """The number n of things that take at least so many bytes each, where they fit."""
        if n > MOST or n * size > self.size - self.position:
            raise UserError(
                f"{self.name} claims {n:,} entries at {self.position:,} of its header, more than "
                f"{MOST:,} or than its {self.size:,} bytes can hold: it is damaged or was cut "
                "off, fetch it again"
            )
        return n

    def number(self, dtype: str) -> Any:
        return np.frombuffer(self.take(int(dtype[2])), dtype)[0].item()

    def text(self) -> str:
        (length,) = struct.unpack("<Q", self.take(8))
        try:
            return self.take(length).decode()
        except UnicodeDecodeError:
            raise UserError(
                f"{self.name} needs text in UTF-8 at {self.position:,} of its header; got other "
                "bytes"
            ) from None

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.text()
        if kind == ARRAY:
            kind, n = self.number("<u4"), self.number("<u8")
            if kind == STRING:
                return [self.text() for _ in range(self.count(n, 8))]
            dtype = self._dtype(kind)
            items = np.frombuffer(self.take(self.count(n, int(dtype[2])) * int(dtype[2])), dtype)
            return (items != 0 if kind == BOOL else items).tolist()
        value = self.number(self._dtype(kind))
        if kind == FLOAT32:
            # the shortest decimal that is this float32: 1e-05, not 9.999999747378752e-06
            return float(str(np.float32(value)))
        return bool(value) if kind == BOOL else value

    def _dtype(self, kind: int) -> str:
        if kind not in NUMBERS:
            raise UserError(
                f"{self.name} needs values of the types 0 to 12, no lists of lists; got {kind} at "
                f"{self.position:,} of its header"
            )
        return NUMBERS[kind]
