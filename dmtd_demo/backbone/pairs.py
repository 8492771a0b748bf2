"""Dense bfloat16 linears on a CPU by AVX512-BF16, in the layout of the optional package `vnni`.

Its instructions multiply pairs of bfloat16 numbers and sum them up in float32. A decoder layer of
such matrices is one call (`integers.WholeLayer`), and a position's result does not depend on how
many others are beside it.
"""

from __future__ import annotations

import struct
from typing import Any, Callable, Sequence

import torch
from torch import Tensor

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

    def matrix(self, with_bias: bool = True) -> tuple[bytes, list[Tensor]]:
        """Return the kernel's struct, and the tensors whose addresses are in it."""
        tensors = [self.weight.detach()]
        bias = self.bias.detach().float() if self.bias is not None and with_bias else None
        if bias is not None:
            tensors.append(bias)
        addresses = (tensors[0].data_ptr(), 0, 0 if bias is None else bias.data_ptr())
        return struct.pack(MATRIX, *addresses, *self.weight.shape, 16, 0), tensors

    def _product(self, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
        matrix, held = self.matrix(bias is not None)
        outs, threads, kernel = len(self.weight), torch.get_num_threads, KERNEL

        # held: so that what the struct points to stays
        def product(x: Tensor, held: Sequence[Tensor] = held) -> Tensor:
            rows = x.reshape(-1, x.shape[-1]).contiguous()
            y = rows.new_empty(len(rows), outs)
            kernel.product(matrix, rows.data_ptr(), len(rows), y.data_ptr(), threads())
            return y.view(*x.shape[:-1], outs)

        return product


def fits(linear: Any) -> bool:
    """Whether a dense linear's shape and dtype are such that it can lie so."""
    return (
        PAIRS
        and linear.weight.dtype == torch.bfloat16
        and not (linear.in_features % GROUP or linear.out_features % ROW_MULTIPLE)
    )
