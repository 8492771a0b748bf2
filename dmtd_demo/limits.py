"""What bounds a decoder's speed: the measured cost of each kind of pass (methods.md section 6), and the bytes that a pass must read from memory."""
from __future__ import annotations

import statistics
import time
from typing import Any, Callable, Sequence

import torch

from dmtd_demo import trace
from dmtd_demo.backbone import Backbone
from dmtd_demo.decoders.clp import CollocationLength
from dmtd_demo.decoders.dmtd import DirectMultiToken
from dmtd_demo.decoders.stack import Stack
from dmtd_demo.loading import Model
from dmtd_demo.sampling import Sampler
from dmtd_demo.split import Split

READ_BYTES = 512 * 2**20   # of the array whose reading measures the memory: more than any cache holds


class PassCosts:
    """The cost of each kind of pass at this context, everything included that it must do, and the limits that follow (methods.md section 6)."""

    REPEATS = 25

    def __init__(self, model: Model, prompt: Sequence[int]) -> None:
        self.model, self.prompt = model, prompt
        self._ms: dict[str, float] = {}

    def measured(self) -> dict[str, float]:
        return {name: round(ms, 4) for name, ms in self._ms.items()}

    def limit(self, decoder: str, options: Any, spans: dict[str, int]) -> float | None:
        """As a factor over `ar`; None where no formula is written down."""
        if decoder == DirectMultiToken.name:
            tau = options.tau
            split = Split.parse(options.split, self.model.layers, self.model.split.head_input if self.model.split else "replace")
            return tau * self.full() / (self.refill(tau, split) + (tau - 1) * self.late(split))
        if decoder == CollocationLength.name and spans:
            total = sum(spans.values())
            mean = sum(int(s) * n for s, n in spans.items()) / total
            return mean * self.full() / sum(n / total * self.span(int(s)) for s, n in spans.items())
        return None

    def full(self) -> float:
        return self._time("full(1)", self.model.split, lambda stack, ids: stack.heads(ids[:1])[0])

    def late(self, split: Split) -> float:
        return self._time(f"late(1) {split}", split, lambda stack, ids: stack.late_only(ids[0])[0])

    def refill(self, tau: int, split: Split) -> float:
        def run(stack: Stack, ids: list[int]) -> torch.Tensor:
            return stack.heads(ids[:1])[0]
        return self._time(f"refill({tau}) {split}", split, run, before=lambda stack, ids: [stack.late_only(i) for i in ids[:tau - 1]])

    def span(self, s: int) -> float:
        """t_step(s, k): a pass over s positions with k heads and CLP, s tokens out."""
        heads, predictor = self.model.addons["mtp_heads"], self.model.addons["clp"]

        def extra(h: torch.Tensor) -> torch.Tensor:
            predictor(h).float().softmax(-1)[0].tolist()
            return torch.cat([h, heads(h, s - 1)[0]]) if s > 1 else h
        return self._time(f"step({s})", self.model.split, lambda stack, ids: stack.heads(ids[:s])[0], extra)

    @torch.inference_mode()
    def _time(self, name: str, split: Split | None, run: Callable[[Stack, list[int]], torch.Tensor], extra: Callable[[torch.Tensor], torch.Tensor] = lambda h: h,
              before: Callable[[Stack, list[int]], Any] = lambda stack, ids: None) -> float:
        """Median milliseconds of one pass, from its ids to the drawn token."""
        if name not in self._ms:
            stack, sampler = Stack(self.model.backbone, split), Sampler(device=self.model.backbone.device)
            ids = (list(self.prompt) * 16)[:16]
            stack.heads(self.prompt)
            times = []
            for _ in range(self.REPEATS + 3):
                before(stack, ids)
                started = time.perf_counter()
                sampler.choose(self.model.backbone.logits(extra(stack.last_hidden(run(stack, ids)))))
                times.append(time.perf_counter() - started)
                stack.skipped = []
                stack.cache.crop(len(self.prompt))
            self._ms[name] = statistics.median(times[3:]) * 1000
        return self._ms[name]


def memory_bandwidth(device: torch.device) -> float:
    """Bytes a second, by reading a large array with as many threads as decoding has; the median of five."""
    array = torch.ones(READ_BYTES // 4, device=device)
    times = []
    for _ in range(6):
        started = time.perf_counter()
        array.sum().item()
        times.append(time.perf_counter() - started)
    return READ_BYTES / statistics.median(times[1:])


def bytes_read(backbone: Backbone, step: trace.Record) -> int:
    """Bytes of the backbone's weights that a step's passes read: each layer that ran, once for a run, and the LM head once a pass."""
    layers, head = backbone.weight_bytes()
    return sum(head + sum(sum(layers[start:stop]) for start, stop, _ in p["runs"]) for p in step["passes"])
