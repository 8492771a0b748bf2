"""SmolLM2's GGUF file without the package `gguf`: weights, and the tokenizer.

Only what this one file has: architecture `llama`, types F32, Q8_0 and Q4_1, a GPT-2 vocabulary.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

F32, Q4_1, Q8_0 = 0, 3, 8
# block size in values, and in bytes
BLOCKS = {F32: (1, 4), Q4_1: (32, 20), Q8_0: (32, 34)}
SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
STRING, ARRAY = 8, 9


@dataclass(frozen=True)
class Shape:
    """What the stack needs to know. eps: of every RMS norm; theta: base of the rotary angles."""

    layers: int = 30
    hidden: int = 576
    heads: int = 9
    kv_heads: int = 3
    head_dim: int = 64
    ffn: int = 1536
    vocabulary: int = 49152
    eps: float = 1e-5
    theta: float = 100_000.0

    @property
    def qkv(self) -> int:
        return (self.heads + 2 * self.kv_heads) * self.head_dim


@dataclass
class Layer:
    """One decoder layer; `qkv` and `gate_up` are the usual matrices, one above the other."""

    norm1: Tensor
    qkv: Tensor
    o: Tensor
    norm2: Tensor
    gate_up: Tensor
    down: Tensor


@dataclass
class Weights:
    """The whole model. `embedding` is the LM head too."""

    shape: Shape
    embedding: Tensor
    layers: list[Layer]
    norm: Tensor


class _Header:
    """Reads a GGUF header front to back."""

    def __init__(self, data: memoryview) -> None:
        self.data, self.at = data, 0

    def scalar(self, code: str) -> Any:
        value = struct.unpack_from("<" + code, self.data, self.at)[0]
        self.at += struct.calcsize("<" + code)
        return value

    def string(self) -> str:
        size = self.scalar("Q")
        self.at += size
        return bytes(self.data[self.at - size : self.at]).decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            return self.scalar(SCALARS[kind])
        inner, count = self.scalar("I"), self.scalar("Q")
        if inner == STRING:
            return [self.string() for _ in range(count)]
        values = np.frombuffer(
            self.data, dtype=np.dtype("<" + SCALARS[inner]), count=count, offset=self.at
        )
        self.at += values.nbytes
        return values.tolist()


def _dequantized(raw: np.ndarray, kind: int) -> np.ndarray:
    """raw: the bytes of whole blocks; float32, flat. Formulas: ggml's dequantize_row_q4_1, q8_0."""
    if kind == F32:
        return raw.view("<f4")
    blocks = raw.reshape(-1, BLOCKS[kind][1])
    scale = np.ascontiguousarray(blocks[:, :2]).view("<f2").astype(np.float32)
    if kind == Q8_0:
        return (blocks[:, 2:].view(np.int8).astype(np.float32) * scale).reshape(-1)
    least = np.ascontiguousarray(blocks[:, 2:4]).view("<f2").astype(np.float32)
    levels = np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], axis=1).astype(np.float32)
    return (levels * scale + least).reshape(-1)


