"""The machine: what a figure was measured on, and what memory is free."""

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
    """The machine as traces, benchmarks and the page state it."""
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


def on_zero_gpu() -> bool:
    """Read as the package `spaces` reads it."""
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
    """Bytes that can still be taken: on the device; for `auto` on all CUDA devices; on the CPU within the limit of a container, too."""
    if device == "auto":
        return sum(torch.cuda.mem_get_info(index)[0] for index in range(torch.cuda.device_count()))
    if device != "cpu":
        return torch.cuda.mem_get_info(device)[0]
    available = min(psutil.virtual_memory().available, _address_space())
    try:  # cgroup v2
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
    except (OSError, ValueError, StopIteration):  # no container, or "max": no limit
        return available


def _address_space() -> int:
    """What a limit on this process (ulimit -v) leaves of it, in bytes."""
    try:
        import resource  # not on Windows
    except ImportError:
        return sys.maxsize
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return (
        sys.maxsize
        if limit == resource.RLIM_INFINITY
        else max(limit - psutil.Process().memory_info().vms, 0)
    )
