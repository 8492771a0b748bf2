"""Products by matrices in 8 bits as integers, by FBGEMM, which ships with PyTorch's CPU builds."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Callable

import torch
from torch import Tensor

# rows from which on 8 bits are multiplied as integers where the CPU can: LM heads, which are read
# for drafts too. 49,152 x 576, one thread, CPU time: 4.4 ms for one position and 10.3 for five by
# `_weight_int8pack_mm`, 1.5 and 2.1 so
HEAD_ROWS = 2**14
# bytes that FBGEMM holds for each row beside its weights: their sum, their scale, their zero
REPEATED_ROW = 12


@cache
def has_integers() -> bool:
    """Whether this CPU multiplies bytes, and PyTorch's build has the kernels for it.

    Without its own instructions for that FBGEMM's sums of pairs could overflow.
    """
    engines = torch.backends.quantized
    return (
        torch.cpu._is_vnni_supported()
        and engines.engine in ("x86", "fbgemm")
        and engines.engine in engines.supported_engines
    )


def is_by_integers(large: bool, scale: Tensor) -> bool:
    """Whether a matrix in 8 bits, of HEAD_ROWS or rows of such, is multiplied as integers here."""
    return scale.dtype == torch.bfloat16 and large and has_integers()


def by_integers(weight: Tensor, scale: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the product of x [rows, in] by bytes, int8 [out, in], each row of which has a scale.

    x goes in as 127 steps of its row's largest entry, and 127 of half a step again, 16 bits in all:
    twice the rows, which cost next to nothing, and more than bfloat16 has. Sums are integers, so a
    position's result does not depend on what is beside it. By FBGEMM, which ships with PyTorch; it
    holds the weight once more in its own layout.
    """
    with warnings.catch_warnings():
        # of torch.ao, which this is not
        warnings.simplefilter("ignore")
        zeros = torch.zeros(len(weight), dtype=torch.long)
        quantized = torch._make_per_channel_quantized_tensor(weight, scale.double(), zeros, 0)
        held = torch.ops.quantized.linear_prepack(quantized, None)
    multiply = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32.default
    least = torch.finfo(torch.float32).tiny

    def product(x: Tensor) -> Tensor:
        rows = len(x)
        steps = x.float()
        step = torch.linalg.vector_norm(steps, torch.inf, -1, True).div_(127).clamp_(min=least)
        steps = steps / step
        coarse = steps.round()
        fine = steps.sub_(coarse).mul_(254).round_()
        # one step is 1, and a byte is 128 more
        y = multiply(torch.cat((coarse, fine)), 1.0, 128, held)
        return torch.add(y[:rows], y[rows:], alpha=1 / 254).mul_(step).to(x.dtype)

    return product
