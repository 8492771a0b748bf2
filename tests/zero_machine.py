"""`app.py` as a ZeroGPU Space runs it, on a machine without a GPU: the real package `spaces` with
its fork and its queues, and the CPU in the place of the GPU that is lent.
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

import torch

if not torch.version.cuda:  # the package takes a build for CUDA as given
    torch.version.cuda = "12.8"
    torch._C._cuda_init = torch.cuda._is_in_bad_fork = bool

import spaces.zero.torch as lent  # noqa: E402
from spaces.zero.torch import patching  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]


def move(callback: object = None) -> None:
    """What the package reads from its file into the GPU's memory, into this machine's."""
    for pack in patching.tensor_packs:
        data = Path(pack.path()).read_bytes()
        begins = 0
        for tensor, size, aligned in [each for batch in pack.batches for each in batch] + list(
            pack.big_tensors
        ):
            own = (
                torch.frombuffer(bytearray(data[begins : begins + size]), dtype=torch.uint8).view(
                    tensor.dtype
                )
                if size
                else torch.empty(0, dtype=tensor.dtype)
            )
            begins += aligned
            for fake in pack.fakes[tensor]:
                fake.data = torch.empty(0, dtype=tensor.dtype).set_(
                    own.untyped_storage(), 0, tensor.shape, tensor.stride()
                )


lent.init = lambda nvidia_uuid: None
lent.move = move
sys.argv[0] = "app.py"
sys.path.insert(0, str(ROOT))
os.chdir(ROOT)
runpy.run_path(str(ROOT / "app.py"), run_name="__main__")
