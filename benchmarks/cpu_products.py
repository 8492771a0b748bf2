"""4-bit products on a CPU, one at a time: python benchmarks/cpu_products.py [--positions 1
--positions 4 --threads 1]

Microseconds of x W^T for the matrices of SmolLM2 and of Qwen2.5-0.5B's shape, each held so often
that it comes from memory: by PyTorch's 4-bit kernel, by products of bytes (`vnni/`), by FBGEMM's
and oneDNN's int8 products, and in bfloat16. Least CPU time of nine turns with one thread, so that it
may be measured beside others; of the clock with more.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Callable

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if TYPE_CHECKING:
    from torch import Tensor, nn

    Product = Callable[[Tensor], Tensor]

SHAPES = (
    *((960, 576), (576, 576), (3072, 576), (576, 1536), (49152, 576)),
    *((1152, 896), (896, 896), (9728, 896), (896, 4864), (151936, 896)),
)
# bytes of all copies of a matrix, in 4 bits: more than any cache holds
FAR = 96e6
TURNS = 9


def fbgemm(linear: nn.Linear) -> Product:
    import torch

    from dmtd_demo.backbone.packed import eight_bits

    weight, scale = eight_bits(linear.weight.float(), torch.float32)
    zeros = torch.zeros(len(weight), dtype=torch.long)
    quantized = torch._make_per_channel_quantized_tensor(weight, scale.double(), zeros, 0)
    held = torch.ops.quantized.linear_prepack(quantized, None)
    return lambda x: torch.ops.quantized.linear_dynamic(x.float(), held).bfloat16()


def onednn(linear: nn.Linear) -> Product:
    """One scale for all positions, which is less than a step would need."""
    import torch

    from dmtd_demo.backbone.packed import eight_bits

    weight, scale = eight_bits(linear.weight.float(), torch.float32)
    zeros = torch.zeros(len(weight), dtype=torch.int32)
    held = torch.ops.onednn.qlinear_prepack(weight, [1, linear.in_features])
    multiply = torch.ops.onednn.qlinear_pointwise.default

    def product(x: Tensor) -> Tensor:
        step = float(x.abs().max()) / 127
        steps = (x / step).round().add_(128).to(torch.uint8)
        out = torch.bfloat16
        return multiply(*(steps, step, 128, held, scale, zeros, None, 1.0, 0, out, "none", [], ""))

    return product


def ways() -> dict[str, Callable[[nn.Linear], Product]]:
    """Return what makes a product of a matrix, by its name; bytes where their kernel is there."""
    from dmtd_demo.backbone import integers
    from dmtd_demo.backbone.cpu_packed import Int4Linear
    from dmtd_demo.backbone.onednn import BlockedLinear

    found = {
        "PyTorch, 4 bits": lambda linear: Int4Linear.of(linear).kernel(),
        "bytes, 4 bits": lambda linear: integers.ByBytesInt4.of(linear).kernel(),
        "FBGEMM, int8": fbgemm,
        "oneDNN, int8": onednn,
        "bfloat16": lambda linear: BlockedLinear(linear.weight).kernel(),
    }
    if integers.KERNEL is None:
        del found["bytes, 4 bits"]
    return found


def measured(
    way: Callable[[nn.Linear], Product], shape: tuple[int, int], positions: int, threads: int
) -> float:
    """Return the seconds of one product."""
    import torch
    from torch import nn

    clock = time.thread_time if threads == 1 else time.perf_counter
    linear = nn.Linear(shape[1], shape[0], bias=False, dtype=torch.bfloat16)
    copies = max(1, min(40, int(FAR // (linear.weight.numel() * 0.625))))
    took = []
    with torch.inference_mode():
        products = [way(linear) for _ in range(copies)]
        x = torch.randn(positions, shape[1]).bfloat16()
        for _ in range(TURNS + 1):
            started = clock()
            for product in products:
                product(x)
            took.append((clock() - started) / copies)
    return min(took[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--positions", type=int, action="append")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    # after --help, which needs none of it
    import torch

    torch.set_num_threads(options.threads)
    found = ways()
    warnings.simplefilter("ignore")
    for shape in SHAPES:
        for positions in options.positions or [1]:
            times = ", ".join(
                f"{name} {measured(way, shape, positions, options.threads) * 1e6:.1f}"
                for name, way in found.items()
            )
            print(f"{shape[0]} x {shape[1]}, {positions} positions, µs: {times}", flush=True)


if __name__ == "__main__":
    main()
