"""The decoder stack over whole rows, with one or two sets of late layers, and one token at a time.

Formulas: Direct Multi-Token Decoding (arXiv 2510.11958), section 3, in the form that replaces:
u = Think(c) at a cycle head, u = c elsewhere, and the late layers run on u.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from weights import Layer, Shape, Weights

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

MATRICES = ("qkv", "o", "gate_up", "down")


@dataclass(frozen=True)
class Rotary:
    """cos, sin: [positions, head_dim / 2] in the model's dtype."""

    cos: Tensor
    sin: Tensor

    @staticmethod
    def of(shape: Shape, positions: int, dtype: torch.dtype, device: torch.device) -> Rotary:
        steps = torch.arange(0, shape.head_dim, 2, dtype=torch.float32, device=device)
        rates = 1.0 / shape.theta ** (steps / shape.head_dim)
        angles = torch.arange(positions, dtype=torch.float32, device=device)[:, None] * rates
        return Rotary(angles.cos().to(dtype), angles.sin().to(dtype))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [..., head_dim]; cos, sin broadcast to [..., head_dim / 2]."""
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def attend(qkv: Tensor, shape: Shape, rotary: Rotary) -> Tensor:
    """Causal attention over whole rows: qkv [rows, n, qkv width] to [rows, n, hidden]."""
    rows, n, _ = qkv.shape
    turned = shape.heads + shape.kv_heads
    qkv = qkv.view(rows, n, -1, shape.head_dim)
    qk = rotate(qkv[:, :, :turned], rotary.cos[:n, None], rotary.sin[:n, None])
    q, k, v = (
        part.transpose(1, 2)
        for part in (qk[:, :, : shape.heads], qk[:, :, shape.heads :], qkv[:, :, turned:])
    )
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    return out.transpose(1, 2).reshape(rows, n, shape.hidden)


def normed(x: Tensor, weight: Tensor, shape: Shape) -> Tensor:
    return F.rms_norm(x, (shape.hidden,), weight, shape.eps)


def swiglu(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate) * up


def run_layer(x: Tensor, layer: Layer, shape: Shape, rotary: Rotary) -> Tensor:
    """x [rows, n, hidden], every position by the same weights."""
    x = x + F.linear(
        attend(F.linear(normed(x, layer.norm1, shape), layer.qkv), shape, rotary), layer.o
    )
    return x + F.linear(swiglu(F.linear(normed(x, layer.norm2, shape), layer.gate_up)), layer.down)


class _Reorder(torch.autograd.Function):
    """x[index] for a permutation: its gradient is a gather too, not a sum by atomics."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        ctx.inverse = inverse
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad.index_select(0, ctx.inverse), None, None


@dataclass(frozen=True)
class Packing:
    """An order of a batch's positions in which the late-layer-only ones come first.

    index [rows · n]: packed place to flat position; inverse: the other way. late: how many are
    late-layer-only; heads: how many cycle heads of the answers follow them.
    """

    index: Tensor
    inverse: Tensor
    late: int
    heads: int

    def pack(self, x: Tensor) -> Tensor:
        """x [rows, n, ...] to [rows · n, ...]."""
        return _Reorder.apply(x.flatten(0, 1), self.index, self.inverse)

    def unpack(self, x: Tensor, rows: int) -> Tensor:
        return _Reorder.apply(x, self.inverse, self.index).view(rows, -1, *x.shape[1:])


def run_two(
    x: Tensor, adapted: Layer, own: Layer, packing: Packing, rows: int, shape: Shape, rotary: Rotary
) -> Tensor:
    """x [rows · n, hidden] packed: late-layer-only positions by `adapted`, the others by `own`.

    Both kinds attend to the keys and values of both.
    """
    at = packing.late

    def linear(y: Tensor, name: str) -> Tensor:
        first, second = getattr(adapted, name), getattr(own, name)
        if first is second:
            return F.linear(y, first)
        return torch.cat([F.linear(y[:at], first), F.linear(y[at:], second)])

    qkv = packing.unpack(linear(normed(x, own.norm1, shape), "qkv"), rows)
    x = x + linear(packing.pack(attend(qkv, shape, rotary)), "o")
    return x + linear(swiglu(linear(normed(x, own.norm2, shape), "gate_up")), "down")


