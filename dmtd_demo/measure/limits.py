"""The bounds of a decoder's speed: the measured cost of each kind of pass, and its bytes.

docs/methods.md, section 6.
"""

from __future__ import annotations

import random
import statistics
import time
from functools import partial
from typing import Any, Callable, Sequence

import torch

from dmtd_demo.backbone.qwen import Backbone
from dmtd_demo.backbone.split import Split
from dmtd_demo.decoders.ar import Autoregressive
from dmtd_demo.decoders.clp import CollocationLength
from dmtd_demo.decoders.dmtd import DirectMultiToken, split_of
from dmtd_demo.decoders.stack import Stack, prefill
from dmtd_demo.models.model import Model
from dmtd_demo.race import trace
from dmtd_demo.sampling import Sampler

# of the array whose reading measures the memory: more than any cache holds
READ_BYTES = 512 * 2**20


class PassCosts:
    """The cost of each kind of pass, all its work included, and the limits that follow.

    The cost depends on the pass before it: late layers are read from memory after a full pass, and
    from the caches after each other. So each kind is timed where it stands in its decoder's own
    cycle, over as many positions as a run has, and once in each round beside it.
    """

    def __init__(self, model: Model, prompt: Sequence[int], new: int) -> None:
        self.model, self.prompt, self.new = model, list(prompt), new
        # of each round, the mean
        self._ms: dict[str, list[float]] = {}

    def measured(self) -> dict[str, float]:
        """Return milliseconds, the median of the rounds."""
        return {name: round(statistics.median(rounds), 4) for name, rounds in self._ms.items()}

    @torch.inference_mode()
    def walk(self, decoder: str, options: Any, spans: dict[str, int]) -> None:
        """Time a round: the passes of `ar`, `dmtd` or `clp` after the prompt.

        No decoder and no race runs. Other decoders have no limit, and nothing is done.
        """
        times: dict[str, list[float]] = {}
        if decoder == Autoregressive.name:
            stack = self._stack(self.model.split)
            for _ in range(self.new):
                self._time(times, "full(1)", stack, partial(self._full, stack, 1))
        elif decoder == DirectMultiToken.name:
            self._walk_cycles(times, options.tau, split_of(options.split, self.model))
        elif decoder == CollocationLength.name:
            stack = self._stack(self.model.split)
            order = [int(s) for s, count in spans.items() for _ in range(count)]
            random.Random(0).shuffle(order)
            for s in order:
                # near the end of the context it begins anew after the prompt
                if stack.room <= s:
                    stack = self._stack(self.model.split)
                if stack.room > s:
                    self._time(
                        times,
                        f"step({s})",
                        stack,
                        partial(self._full, stack, s),
                        s,
                    )
        for name, each in times.items():
            self._ms.setdefault(name, []).append(statistics.mean(each) * 1000)

    def _walk_cycles(self, times: dict[str, list[float]], tau: int, split: Split) -> None:
        """Time the passes of `dmtd`; none where the context has no room for two cycles."""
        stack, first = self._stack(split), True
        if stack.room < 2 * tau:
            return
        for _ in range(max(2, self.new // tau + 1)):
            # near the end of the context it begins anew after the prompt
            if stack.room < tau:
                stack, first = self._stack(split), True
            # the first one after the prompt has nothing to refill, and does not count
            self._time(
                {} if first else times,
                _refill_name(tau, split),
                stack,
                partial(self._full, stack, 1),
            )
            first = False
            for _ in range(tau - 1):
                self._time(times, _late_name(tau, split), stack, partial(self._late, stack))

    def limit(self, decoder: str, options: Any, spans: dict[str, int]) -> float | None:
        """Return the limit as a factor over `ar`; None where no formula is written down.

        `walk` was called before, for `ar` too. None as well where the context had no room to time a
        pass.
        """
        ms = self.measured()
        if decoder == DirectMultiToken.name:
            tau, split = options.tau, split_of(options.split, self.model)
            if _refill_name(tau, split) not in ms:
                return None
            return (
                tau
                * ms["full(1)"]
                / (ms[_refill_name(tau, split)] + (tau - 1) * ms.get(_late_name(tau, split), 0))
            )
        # a step may fill the context alone
        timed = all(f"step({s})" in ms for s in spans)
        if decoder == CollocationLength.name and spans and timed:
            total = sum(spans.values())
            mean = sum(int(s) * n for s, n in spans.items()) / total
            return (
                mean * ms["full(1)"] / sum(n / total * ms[f"step({s})"] for s, n in spans.items())
            )
        return None

    def _stack(self, split: Split | None) -> Stack:
        stack = Stack(self.model.backbone, split)
        for _ in prefill(stack, self.prompt, Sampler(device=self.model.backbone.device)):
            pass
        return stack

    def _full(self, stack: Stack, positions: int) -> torch.Tensor:
        return stack.full(self._ids(stack, positions))[0]

    def _late(self, stack: Stack) -> torch.Tensor:
        return stack.late(self._ids(stack, 1)[0])[0]

    def _ids(self, stack: Stack, count: int) -> list[int]:
        """Return some ids: all of them cost the same."""
        return [self.prompt[(stack.length + i) % len(self.prompt)] for i in range(count)]

    def _time(
        self,
        times: dict[str, list[float]],
        name: str,
        stack: Stack,
        run: Callable[[], torch.Tensor],
        span: int = 0,
    ) -> None:
        """Time one pass, from its ids to the drawn tokens.

        span: of `clp`, the tokens that follow.
        """
        backbone, sampler = self.model.backbone, Sampler(device=self.model.backbone.device)
        started = time.perf_counter()
        states = stack.last_hidden(run())
        if span:
            self.model.addons["clp"](states).float().softmax(-1)[0].tolist()
            states = (
                torch.cat([states, self.model.addons["mtp_heads"](states, span - 1)[0]])
                if span > 1
                else states
            )
        sampler.choose(backbone.logits(states))
        times.setdefault(name, []).append(time.perf_counter() - started)


def _refill_name(tau: int, split: Split) -> str:
    return f"refill({tau}) {split}"


def _late_name(tau: int, split: Split) -> str:
    return f"late(1) {split}, tau {tau}"


def memory_bandwidth(device: torch.device) -> float:
    """Measure bytes a second by reading a large array with as many threads as decoding has.

    The median of five. On a GPU eight times in a row: once is over so soon that the waiting for it
    would count.
    """
    array = torch.ones(READ_BYTES // 4, device=device)
    reads = 8 if device.type == "cuda" else 1
    times = []
    for _ in range(6):
        started = time.perf_counter()
        for _ in range(reads):
            total = array.sum()
        total.item()
        times.append(time.perf_counter() - started)
    return reads * READ_BYTES / statistics.median(times[1:])


def bytes_read(backbone: Backbone, steps: Sequence[trace.Record]) -> int:
    """Count the bytes of the backbone's weights that the passes of steps read.

    Each layer that ran, once for a run, and the LM head once a pass.
    """
    layers, head = backbone.weight_bytes()
    return sum(
        head + sum(sum(layers[start:stop]) for start, stop, _ in p["runs"])
        for step in steps
        for p in step["passes"]
    )
