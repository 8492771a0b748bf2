"""bitsandbytes' second layout of 4-bit matrices.

On CPUs with instructions for bfloat16 (AVX512-BF16) a matrix is laid out anew as it is first used
without gradients, for a kernel that computes in bfloat16, from blocks of 32 rows. It is faster by
far, fails on other shapes, and can be neither trained on nor read back exactly.
"""

from __future__ import annotations

from typing import Protocol, TypeGuard

import torch
from torch import nn

from dmtd_demo.errors import UserError

# attribute of bitsandbytes' Linear4bit that asks for the second layout; older versions have none,
# and on other machines it is off
SWITCH = "support_avx512bf16_for_cpu"
# rows of a block in that layout
BLOCK_ROWS = 32


class _Weight(Protocol):
    blocksize: int


class _Linear4bit(Protocol):
    """What is read of bitsandbytes' Linear4bit, which is imported nowhere here."""

    in_features: int
    out_features: int
    weight: _Weight


def _asks_for_it(part: nn.Module) -> TypeGuard[_Linear4bit]:
    return bool(getattr(part, SWITCH, False))


def choose_layout(module: nn.Module, dtype: torch.dtype) -> None:
    """Leave the second layout on only where bfloat16 was asked for and the matrix has its shape."""
    for part in module.modules():
        if _asks_for_it(part):
            setattr(
                part,
                SWITCH,
                dtype == torch.bfloat16
                and part.out_features % BLOCK_ROWS == 0
                and part.in_features % part.weight.blocksize == 0,
            )


def keep_layout(module: nn.Module) -> None:
    """Keep the first layout for good, for training.

    Raises UserError where a matrix has been laid out anew already.
    """
    for part in module.modules():
        if getattr(
            getattr(getattr(part, "weight", None), "quant_state", None),
            "packing_format_for_cpu",
            False,
        ):
            raise UserError(
                "training needs 4-bit weights as they were loaded; these have run already, on a "
                "CPU that lays them out anew: load the model again, with a number of threads"
            )
        if hasattr(part, SWITCH):
            setattr(part, SWITCH, False)