@dataclass(frozen=True)
class Split:
    """early + middle + late = all layers; written E0D10."""

    early: int
    late: int

    @staticmethod
    def parse(text: str) -> Split:
        early, late = text[1:].split("D")
        return Split(int(early), int(late))

    def __str__(self) -> str:
        return f"E{self.early}D{self.late}"


class Stack:
    """The frozen model over whole rows."""

    def __init__(self, weights: Weights, positions: int = 1024) -> None:
        self.weights, self.shape = weights, weights.shape
        table = weights.embedding
        self.rotary = Rotary.of(self.shape, positions, table.dtype, table.device)
        self.layer = run_layer

    def run(self, x: Tensor, start: int, end: int) -> Tensor:
        for layer in self.weights.layers[start:end]:
            x = self.layer(x, layer, self.shape, self.rotary)
        return x

    def embed(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weights.embedding)

    def final(self, x: Tensor) -> Tensor:
        return normed(x, self.weights.norm, self.shape)

    def logits(self, h: Tensor) -> Tensor:
        return F.linear(h, self.weights.embedding)

    @torch.no_grad()
    def hidden(self, ids: Tensor) -> Tensor:
        """ids [rows, n]; hidden states after the final norm, [rows, n, hidden]."""
        return self.final(self.run(self.embed(ids), 0, self.shape.layers))

    @torch.no_grad()
    def frozen_part(self, ids: Tensor, split: Split) -> tuple[Tensor, Tensor]:
        """c and Think(c) of every position, [rows, n, hidden] each."""
        c = self.run(self.embed(ids), 0, split.early)
        return c, self.run(c, split.early, self.shape.layers - split.late)

    def late(
        self, c: Tensor, thought: Tensor, packing: Packing, adapted: list[Layer], shared: bool
    ) -> Tensor:
        """Hidden states after the final norm under a mask, packed: [rows · n, hidden].

        shared: full passes run the adapted late layers too; else the model's own.
        """
        rows, n = c.shape[:2]
        x = torch.cat(
            [
                c.flatten(0, 1)[packing.index[: packing.late]],
                thought.flatten(0, 1)[packing.index[packing.late :]],
            ]
        )
        for layer, own in zip(adapted, self.weights.layers[-len(adapted) :]):
            x = run_two(x, layer, layer if shared else own, packing, rows, self.shape, self.rotary)
        return self.final(x)


def packing_of(
    lengths: Tensor,
    prompts: Tensor,
    n: int,
    tau: int,
    counts: tuple[int, int],
    device: torch.device,
) -> Packing:
    """Cyclical masking, its phase anchored at the first generated token.

    lengths, prompts [rows] on the device; counts: late-layer-only positions, and cycle heads of
    the answers, known without asking the device (`mask_counts`).
    """
    at = torch.arange(n, device=device)
    phase = at - prompts[:, None]
    answer = (phase >= 0) & (at < lengths[:, None])
    head = phase % tau == 0
    kind = torch.where(answer, head.long(), 2).flatten()
    index = torch.sort(kind, stable=True).indices
    inverse = torch.empty_like(index)
    inverse[index] = torch.arange(len(index), device=device)
    return Packing(index, inverse, *counts)