def _rotary_order(w: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp stores the query and key rows of `llama` interleaved; back to halves."""
    pairs = w.reshape(heads, w.shape[0] // heads // 2, 2, *w.shape[1:])
    return pairs.swapaxes(1, 2).reshape(w.shape)


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Metadata, and every tensor in float32 by its GGUF name. ValueError for unknown types."""
    # one part after the other where the file travelled in parts
    parts = [path] if path.exists() else sorted(path.parent.glob(path.name + ".part*"))
    data = np.concatenate([np.fromfile(part, dtype=np.uint8) for part in parts])
    head = _Header(memoryview(data))
    if head.scalar("I") != 0x46554747 or head.scalar("I") != 3:
        raise ValueError(f"{path} needs to be a GGUF file, version 3, little-endian")
    tensors, count = head.scalar("Q"), head.scalar("Q")
    facts = {}
    for _ in range(count):
        name = head.string()
        facts[name] = head.value(head.scalar("I"))
    found = []
    for _ in range(tensors):
        name, dims = head.string(), head.scalar("I")
        shape = [head.scalar("Q") for _ in range(dims)][::-1]
        found.append((name, shape, head.scalar("I"), head.scalar("Q")))
    align = facts.get("general.alignment", 32)
    start = (head.at + align - 1) // align * align
    values = {}
    for name, shape, kind, offset in found:
        if kind not in BLOCKS:
            raise ValueError(f"{path}: {name} has the type {kind}; known: {sorted(BLOCKS)}")
        per, size = BLOCKS[kind]
        raw = data[start + offset : start + offset + int(np.prod(shape)) // per * size]
        values[name] = _dequantized(raw, kind).reshape(shape)
    return facts, values


def load(path: Path, dtype: torch.dtype, device: torch.device) -> tuple[Weights, Tokens]:
    """The model of the file in one dtype on one device, and its tokenizer."""
    facts, t = read_gguf(path)
    if facts["general.architecture"] != "llama":
        raise ValueError(f"{path} needs the architecture llama")
    width, heads = facts["llama.embedding_length"], facts["llama.attention.head_count"]
    shape = Shape(
        facts["llama.block_count"],
        width,
        heads,
        facts["llama.attention.head_count_kv"],
        width // heads,
        facts["llama.feed_forward_length"],
        t["token_embd.weight"].shape[0],
        facts["llama.attention.layer_norm_rms_epsilon"],
        facts["llama.rope.freq_base"],
    )

    def put(*arrays: np.ndarray) -> Tensor:
        joined = np.concatenate(arrays) if len(arrays) > 1 else arrays[0]
        return torch.from_numpy(np.ascontiguousarray(joined)).to(device=device, dtype=dtype)

    layers = []
    for i in range(shape.layers):
        b = {
            name: t[f"blk.{i}.{name}.weight"]
            for name in (
                "attn_norm",
                "attn_q",
                "attn_k",
                "attn_v",
                "attn_output",
                "ffn_norm",
                "ffn_gate",
                "ffn_up",
                "ffn_down",
            )
        }
        q, k = _rotary_order(b["attn_q"], shape.heads), _rotary_order(b["attn_k"], shape.kv_heads)
        layers.append(
            Layer(
                put(b["attn_norm"]),
                put(q, k, b["attn_v"]),
                put(b["attn_output"]),
                put(b["ffn_norm"]),
                put(b["ffn_gate"], b["ffn_up"]),
                put(b["ffn_down"]),
            )
        )
    weights = Weights(shape, put(t["token_embd.weight"]), layers, put(t["output_norm.weight"]))
    return weights, Tokens(facts)


def random_weights(shape: Shape, dtype: torch.dtype, device: torch.device) -> Weights:
    """For a trial of the machine: the right shapes, and values that stay finite."""

    def matrix(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, device=device, dtype=dtype) * columns**-0.5

    one = torch.ones(shape.hidden, device=device, dtype=dtype)
    layers = [
        Layer(
            one,
            matrix(shape.qkv, shape.hidden),
            matrix(shape.hidden, shape.hidden) * 0.2,
            one,
            matrix(2 * shape.ffn, shape.hidden),
            matrix(shape.hidden, shape.ffn) * 0.2,
        )
        for _ in range(shape.layers)
    ]
    return Weights(shape, matrix(shape.vocabulary, shape.hidden) * 2, layers, one)


class Tokens:
    """The tokenizer of the file: ids of template pieces, and text of ids."""

    def __init__(self, facts: dict[str, Any]) -> None:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers

        if facts["tokenizer.ggml.pre"] != "smollm":
            raise ValueError("the tokenizer needs the pre-tokenizer smollm")
        words = facts["tokenizer.ggml.tokens"]
        merges = [tuple(pair.split(" ")) for pair in facts["tokenizer.ggml.merges"]]
        inner = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges))
        inner.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
        inner.decoder = decoders.ByteLevel()
        # control tokens never come from text by merges: they are split off first
        inner.add_special_tokens(
            [w for w, kind in zip(words, facts["tokenizer.ggml.token_type"]) if kind == 3]
        )
        self._inner = inner

    def encode(self, text: str) -> list[int]:
        return self._inner.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        return self._inner.decode(ids, skip_special_tokens=False)
