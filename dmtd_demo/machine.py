"""The machine: its facts beside every figure, and its free memory."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Any

import psutil
import torch
import transformers


def describe(device: str) -> dict[str, Any]:
    """Describe the machine as traces, benchmarks and the page state it."""
    facts = {
        "device": device,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "processor": _processor(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    if device.startswith("cuda"):
        facts["gpu"] = torch.cuda.get_device_name(device)
    return facts


def is_there(device: str) -> bool:
    """Say whether PyTorch finds a device: cpu, cuda or cuda:NUMBER."""
    kind, colon, number = device.partition(":")
    if kind != "cuda" or not torch.cuda.is_available():
        return device == "cpu"
    return not colon or number.isdecimal() and int(number) < torch.cuda.device_count()


def on_zero_gpu() -> bool:
    """Say whether this is a ZeroGPU Space, by the rule of the package `spaces`."""
    return os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(
                (line.partition(":")[2].strip() for line in file if line.startswith("model name")),
                platform.machine(),
            )
    except OSError:
        return platform.processor() or platform.machine()


def free(device: str) -> int:
    """Return the bytes that can still be taken on a device.

    device: cpu, a CUDA device, or `auto` for all CUDA devices. On the CPU the limit of a container
    counts too.
    """
    if device == "auto":
        return sum(torch.cuda.mem_get_info(index)[0] for index in range(torch.cuda.device_count()))
    if device != "cpu":
        return torch.cuda.mem_get_info(device)[0]
    available = min(psutil.virtual_memory().available, _address_space())
    try:
        # cgroup v2
        root = Path("/sys/fs/cgroup")
        limit, used = (
            int((root / "memory.max").read_text()),
            int((root / "memory.current").read_text()),
        )
        files = next(
            int(line.split()[1])
            for line in (root / "memory.stat").read_text().splitlines()
            if line.startswith("inactive_file ")
        )
        return min(available, max(limit - used + files, 0))
    except (OSError, ValueError, StopIteration):
        # no container, or "max": no limit
        return available


def _address_space() -> int:
    """Return the bytes that a limit on this process (ulimit -v) leaves of it."""
    try:
        # not on Windows
        import resource
    except ImportError:
        return sys.maxsize
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return (
        sys.maxsize
        if limit == resource.RLIM_INFINITY
        else max(limit - psutil.Process().memory_info().vms, 0)
    )