def mask_counts(lengths: Any, prompts: Any, tau: int) -> tuple[int, int]:
    """numpy arrays of a batch's lengths and prompt lengths: late-layer-only positions, heads."""
    answers = lengths - prompts
    heads = int((-(-answers // tau)).sum())
    return int(answers.sum()) - heads, heads


def with_matrices(layer: Layer, matrices: dict[str, Tensor]) -> Layer:
    return replace(layer, **matrices)


if triton is not None:

    @triton.jit
    def _decode_kernel(
        q_at,
        k_at,
        v_at,
        pos_at,
        out_at,
        room,
        scale,
        GROUP: tl.constexpr,
        KV: tl.constexpr,
        D: tl.constexpr,
        BLOCK: tl.constexpr,
    ):
        """One row and one KV head: its GROUP queries over slots 0..pos."""
        row, kv = tl.program_id(0), tl.program_id(1)
        n = tl.load(pos_at + row).to(tl.int32) + 1
        dims, g = tl.arange(0, D), tl.arange(0, 16)
        query = (row * KV * GROUP + kv * GROUP + g)[:, None] * D + dims[None, :]
        real = (g < GROUP)[:, None]
        q = tl.load(q_at + query, mask=real, other=0.0)
        base = (row * KV + kv).to(tl.int64) * room * D
        best = tl.full([16], -1e30, tl.float32)
        total = tl.zeros([16], tl.float32)
        out = tl.zeros([16, D], tl.float32)
        for start in range(0, n, BLOCK):
            slot = start + tl.arange(0, BLOCK)
            cell = base + slot[:, None] * D + dims[None, :]
            live = slot < n
            k = tl.load(k_at + cell, mask=live[:, None], other=0.0)
            v = tl.load(v_at + cell, mask=live[:, None], other=0.0)
            score = tl.where(live[None, :], tl.dot(q, tl.trans(k)) * scale, -1e30)
            higher = tl.maximum(best, tl.max(score, 1))
            p = tl.exp(score - higher[:, None])
            keep = tl.exp(best - higher)
            total = total * keep + tl.sum(p, 1)
            out = out * keep[:, None] + tl.dot(p.to(v.dtype), v)
            best = higher
        tl.store(out_at + query, (out / total[:, None]).to(out_at.dtype.element_ty), mask=real)


def decode_plain(q: Tensor, k: Tensor, v: Tensor, pos: Tensor) -> Tensor:
    """q [rows, heads, d]; k, v [rows, kv heads, room, d]; slots 0..pos of each row count."""
    rows, heads, d = q.shape
    groups = q.view(rows, k.shape[1], -1, d)
    live = torch.arange(k.shape[2], device=q.device) <= pos[:, None]
    scores = (groups @ k.transpose(2, 3)).float() * d**-0.5
    scores = scores.masked_fill(~live[:, None, None], -1e30)
    return (scores.softmax(-1).to(v.dtype) @ v).view(rows, heads, d)


def decode_fast(q: Tensor, k: Tensor, v: Tensor, pos: Tensor) -> Tensor:
    """`decode_plain` that reads only the slots that count."""
    rows, heads, d = q.shape
    q, out = q.contiguous(), torch.empty_like(q, memory_format=torch.contiguous_format)
    _decode_kernel[(rows, k.shape[1])](
        q,
        k,
        v,
        pos,
        out,
        k.shape[2],
        d**-0.5,
        GROUP=heads // k.shape[1],
        KV=k.shape[1],
        D=d,
        BLOCK=64,
        num_warps=2,
    )
    return out


class Cache:
    """Keys and values of every layer: [layers, rows, kv heads, room, head_dim] each."""

    def __init__(self, shape: Shape, rows: int, room: int, like: Tensor) -> None:
        size = (shape.layers, rows, shape.kv_heads, room, shape.head_dim)
        self.k = torch.zeros(size, dtype=like.dtype, device=like.device)
        self.v = torch.zeros_like(self.k)
        self.rows = torch.arange(rows, device=like.device)


def decode_step(stack: Stack, cache: Cache, ids: Tensor, pos: Tensor, attention: Any) -> Tensor:
    """One token of every row, each at its own position; hidden states after the final norm."""
    shape, x = stack.shape, stack.embed(ids)
    cos, sin = stack.rotary.cos[pos][:, None], stack.rotary.sin[pos][:, None]
    turned = shape.heads + shape.kv_heads
    for i, layer in enumerate(stack.weights.layers):
        qkv = F.linear(normed(x, layer.norm1, shape), layer.qkv).view(len(x), -1, shape.head_dim)
        qk = rotate(qkv[:, :turned], cos, sin)
        cache.k[i][cache.rows, :, pos] = qk[:, shape.heads :]
        cache.v[i][cache.rows, :, pos] = qkv[:, turned:]
        mixed = attention(qk[:, : shape.heads], cache.k[i], cache.v[i], pos)
        x = x + F.linear(mixed.reshape(len(x), -1), layer.o)
        hidden = F.linear(normed(x, layer.norm2, shape), layer.gate_up)
        x = x + F.linear(swiglu(hidden), layer.down)
    return stack.final(x)
