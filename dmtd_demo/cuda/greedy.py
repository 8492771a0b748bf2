"""The likeliest tokens of rows of logits with their log-probabilities on CUDA, in one kernel of our
own (`greedy.cu`) in place of eight: at 4 bits a pass of few layers takes no longer than those."""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from dmtd_demo.cuda import nvrtc

SOURCE = Path(__file__).with_suffix(".cu").read_text(encoding="utf-8")
THREADS = 256
PARTS = 128  # blocks of a row
ROWS = 64  # at most
log = logging.getLogger(__name__)


def greedy(logits: Tensor) -> list[list[float]] | None:
    """[rows, vocabulary] on CUDA to a token, a whole number, and the natural log of its probability
    for each row; this is NaN or infinite where the logits are. None where there is no kernel."""
    rows = logits.shape[0]
    if rows > ROWS or logits.dtype not in (torch.bfloat16, torch.float32):
        return None
    kept = _kept(logits.device, logits.dtype == torch.float32)
    if kept is None:
        return None
    kernel, done = kept
    partial, out = (
        torch.empty(shape, device=logits.device) for shape in ((rows * PARTS, 3), (rows, 2))
    )
    kernel(rows * PARTS, (logits.contiguous(), partial, done, out, logits.shape[1]))
    return out.tolist()


@cache
def _kept(device: torch.device, wide: bool) -> tuple[nvrtc.Kernel, Tensor] | None:
    """The kernel, and its counters of blocks that have ended, which it leaves at 0."""
    index = torch.cuda.current_device() if device.index is None else device.index
    macros = (("WIDE", int(wide)), ("THREADS", THREADS), ("PARTS", PARTS))
    try:
        kernel = nvrtc.kernel(SOURCE, "greedy", macros, THREADS, index, False)
    except (OSError, RuntimeError, AttributeError) as error:  # no NVRTC, or one that is too old
        log.warning("tokens are chosen by PyTorch's own operations: %s", error)
        return None
    with torch.inference_mode(False):
        return kernel, torch.zeros(ROWS, dtype=torch.int32, device=device)
