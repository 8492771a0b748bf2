"""Dense bfloat16 linears on a CPU by AVX512-BF16, in the layout of the optional package `vnni`.

Its instructions multiply pairs of bfloat16 numbers and sum them up in float32. A decoder layer of
such matrices is one call (`integers.WholeLayer`), and a position's result does not depend on how
many others are beside it.
"""

from __future__ import annotations

import struct
from typing import Any, Callable, Sequence

import torch
from torch import Tensor, nn

from dmtd_demo.backbone.cpu_packed import ROW_MULTIPLE
from dmtd_demo.backbone.integers import KERNEL, MATRIX
from dmtd_demo.backbone.onednn import BlockedLinear
from dmtd_demo.backbone.packed import GROUP

# whether the package is there, and this CPU has the instructions
PAIRS = KERNEL is not None and KERNEL.multiplies_pairs()


class PairedLinear(BlockedLinear):
    """A linear in blocks of ROW_MULTIPLE rows, of which each pair of inputs lies together.

    weight: [out, in], opaque. in: a multiple of GROUP, out: of ROW_MULTIPLE.
    """

    @staticmethod
    def _laid_out(weight: Tensor) -> Tensor:
        out, inputs = weight.shape
        blocks = weight.detach().reshape(-1, ROW_MULTIPLE, inputs // 2, 2).transpose(1, 2)
        return blocks.reshape(out, inputs)

    def _as_it_was(self) -> Tensor:
        blocks = self.weight.detach().view(-1, self.in_features // 2, ROW_MULTIPLE, 2)
        return blocks.transpose(1, 2).reshape(self.weight.shape)

    def forward(self, x: Tensor) -> Tensor:
        """As `BlockedLinear` has it, by its own rows alone, which lie together."""
        rows = self.rows
        if rows is None or x.dtype != self.weight.dtype or torch.is_grad_enabled():
            return super().forward(x)
        part = self.weight.detach()[rows]
        return _product(part, self.bias)(x)

    def matrix(self, with_bias: bool = True) -> tuple[bytes, list[Tensor]]:
        """Return the kernel's struct, and the tensors whose addresses are in it."""
        return _matrix(self.weight.detach(), self.bias if with_bias else None)

    def _product(self, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
        return _product(self.weight.detach(), bias)


def _matrix(weight: Tensor, bias: Tensor | None) -> tuple[bytes, list[Tensor]]:
    tensors = [weight]
    if bias is not None:
        tensors.append(bias.detach().float())
    addresses = (weight.data_ptr(), 0, 0 if bias is None else tensors[1].data_ptr())
    return struct.pack(MATRIX, *addresses, *weight.shape, 16, 0), tensors


def _product(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    matrix, held = _matrix(weight, bias)
    (outs, inputs), threads, kernel = weight.shape, torch.get_num_threads, KERNEL

    # held: so that what the struct points to stays
    def product(x: Tensor, held: Sequence[Tensor] = held) -> Tensor:
        rows = x.reshape(-1, inputs).contiguous()
        # the kernel is given an address alone
        assert x.dtype == torch.bfloat16 and x.shape[-1] == inputs
        y = rows.new_empty(len(rows), outs)
        kernel.product(matrix, rows.data_ptr(), len(rows), y.data_ptr(), threads())
        return y.view(*x.shape[:-1], outs)

    return product


def in_pairs(linear: nn.Linear, other: nn.Module) -> nn.Module:
    """Return a dense linear in pairs where another one lies so, else the linear itself."""
    if not isinstance(other, PairedLinear) or not fits(linear):
        return linear
    return PairedLinear(linear.weight, linear.bias)


def fits(linear: Any) -> bool:
    """Whether the package and this CPU have products of pairs for a dense linear's shape and
    dtype."""
    return (
        PAIRS
        and linear.weight.dtype == torch.bfloat16
        and not (linear.in_features % GROUP or linear.out_features % ROW_MULTIPLE)
    )
