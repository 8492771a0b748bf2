"""The gated delta rule of Qwen3.5's recurrent layers, for training: whole rows by batched products.

Yang et al., "Gated Delta Networks" (arXiv 2412.06464): S <- S e^g; S <- S + k (x) beta (v - k S);
o = q S. Within a chunk the updates are one unit lower triangular system; from chunk to chunk the
state passes through one affine map, so a row of 512 positions takes eight small products in turn.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

# blocks up to this size are inverted by a product of powers, whose terms grow with the size:
# 35-fold at most here, 1e18-fold at 64
BASE = 8


class _UnitLowerInverse(torch.autograd.Function):
    """(I + a)^-1 for strictly lower triangular a [..., n, n].

    Its gradient needs the inverse alone, none of the steps that led to it.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Tensor:
        inverse = _inverse(a)
        ctx.save_for_backward(inverse)
        return inverse

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (inverse,) = ctx.saved_tensors
        return -(inverse.mT @ grad @ inverse.mT).tril(-1)


def _inverse(a: Tensor) -> Tensor:
    n = a.shape[-1]
    size = min(BASE, n)
    # [..., block row, row, block column, column]
    blocks = a.unflatten(-1, (n // size, size)).unflatten(-3, (n // size, size))
    # [..., blocks, size, size]
    inner = blocks.diagonal(dim1=-4, dim2=-2).movedim(-1, -3)
    one = torch.eye(size, dtype=a.dtype, device=a.device)
    inverse, power, reach = one - inner, inner, 2
    while reach < size:
        power = power @ power
        inverse = inverse + inverse @ power
        reach *= 2
    while size < n:  # [[x, 0], [c, y]]^-1 = [[x^-1, 0], [-y^-1 c x^-1, y^-1]]
        pairs = n // (2 * size)
        # [..., pair, half, row, pair, half, column]
        below = a.unflatten(-1, (pairs, 2, size)).unflatten(-4, (pairs, 2, size))
        # [..., pairs, size, size]
        below = below.diagonal(dim1=-6, dim2=-3).movedim(-1, -5)[..., 1, :, 0, :]
        upper, lower = inverse.unflatten(-3, (pairs, 2)).unbind(-3)
        corner = -(lower @ below @ upper)
        inverse = torch.cat(
            [torch.cat([upper, torch.zeros_like(upper)], -1), torch.cat([corner, lower], -1)], -2
        )
        size *= 2
    return inverse.squeeze(-3)


def unit_lower_inverse(a: Tensor) -> Tensor:
    """Return the inverse of I + a for strictly lower triangular a [..., n, n], n a power of two."""
    return _UnitLowerInverse.apply(a)


def gated_delta_rule(
    query: Tensor, key: Tensor, value: Tensor, g: Tensor, beta: Tensor, chunk: int = 64
) -> Tensor:
    """Return the outputs [rows, n, heads, value width], in float32.

    query, key [rows, n, heads, key width], l2-normalized here; value [rows, n, heads, value width];
    g (<= 0, a logarithm) and beta [rows, n, heads]. n is a multiple of the chunk, which is a power
    of two. A row forgets what came before where g is -60 or less.
    """
    rows, n, heads, width = key.shape

    def chunks(x: Tensor) -> Tensor:  # [rows, heads, chunks, chunk, ...]
        return x.float().unflatten(1, (n // chunk, chunk)).movedim(3, 1)

    q, k, v, g, b = chunks(query), chunks(key), chunks(value), chunks(g), chunks(beta)[..., None]
    q = q * torch.rsqrt((q * q).sum(-1, keepdim=True) + 1e-6) * width**-0.5
    k = k * torch.rsqrt((k * k).sum(-1, keepdim=True) + 1e-6)
    # the logarithm of the decay from the chunk's start
    since = g.cumsum(-1)
    lower = torch.ones(chunk, chunk, dtype=torch.bool, device=k.device).tril()
    decay = (since[..., :, None] - since[..., None, :]).masked_fill(~lower, float("-inf")).exp()
    written = k * b
    both = torch.cat([written, q], -2) @ k.mT
    inverse = unit_lower_inverse((both[..., :chunk, :] * decay).tril(-1))
    within = both[..., chunk:, :] * decay
    new, read = (inverse @ torch.cat([v * b, written * since.exp()[..., None]], -1)).split(
        (v.shape[-1], width), -1
    )
    kept = k * (since[..., -1:] - since).exp()[..., None]
    given, taken = (kept.mT @ torch.cat([new, read], -1)).split((v.shape[-1], width), -1)
    last = since[..., -1].exp()[..., None, None]
    # S after a chunk = step S + given
    step = last * torch.eye(width, dtype=k.dtype, device=k.device) - taken
    # one contiguous matrix a chunk: taken apart by unbind, whose gradient is one stack
    givens, steps = (x.movedim(2, 0).flatten(1, 2).contiguous().unbind() for x in (given, step))
    states = [torch.zeros_like(givens[0]), givens[0]][: len(givens)]
    for i in range(1, len(givens) - 1):
        states.append(torch.baddbmm(givens[i], steps[i], states[-1]))
    before = torch.stack(states, 1).unflatten(0, (rows, heads))
    from_state = torch.cat([read, q * since.exp()[..., None]], -2) @ before
    out = from_state[..., chunk:, :] + within @ (new - from_state[..., :chunk, :])
    return out.movedim(1, 3).flatten(1, 2)


def short_convolution(x: Tensor, weight: Tensor, same: list[Tensor]) -> Tensor:
    """Convolve each channel by itself, causally, then SiLU.

    x [rows, n, channels]; weight [channels, taps], the last tap for the position itself; same: for
    1, 2 … positions back, whether they belong to the same text, [rows, n, 1] of x's dtype.
    """
    taps = weight.shape[-1]
    out = x * weight[:, -1]
    for back in range(1, taps):
        out = (
            out + F.pad(x[:, :-back], (0, 0, back, 0)) * weight[:, taps - 1 - back] * same[back - 1]
        )
    return F.silu(out)
