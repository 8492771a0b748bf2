"""Quantized matrix products on a CUDA device, each way that is there beside the others.

    python benchmarks/cuda_linears.py [--model Qwen3-4B] [--positions 1,2,4,5,8,16] [--json]

Times are of CUDA graphs over so many copies of a matrix that none is still in the L2 cache as it is
read again. share: bytes of the weights and scales a second, of what reading an array gives.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Iterator

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

if TYPE_CHECKING:
    from torch import Tensor

    from dmtd_demo.backbone.cuda_packed import CudaLinear, Shape

    Product = Callable[[Tensor], Tensor]

SPREAD = 256 * 2**20  # bytes of all copies of a matrix
# tiles, warps and what is read ahead
SHAPES = (
    (1, 4, 4),
    (1, 4, 2),
    (1, 8, 4),
    (1, 8, 2),
    (1, 16, 2),
    (2, 4, 2),
    (2, 8, 2),
    (4, 4, 1),
)
SECONDS = 0.012  # of GPU time, of each measurement


def shapes() -> list[Shape]:
    """Return the kernels' shapes that are tried."""
    from dmtd_demo.backbone.cuda_packed import Shape

    return [Shape(*each) for each in SHAPES]


def matrices(name: str) -> dict[str, tuple[int, int, bool]]:
    """Rows, columns, and whether it is a gate and its up, of what a step of a model reads."""
    from dmtd_demo.models.catalog import CATALOG

    s = {key: int(value) for key, value in CATALOG[name].shape.items()}
    hidden, inner, head = s["hidden_size"], s["intermediate_size"], s["head_dim"]
    queries, keys = s["num_attention_heads"] * head, s["num_key_value_heads"] * head
    return {
        "qkv": (queries + 2 * keys, hidden, False),
        "o": (hidden, queries, False),
        "gate_up": (2 * inner, hidden, True),
        "down": (hidden, inner, False),
        "head": (s["vocab_size"], hidden, False),
    }


