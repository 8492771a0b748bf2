"""The CPU threads that suit a model, measured as it comes."""

from __future__ import annotations

import statistics
import time

import torch

from dmtd_demo.errors import UserError
from dmtd_demo.models.model import Model, use_threads

# PyTorch's own choice for this machine
THREADS = torch.get_num_threads()
# of each thread count, at most, and the time after which fewer are enough
STEPS, STEP_SECONDS = 7, 2.0
# times as slow as the best: tried no more
HOPELESS = 3
# how many times as fast more threads have to be: a core that brings less is better left to the
# browser and to others
WORTH = 1.2


def check(threads: int | None) -> None:
    """Raise UserError for a number of threads that cannot be."""
    if threads is not None and not 1 <= threads <= 1024:
        raise UserError(f"threads needs a whole number from 1 to 1024; got {threads}")


def choose(model: Model, threads: int | None) -> None:
    """Give the model the threads asked for, or on a CPU those with which a decode step is fastest.

    Raises UserError for a number that cannot be.
    """
    check(threads)
    if threads is None and model.device == "cpu" and THREADS > 1:
        steps = step_seconds(
            model, sorted({1, *(2**power for power in range(1, THREADS.bit_length())), THREADS})
        )
        fewest = min(
            count for count, seconds in steps.items() if seconds <= min(steps.values()) * WORTH
        )
        took = ", ".join(f"{count} took {1000 * each:.1f} ms" for count, each in steps.items())
        model.reasons.append(
            f"{fewest} thread{'s' if fewest > 1 else ''}: of a decode step's times, measured as "
            f"the model came: {took}"
        )
        threads = fewest
    model.threads = threads or THREADS
    use_threads(model)


def step_seconds(model: Model, counts: list[int]) -> dict[int, float]:
    """The median time of one position through all layers and the LM head, by number of threads.

    The counts take turns, because others use the machine too.
    """
    backbone = model.backbone
    times: dict[int, list[float]] = {count: [] for count in counts}
    began = time.perf_counter()
    with torch.inference_mode():
        cache = backbone.new_cache()
        for turn in range(STEPS + 1):
            best = min(map(statistics.median, times.values())) if turn > 1 else None
            for count in counts:
                if best and statistics.median(times[count]) > HOPELESS * best:
                    continue
                torch.set_num_threads(count)
                started = time.perf_counter()
                out = backbone.run_layers(backbone.embed([0]), 0, backbone.layers, cache)
                backbone.logits(backbone.final_norm(out))
                # the first turn is for warming up
                if turn:
                    times[count].append(time.perf_counter() - started)
            if turn and time.perf_counter() - began > STEP_SECONDS:
                break
    return {count: statistics.median(each) for count, each in times.items()}
