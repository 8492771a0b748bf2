"""Linears whose weights are rounded to 8 or 4 bits: how, and what those of all kernels share."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# rows that are quantized at once, so that the float32 copy of an LM head is never whole
ROWS_AT_ONCE = 4096
# linears of recurrent layers that stay dense: tiny, with fewer rows than kernels of 4 bits want
DENSE = ("in_proj_a", "in_proj_b")
# attribute of packed weights: how many lie in an element
IN_ONE = "in_one"
# weights of a row that share a scale, in 4 bits
GROUP = 32


def eight_bits(rows: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Round rows, float32, to int8 by a scale for each.

    The scales are rounded to the dtype before the weights are.
    """
    scale = (rows.abs().amax(dim=1) / 127).clamp_(min=torch.finfo(dtype).tiny).to(dtype)
    return rows.div(scale[:, None].float()).round_().clamp_(-127, 127).to(torch.int8), scale


def four_bits(rows: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Round rows, float32, to levels from 0 to 15, uint8, in groups of GROUP.

    Returns them and, for each group, [rows, groups, 2]: what a level is worth, and the eighth. Both
    are rounded to the dtype before the weights are.
    """
    grouped = rows.unflatten(1, (-1, GROUP))
    least, most = grouped.aminmax(dim=-1)
    step = ((most - least) / 15).clamp_(min=torch.finfo(dtype).tiny).to(dtype)
    middle = (least + 8 * step.float()).to(dtype)
    levels = (
        (grouped - middle.float()[..., None])
        .div_(step.float()[..., None])
        .add_(8)
        .round_()
        .clamp_(0, 15)
    )
    return levels.flatten(1).to(torch.uint8), torch.stack((step, middle), dim=-1)


@dataclass(frozen=True, eq=False)
class Packed:
    """The tensors of one packed linear, and its shape.

    weight: as its kernel wants it. scale: what else it takes to read the weight. bias: [out] or
    None. shared: the weights are another module's parameters too (a tied LM head).
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None
    out_features: int
    in_features: int
    shared: bool = False


class PackedLinear(nn.Module):
    """A linear x W^T + bias, W rounded: x [..., in] to [..., out].

    A shared weight is counted as a buffer, any other as a parameter. repeated: bytes that hold the
    weight once more from its first product on.
    """

    weight: Tensor
    scale: Tensor
    bias: nn.Parameter | None
    repeated = 0

    def __init__(self, packed: Packed) -> None:
        super().__init__()
        self.out_features, self.in_features = packed.out_features, packed.in_features
        if packed.shared:
            self.register_buffer("weight", packed.weight)
        else:
            self.weight = nn.Parameter(packed.weight, requires_grad=False)
        self.register_buffer("scale", packed.scale)
        bias = packed.bias
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        # `dense` for as long as `dense_kept` lasts; no part of this module
        self.held: list[Tensor] = []

    def dense(self) -> Tensor:
        """Return the weights as they are rounded, [out, in]."""
        raise NotImplementedError

    def picked(self, rows: Tensor) -> PackedLinear | None:
        """Return a linear of these rows [n] alone, rounded as they are here; None where its kernel
        cannot divide them.

        n: a multiple of ROWS_TOGETHER.
        """
        return None

    def _of_rows(self, weight: Tensor, scale: Tensor, rows: Tensor) -> Packed:
        bias = None if self.bias is None else self.bias[rows]
        return Packed(weight, scale, bias, len(rows), self.in_features)

    def product(self) -> Callable[[Tensor], Tensor]:
        """Return the product without the bias: x [rows, in], contiguous, to [rows, out]."""
        raise NotImplementedError

    def kernel(self) -> Callable[[Tensor], Tensor]:
        """Return the product with the bias: all of `forward` but what a module's call takes."""
        product, bias = self.product(), self.bias
        return product if bias is None else lambda x: product(x).add_(bias)

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:  # the kernels have no backward
            return F.linear(x, self.held[0] if self.held else self.dense(), self.bias)
        return self.kernel()(x.reshape(-1, self.in_features).contiguous()).view(
            *x.shape[:-1], self.out_features
        )


@contextmanager
def dense_kept(linear: nn.Module) -> Iterator[None]:
    """Make a packed linear's dense weights once, not each time that gradients go through it.

    With any other module nothing changes.
    """
    if not isinstance(linear, PackedLinear):
        yield
        return
    linear.held = [linear.dense()]
    try:
        yield
    finally:
        linear.held = []


@dataclass(frozen=True, eq=False)
class Levels:
    """A matrix [rows, columns] as w = (level - 8) step + middle, in groups of GROUP of a row.

    levels: uint8 [rows, columns], 0 to 15; step, middle: float32 [groups, rows].
    """

    levels: Tensor
    step: Tensor
    middle: Tensor


# A parameter's name to the levels that it comes in, which are kept; 8 for what comes in more bits
# than 4 and is held in 8; None for what is rounded as any other.
Held = Callable[[str], "Levels | int | None"]


def parameters(module: nn.Module) -> int:
    """Count a module's parameters: shared ones once, those packed into 4 bits unpacked."""
    return sum(
        math.prod(p.quant_state.shape)
        if hasattr(p, "quant_state")
        else p.numel() * getattr(p, IN_ONE, 1)
        for p in module.parameters()
    )
