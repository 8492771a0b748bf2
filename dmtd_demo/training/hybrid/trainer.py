"""One update of `classroom-hybrid` after another; on CUDA each of them is one CUDA graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import Qwen3_5TextConfig

from dmtd_demo.training.data import IGNORED
from dmtd_demo.training.hybrid.checkpoint import Weights
from dmtd_demo.training.hybrid.data import LENGTH, Packed, room
from dmtd_demo.training.hybrid.model import Hybrid
from dmtd_demo.training.hybrid.optimizer import (
    ADAM_RATE,
    MUON_RATE,
    Optimizer,
    clipped,
    uses_muon,
)

DEPTH = 4  # of the drafts that are trained, and the k of the predictor
FALL = 0.8  # relative weight of depth i: FALL ** (i - 1)
AHEAD = 0.2  # weight of the drafts' loss beside the backbone's own


@dataclass(frozen=True)
class Way:
    """How updates run. graph: captured as one CUDA graph; dtype: of the weights that Muon turns."""

    compiled: bool = False
    graph: bool = False
    dtype: torch.dtype = torch.float32


class Trainer:
    """One update after another on packed batches."""

    def __init__(
        self,
        config: Qwen3_5TextConfig,
        weights: Weights,
        rows: int,
        device: torch.device,
        way: Way = Way(),
    ) -> None:
        self.device, self.dtype = device, way.dtype
        self.weights = {}
        for name, t in weights.items():
            kept = way.dtype if uses_muon(name, t) else torch.float32
            self.weights[name] = t.to(device, kept, copy=True).requires_grad_()
        self.model = Hybrid(config, self.weights, way.compiled)
        self.optimizer = Optimizer(
            self.weights, config.linear_num_key_heads * config.linear_key_head_dim
        )
        self.optimizer.begin_from(weights)

        def integers(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.long, device=device)

        self.inputs = {
            "ids": integers(rows, LENGTH),
            "texts": integers(rows, LENGTH),
            "heads": torch.ones(rows, LENGTH, dtype=torch.bool, device=device),
            "read": integers(room(rows)),
            "targets": integers(room(rows), 1 + DEPTH),
        }
        # own loss, each draft's, accuracy, norm of the gradient
        self.figures = torch.zeros(3 + DEPTH, device=device)
        self._events: list[Any] = []
        self._graph: Any = None
        if way.graph:
            self._capture()

    def loss(self) -> Tensor:
        """Return the loss over the inputs: the next token's, and a share of the drafts'."""
        x = self.inputs
        h, embedded, mask = self.model.hidden(x["ids"], x["texts"], x["heads"], self.dtype)
        made = self.model.drafts(h, embedded, mask, DEPTH)
        at_head = x["heads"].flatten()[x["read"]]
        targets = x["targets"][:, 0]
        logits = self.model.logits(h.flatten(0, 1).index_select(0, x["read"])).float()
        own = F.cross_entropy(logits, targets, ignore_index=IGNORED)
        known = targets != IGNORED
        self.figures[1 + DEPTH].copy_(((logits.argmax(-1) == targets) & known).sum() / known.sum())
        ahead = own.new_zeros(())
        for i, m in enumerate(made, 1):
            wanted = torch.where(at_head, x["targets"][:, i], IGNORED)  # drafts follow full passes
            guesses = self.model.logits(m.flatten(0, 1).index_select(0, x["read"])).float()
            lost = F.cross_entropy(guesses, wanted, ignore_index=IGNORED)
            self.figures[i].copy_(lost.detach())
            ahead = ahead + FALL ** (i - 1) * lost
        self.figures[0].copy_(own.detach())
        return own + AHEAD * ahead

    def _update(self) -> None:
        fused = [SDPBackend.EFFICIENT_ATTENTION] if self.device.type == "cuda" else []
        with sdpa_kernel([*fused, SDPBackend.MATH]):
            self.loss().backward()
        grads = [t.grad for t in self.weights.values() if t.grad is not None]
        self.figures[-1].copy_(clipped(grads))
        self.optimizer.step()

    def _forget_gradients(self) -> None:
        for t in self.weights.values():
            t.grad = None

    def _capture(self) -> None:
        """Capture an update; the rates are zero meanwhile, so the weights stay as they are."""
        self.inputs["targets"][:] = 1
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self._update()
                self._forget_gradients()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._update()
        for state in self.optimizer.adam.state.values():  # what the warm-up left there
            for t in state.values():
                t.zero_()
        for momentum in self.optimizer.momenta.values():
            momentum.zero_()

    def step(self, batch: Packed, factor: float, everywhere: bool) -> None:
        """Update the weights once. factor: of the rates; everywhere: every position is a head."""
        for name, static in self.inputs.items():
            value = torch.from_numpy(getattr(batch, name)).to(static.dtype)
            if self.device.type == "cuda":
                value = value.pin_memory()
            static.copy_(value, non_blocking=True)
        if everywhere:
            self.inputs["heads"].fill_(True)
        self.optimizer.rates["adam"].fill_(ADAM_RATE * factor)
        self.optimizer.rates["muon"].fill_(MUON_RATE * factor)
        if self._graph:
            self._graph.replay()
        else:
            self._update()
            self._forget_gradients()
        # at most one update ahead of the device, so that the clock means something
        if self.device.type == "cuda":
            event = torch.cuda.Event()
            event.record()
            self._events.append(event)
            if len(self._events) > 1:
                self._events.pop(0).synchronize()


def made_trainer(
    config: Qwen3_5TextConfig,
    weights: Weights,
    rows: int,
    device: torch.device,
    compiled: bool,
    log: Callable[..., None],
) -> Trainer:
    """Return a trainer as fast as this machine can: on CUDA in a graph, else without what fails."""
    graph = device.type == "cuda"
    dtype = torch.bfloat16 if graph else torch.float32
    ways = [Way(True, graph, dtype)] if compiled else []
    ways += [Way(graph=True, dtype=dtype)] if graph else []
    for way in ways:
        try:
            return Trainer(config, weights, rows, device, way)
        except Exception as error:  # a missing compiler has many names
            why = f"{type(error).__name__}: {str(error)[:500]}"
            log(stage="slower", compiled=way.compiled, graph=way.graph, error=why)
            if graph:
                torch.cuda.synchronize()
    return Trainer(config, weights, rows, device, Way(dtype=dtype))
