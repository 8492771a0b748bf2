"""The optional package of the folder `vnni`: AVX512 in C, and the choice of tokens by it.

Without it, or on a CPU that lacks the instructions, PyTorch's own kernels are what there is.
"""

from __future__ import annotations

import warnings
from typing import Any

# its kernel finds OpenMP in the process, which PyTorch brings
import torch
from torch import Tensor

# the kernel's (vnni/dmtd_vnni.c)
VERSION = 7


def _kernel() -> Any:
    """Return the optional package's module; None where there is none that runs on this CPU."""
    try:
        import dmtd_vnni
    except ImportError:
        return None
    if getattr(dmtd_vnni, "VERSION", None) != VERSION:
        warnings.warn(
            "the installed dmtd-vnni is of another version and is not used; "
            "`pip install ./vnni` brings this one's",
            stacklevel=2,
        )
        return None
    return dmtd_vnni if dmtd_vnni.runs_here() else None


KERNEL = _kernel()


def likeliest(logits: Tensor) -> list[tuple[int, float]] | None:
    """Logits [rows, vocabulary] on a CPU to each row's first largest entry and the natural log of
    its probability, which is NaN where the row has NaN or infinity. None where there is no kernel.
    """
    floats = logits.dtype == torch.float32
    if KERNEL is None or not (floats or logits.dtype == torch.bfloat16) or not logits.is_cpu:
        return None
    logits = logits.contiguous()
    found: list[tuple[int, float]] = KERNEL.likeliest(
        logits.data_ptr(), *logits.shape, floats, torch.get_num_threads()
    )
    return found
