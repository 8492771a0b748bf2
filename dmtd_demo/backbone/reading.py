"""Reading a matrix ahead of its product: a sum over it reads memory faster than the product does.

One position's product with a float32 matrix takes as long as memory takes to give the matrix, and
MKL's product asks for it in an order that gets half of what a plain run through it gets. Where a
step's weights are more than the last cache holds, a sum over the matrix, thrown away, and then the
product out of the cache take less time together than the product alone; where they lie in the cache
already, more. So a measurement decides (docs/performance.md, "What brought it there").
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dmtd_demo.backbone.linears import Dense

# bytes of all matrices from which on it is measured: fewer lie in a cache anyway
LARGE = 2**24
# the share of a step's time that it may take
WORTH = 0.97
# steps of a turn: what lies in the cache is what the same way left there
STEPS = 2
# seconds after which no other turn begins
SECONDS = 0.25


@torch.inference_mode()
def choose(products: Sequence[Dense], step: Callable[[], Tensor]) -> str | None:
    """Let the products read ahead where a step is faster so; both ways take turns.

    Returns what was found, for a model's reasons; None where there was nothing to measure.
    """
    size = sum(p.weight.numel() * p.weight.element_size() for p in products)
    if size < LARGE or {p.weight.dtype for p in products} != {torch.float32}:
        return None
    began = time.perf_counter()
    times: dict[bool, list[float]] = {False: [], True: []}
    while not times[True] or time.perf_counter() - began < SECONDS:
        for ahead, each in times.items():
            _set(products, ahead)
            for _ in range(STEPS):
                started = time.perf_counter()
                step()
                each.append(time.perf_counter() - started)
    without, so = (statistics.median(times[ahead]) for ahead in (False, True))
    better = so <= WORTH * without
    _set(products, better)
    return (
        f"float32 matrices are {'' if better else 'not '}read ahead of their products: a decode "
        f"step takes {so * 1000:.1f} ms so, and {without * 1000:.1f} without"
    )


def _set(products: Sequence[Dense], ahead: bool) -> None:
    for product in products:
        product.ahead = ahead
