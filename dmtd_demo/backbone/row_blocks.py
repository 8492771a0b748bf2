"""Dense linears on a CPU by AVX512, in the layout of the optional package `vnni`.

bfloat16 numbers are multiplied in pairs (AVX512-BF16), float32 ones one by one; both are summed up
in float32. Decoder layers of such matrices are one call (`avx512.WholeLayers`), and a position's
result does not depend on how many others are beside it.
"""

from __future__ import annotations

import math
import struct
from typing import Any, Callable, Sequence

import torch
from torch import Tensor, nn

from dmtd_demo.backbone.avx512 import KERNEL, MATRIX
from dmtd_demo.backbone.cpu_packed import ROW_MULTIPLE
from dmtd_demo.backbone.onednn import BlockedLinear
from dmtd_demo.backbone.packed import GROUP

# by dtype that the package multiplies on this CPU, what a layout of it is called, and how many
# inputs of a row lie together
DTYPES: dict[torch.dtype, tuple[str, int]] = {}
if KERNEL is not None:
    DTYPES[torch.float32] = "blocks of rows for AVX512 (dmtd-vnni)", 1
    if KERNEL.multiplies_pairs():
        DTYPES[torch.bfloat16] = "pairs for AVX512-BF16 (dmtd-vnni)", 2


class RowBlockLinear(BlockedLinear):
    """A linear in blocks of ROW_MULTIPLE rows, of which each input, or each pair of them, lies
    together.

    weight: [out, in], opaque. in: a multiple of GROUP, out: of ROW_MULTIPLE.
    """

    @staticmethod
    def _laid_out(weight: Tensor) -> Tensor:
        out, inputs = weight.shape
        each = DTYPES[weight.dtype][1]
        blocks = weight.detach().reshape(-1, ROW_MULTIPLE, inputs // each, each).transpose(1, 2)
        return blocks.reshape(out, inputs)

    def _as_it_was(self) -> Tensor:
        each = DTYPES[self.weight.dtype][1]
        blocks = self.weight.detach().view(-1, self.in_features // each, ROW_MULTIPLE, each)
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
    return struct.pack(MATRIX, *addresses, *weight.shape, 8 * weight.element_size(), 0), tensors


def _product(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    matrix, held = _matrix(weight, bias)
    (outs, inputs), threads, multiply = weight.shape, torch.get_num_threads, KERNEL.product
    dtype = weight.dtype

    # held: so that what the struct points to stays
    def product(x: Tensor, held: Sequence[Tensor] = held) -> Tensor:
        *many, size = x.shape
        # the kernel is given an address alone
        assert x.dtype == dtype and size == inputs
        x, y = x.contiguous(), x.new_empty(*many, outs)
        multiply(matrix, x.data_ptr(), math.prod(many), y.data_ptr(), threads())
        return y

    return product


def laid_out_like(linear: nn.Linear, other: nn.Module) -> nn.Module:
    """Return a dense linear in blocks of rows where another one lies so, else the linear itself."""
    if not isinstance(other, RowBlockLinear) or not fits(linear):
        return linear
    return RowBlockLinear(linear.weight, linear.bias)


def fits(linear: Any) -> bool:
    """Whether the package and this CPU have products for a dense linear's shape and dtype."""
    return linear.weight.dtype in DTYPES and not (
        linear.in_features % GROUP or linear.out_features % ROW_MULTIPLE
    )