def ours(name: str, rows: int, columns: int, gated: bool) -> CudaLinear:
    """One with random bytes and small scales."""
    import torch

    from dmtd_demo.backbone.cuda_packed import KINDS
    from dmtd_demo.backbone.packed import Packed

    kind = KINDS[name]
    tiles, steps = -(-rows // 16), columns * kind.bits // 256
    weight = torch.randint(0, 256, (tiles, steps, 512), dtype=torch.uint8, device="cuda")
    scale = kind._scale(tiles, steps, torch.device("cuda"))
    return kind(Packed(weight, scale.normal_(std=1e-3), None, rows, columns), gated)


def shaped(linears: list[CudaLinear], shape: Shape) -> list[Product]:
    """Their products, divided so."""
    return [partial(linear.added, shape=shape) for linear in linears]


def by_four_bits(weight: Tensor, scales: Tensor, x: Tensor) -> Tensor:
    import torch

    return torch.ops.aten._weight_int4pack_mm(x, weight, 32, scales)


def by_eight_bits(weight: Tensor, scales: Tensor, x: Tensor) -> Tensor:
    import torch

    return torch.ops.aten._weight_int8pack_mm(x, weight, scales)


def candidates(
    rows: int, columns: int, gated: bool
) -> Iterator[tuple[str, int, Callable[[], list[Product]]]]:
    """A name, the bytes of a matrix, and what makes its products with several."""
    import torch
    from torch.nn import functional as F

    from dmtd_demo.backbone.cuda_packed import KINDS

    def copies(size: int) -> range:
        return range(max(2, min(64, SPREAD // size)))

    for name in KINDS:
        one = ours(name, rows, columns, gated)
        size = one.weight.nbytes + one.scale.nbytes
        made = [ours(name, rows, columns, gated) for _ in copies(size)]
        for shape in shapes():
            way = f"{name} {shape.tiles}x{shape.warps}x{shape.ahead}"
            yield way, size, partial(shaped, made, shape)

    def dense() -> list[Product]:
        weights = [
            torch.randn((rows, columns), dtype=torch.bfloat16, device="cuda")
            for _ in copies(2 * rows * columns)
        ]
        return [partial(F.linear, weight=w) for w in weights]

    yield "bfloat16 cuBLAS", rows * columns * 2, dense

    def tiny(inner: int) -> list[Product]:
        packed = [
            torch.ops.aten._convert_weight_to_int4pack(
                torch.randint(0, 256, (rows, columns // 2), dtype=torch.uint8, device="cuda"), inner
            )
            for _ in copies(rows * columns * 5 // 8)
        ]
        scales = [
            torch.randn((columns // 32, rows, 2), dtype=torch.bfloat16, device="cuda")
            for _ in packed
        ]
        return [partial(by_four_bits, w, s) for w, s in zip(packed, scales)]

    for inner in (2, 4, 8):
        yield (
            f"_weight_int4pack_mm {inner}",
            rows * columns * 5 // 8,
            partial(tiny, inner),
        )

    def eight() -> list[Product]:
        packed = [
            torch.randint(-127, 128, (rows, columns), dtype=torch.int8, device="cuda")
            for _ in copies(rows * columns)
        ]
        scales = torch.randn(rows, dtype=torch.bfloat16, device="cuda")
        return [partial(by_eight_bits, w, scales) for w in packed]

    yield "_weight_int8pack_mm", rows * columns, eight


def seconds(products: list[Product], x: Tensor) -> float:
    """Of one product, by events around a graph of all of them."""
    import torch

    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for product in products[:2]:
            product(x)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for product in products:
            product(x)
    times: list[float] = []
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    graph.replay()
    spent = 0.0
    while spent < SECONDS or len(times) < 3:
        start.record()
        graph.replay()
        stop.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(stop) / 1000 / len(products))
        spent += times[-1] * len(products)
    return sorted(times)[len(times) // 2]


def compile_all(sizes: dict[str, tuple[int, int, bool]]) -> None:
    """The kernels of every shape for few positions, several at once."""
    from dmtd_demo.backbone.cuda_packed import KINDS

    def one(task: tuple[str, Shape, bool]) -> None:
        name, shape, gated = task
        ours(name, 16, 64, gated)._compiled("product", 1, shape)

    kinds = {gated for _, _, gated in sizes.values()}
    with ThreadPoolExecutor(8) as pool:
        list(
            pool.map(
                one,
                [(name, shape, gated) for name in KINDS for shape in shapes() for gated in kinds],
            )
        )


def measure(model: str, positions: list[int], until: float) -> dict[str, Any]:
    """Every candidate at the first number of positions, the best of a kind at the others."""
    import torch

    from dmtd_demo.measure.limits import memory_bandwidth

    sizes, roof = matrices(model), memory_bandwidth(torch.device("cuda"))
    began = time.monotonic()
    compile_all(sizes)
    rows: list[dict[str, Any]] = []
    found = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "model": model,
        "roof": round(roof),
        "compile_seconds": round(time.monotonic() - began, 1),
        "rows": rows,
    }
    for matrix, (out, columns, gated) in sizes.items():
        best: dict[str, tuple[float, str, list[Product], int]] = {}
        for name, size, make in candidates(out, columns, gated):
            if time.monotonic() > until:
                found["cut short"] = True
                return found
            try:
                products = make()
                x = torch.randn((positions[0], columns), dtype=torch.bfloat16, device="cuda")
                took = seconds(products, x)
            except Exception as error:
                rows.append(
                    {"matrix": matrix, "way": name, "failed": " ".join(str(error).split())[:200]}
                )
                continue
            rows.append(
                _row(matrix, name, positions[0], took, size, roof)
                | {"rows": out, "columns": columns}
            )
            family = name.rpartition(" ")[0] if name.startswith(("fast", "_weight_int4")) else name
            if family not in best or took < best[family][0]:
                best[family] = took, name, products, size
        for _, name, products, size in best.values():
            for q in positions[1:]:
                x = torch.randn((q, columns), dtype=torch.bfloat16, device="cuda")
                try:
                    rows.append(_row(matrix, name, q, seconds(products, x), size, roof))
                except Exception as error:
                    rows.append(
                        {
                            "matrix": matrix,
                            "way": name,
                            "positions": q,
                            "failed": " ".join(str(error).split())[:200],
                        }
                    )
        del best
    return found


def _row(matrix: str, name: str, q: int, took: float, size: int, roof: float) -> dict[str, Any]:
    return {
        "matrix": matrix,
        "way": name,
        "positions": q,
        "us": round(took * 1e6, 2),
        "gb_per_s": round(size / took / 1e9, 1),
        "share": round(size / took / roof, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="Qwen3-4B")
    parser.add_argument("--positions", default="1,2,4,5,8,16")
    parser.add_argument(
        "--seconds", type=float, default=120, help="time after which no other is begun"
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    # after --help, which needs none of it
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("benchmarks/cuda_linears.py needs a CUDA device")
    found = measure(
        options.model,
        [int(q) for q in options.positions.split(",")],
        time.monotonic() + options.seconds,
    )
    if options.json:
        print(json.dumps(found))
        return
    print(
        f"{found['device']}, {found['roof'] / 1e12:.2f} TB/s, "
        f"compiled in {found['compile_seconds']} s"
    )
    for row in found["rows"]:
        said = (
            row.get("failed")
            or f"{row['us']:8.2f} us {row['gb_per_s']:7.1f} GB/s {row['share']:6.1%}"
        )
        print(f"{row['matrix']:8} {row['way']:24} {row.get('positions', ''):>3} {said}")


if __name__ == "__main__":
    main()
