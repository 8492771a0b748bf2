"""Triton kernels for what lies between the matrix products of a layer.

On a GPU each small operation costs 1.3 to 3 µs of a pass, whatever it computes, and four launches
of these take the place of thirteen (docs/performance.md). They compute what `fused.FusedLayer` does
without them, with the same roundings. Only CUDA graphs use them (`graphs.py`), and only where
Triton is there and can compile.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

# outputs of one program of `gated`
OUTPUTS = 1024
# A kernel may start before the one in front of it has ended, and waits for that by itself; what
# comes after it does the same, so that launches cost less and `cuda_packed.py` reads weights
# meanwhile: fast-int4 made 536 tokens a second with it, 490 without (docs/performance.md).
OVERLAP = True
# the first compute capability of a GPU that can
OVERLAPS = (9, 0)


def _overlapped(x: Tensor) -> dict[str, bool]:
    """Return the options of a launch."""
    if not (OVERLAP and x.is_cuda and _can_overlap(x.device)):
        return {"PDL": False}
    return {"PDL": True, "launch_pdl": True}


@lru_cache
def _can_overlap(device: torch.device) -> bool:
    cuda = getattr(getattr(tl, "extra", None), "cuda", None)
    return torch.cuda.get_device_capability(device) >= OVERLAPS and hasattr(cuda, "gdc_wait")


def rotate(
    heads: Tensor,
    cos: Tensor,
    sin: Tensor,
    weight: Tensor | None,
    eps: float,
    query_heads: int,
    entries: Tensor,
    at: Tensor,
) -> Tensor:
    """Apply QK norm and RoPE, and write keys and values into the cache.

    heads [q, query heads + 2 x kv heads, head size], contiguous, the size a power of two; cos, sin
    [q, 1, head size], sin with its first half negated; weight of the norms, [query heads + kv
    heads, head size], or None (Qwen2); entries [2 x kv heads, capacity, head size] and at, [q],
    where keys and values go. Returns the queries, [q, query heads, head size].
    """
    positions, count, size = heads.shape
    queries = heads.new_empty((positions, query_heads, size))
    _rotate[(positions, count)](
        heads,
        cos,
        sin,
        heads if weight is None else weight,
        eps,
        at,
        entries,
        queries,
        query_heads,
        (query_heads + count) // 2,
        entries.shape[1],
        SIZE=size,
        NORM=weight is not None,
        num_warps=1,
        **_overlapped(heads),
    )
    return queries


def normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return the RMSNorm of x [q, hidden]."""
    out = torch.empty_like(x)
    _normed[(x.shape[0],)](
        x,
        weight,
        eps,
        out,
        x.shape[1],
        BLOCK=triton.next_power_of_2(x.shape[1]),
        num_warps=8,
        **_overlapped(x),
    )
    return out


def gated(gate_up: Tensor) -> Tensor:
    """Return silu(gate) up of both side by side: [q, 2 x size] to [q, size]."""
    positions, size = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty((positions, size))
    _gated[(positions, triton.cdiv(size, OUTPUTS))](
        gate_up, out, size, BLOCK=OUTPUTS, **_overlapped(out)
    )
    return out


def try_out(device: torch.device) -> None:
    """Run every kernel once. Raises whatever is in the way."""
    heads, table = torch.ones((1, 3, 16), device=device), torch.ones((1, 1, 16), device=device)
    rotate(
        heads,
        table,
        table,
        None,
        0.0,
        1,
        torch.zeros((2, 1, 16), device=device),
        torch.zeros(1, dtype=torch.long, device=device),
    )
    normed(gated(heads.view(3, 16)), heads[0, 0, :8], 0.0)


@triton.jit
def _rotate(
    heads,
    cos,
    sin,
    weight,
    eps,
    at,
    entries,
    queries,
    query_heads,
    rotated,
    capacity,
    SIZE: tl.constexpr,
    NORM: tl.constexpr,
    PDL: tl.constexpr,
):
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    position, head = tl.program_id(0), tl.program_id(1)  # one program each
    kind = queries.dtype.element_ty
    here = tl.arange(0, SIZE)
    start = heads + (position * tl.num_programs(1) + head) * SIZE
    x = tl.load(start + here).to(tl.float32)
    if head < rotated:  # a query or a key
        there = (here + SIZE // 2) % SIZE  # RoPE exchanges the halves
        y = tl.load(start + there).to(tl.float32)
        if NORM:
            scale = tl.rsqrt(tl.sum(x * x, 0) / SIZE + eps)
            x = (
                (
                    (x * scale).to(kind).to(tl.float32)
                    * tl.load(weight + head * SIZE + here).to(tl.float32)
                )
                .to(kind)
                .to(tl.float32)
            )
            y = (
                (
                    (y * scale).to(kind).to(tl.float32)
                    * tl.load(weight + head * SIZE + there).to(tl.float32)
                )
                .to(kind)
                .to(tl.float32)
            )
        y = (y * tl.load(sin + position * SIZE + here).to(tl.float32)).to(kind).to(tl.float32)
        x = y + x * tl.load(cos + position * SIZE + here).to(tl.float32)
    x = x.to(kind)
    if head < query_heads:
        tl.store(queries + (position * query_heads + head) * SIZE + here, x)
    else:
        row = (head - query_heads) * capacity + tl.load(at + position)
        tl.store(entries + row * SIZE + here, x)


@triton.jit
def _normed(x, weight, eps, out, size, BLOCK: tl.constexpr, PDL: tl.constexpr):
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    kind = out.dtype.element_ty
    here = tl.arange(0, BLOCK)
    start = tl.program_id(0) * size
    whole = tl.load(x + start + here, mask=here < size, other=0.0).to(tl.float32)
    scaled = (whole * tl.rsqrt(tl.sum(whole * whole, 0) / size + eps)).to(kind).to(tl.float32)
    tl.store(
        out + start + here,
        (scaled * tl.load(weight + here, mask=here < size, other=0.0).to(tl.float32)).to(kind),
        mask=here < size,
    )


@triton.jit
def _gated(gate_up, out, size, BLOCK: tl.constexpr, PDL: tl.constexpr):
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    position = tl.program_id(0)
    here = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = here < size
    gate = tl.load(gate_up + position * 2 * size + here, mask=inside).to(tl.float32)
    up = tl.load(gate_up + position * 2 * size + size + here, mask=inside).to(tl.float32)
    kind = out.dtype.element_ty
    silu = (gate / (1 + tl.exp(-gate))).to(kind).to(tl.float32)
    tl.store(out + position * size + here, (silu * up).to(kind), mask=inside)
