"""What a figure was measured on."""
from __future__ import annotations

import os
import platform
from typing import Any

import torch
import transformers


def describe(device: str) -> dict[str, Any]:
    """The machine as traces, benchmarks and the page state it."""
    facts = {"device": device, "threads": torch.get_num_threads(), "cores": os.cpu_count(), "processor": _processor(), "system": platform.system(),
             "python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__}
    if device.startswith("cuda"):
        facts["gpu"] = torch.cuda.get_device_name(device)
    return facts


def on_zero_gpu() -> bool:
    """Read as the package `spaces` reads it."""
    return os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), platform.machine())
    except OSError:
        return platform.processor() or platform.machine()
