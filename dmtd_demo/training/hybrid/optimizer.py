"""Muon and AdamW for `classroom-hybrid`, so that a whole update can be one CUDA graph."""

from __future__ import annotations

from collections import defaultdict
from typing import Sequence

import torch
from torch import Tensor

from dmtd_demo.training.hybrid.checkpoint import Weights
from dmtd_demo.training.muon import orthogonal

ADAM_RATE, MUON_RATE = 3e-3, 2.5e-3
WEIGHT_DECAY = 0.1  # of the matrices
WARM_UP = 150  # updates
DECAY = 0.55  # share of the run, at its end, over which the rates fall to zero


def rate_factor(share: float, step: int, begin: float) -> float:
    """Return what the rates are multiplied by; share: of the run; begin: where in it it began."""
    return max(0.0, min((step + 1) / WARM_UP, (1 - share) / min(DECAY, 1 - begin), 1.0))


class Optimizer:
    """Muon for the matrices inside the layers, AdamW for the rest.

    The weights that the passes read may be bfloat16: Muon's masters are float32, all matrices of a
    shape in one tensor. Rates are tensors, so that an update can be captured in a CUDA graph.
    """

    def __init__(self, weights: Weights, key_width: int) -> None:
        device = next(iter(weights.values())).device
        self.weights = weights
        self.rates = {name: torch.zeros((), device=device) for name in ("adam", "muon")}
        self._groups: dict[tuple[int, int], list[tuple[str, tuple[slice, bool]]]] = defaultdict(
            list
        )
        rest = []
        for name, t in weights.items():
            if not uses_muon(name, t):
                rest.append(t)
                continue
            # queries, keys and values are three matrices
            edges = [0, key_width, 2 * key_width, len(t)] if "in_proj_qkv" in name else [0, len(t)]
            for start, stop in zip(edges, edges[1:]):
                rows, columns = stop - start, t.shape[1]
                self._groups[min(rows, columns), max(rows, columns)].append(
                    (name, (slice(start, stop), rows > columns))
                )
        self.masters = {
            shape: torch.stack([self._part(weights[n].detach(), *at) for n, at in group]).float()
            for shape, group in self._groups.items()
        }
        self.momenta = {shape: torch.zeros_like(master) for shape, master in self.masters.items()}
        self.adam = torch.optim.AdamW(
            rest,
            lr=self.rates["adam"],
            betas=(0.9, 0.95),
            weight_decay=0.0,
            fused=True,
            capturable=device.type == "cuda",
        )

    @staticmethod
    def _part(t: Tensor, cut: slice, turned: bool) -> Tensor:
        return t[cut].mT if turned else t[cut]

    @torch.no_grad()
    def begin_from(self, weights: Weights) -> None:
        """Take the masters' first values from these, which are not rounded."""
        for shape, group in self._groups.items():
            for (name, at), master in zip(group, self.masters[shape]):
                master.copy_(self._part(weights[name], *at))

    @torch.no_grad()
    def step(self) -> None:
        """Apply the gradients that the weights hold."""
        for shape, group in self._groups.items():
            master, momentum = self.masters[shape], self.momenta[shape]
            grads = [(self.weights[name].grad, at) for name, at in group]
            grad = torch.stack([self._part(t, *at) for t, at in grads if t is not None]).float()
            momentum.lerp_(grad, 0.05)
            update = grad.lerp(momentum, 0.95)  # Nesterov's
            # before it is rounded
            update = update / (update.norm(dim=(1, 2), keepdim=True) + 1e-20)
            update = orthogonal(update.bfloat16() if update.is_cuda else update).float()
            master.mul_(1 - self.rates["muon"] * WEIGHT_DECAY)
            master.sub_(update * (self.rates["muon"] * 0.2 * max(shape) ** 0.5))
            read = [self._part(self.weights[name].data, *at) for name, at in group]
            torch._foreach_copy_(read, list(master.unbind()))
        self.adam.step()

    @torch.no_grad()
    def exact(self) -> Weights:
        """Return the weights in float32, from the masters."""
        out = {name: t.detach().float().clone() for name, t in self.weights.items()}
        for shape, group in self._groups.items():
            for (name, at), master in zip(group, self.masters[shape]):
                self._part(out[name], *at).copy_(master)
        return out


def uses_muon(name: str, t: Tensor) -> bool:
    """Return whether a weight is a matrix inside the layers; of the smallest two, it is not."""
    return t.ndim == 2 and not any(part in name for part in ("embed", "in_proj_a", "in_proj_b"))


@torch.no_grad()
def clipped(grads: Sequence[Tensor], most: float = 1.0) -> Tensor:
    """Scale all gradients so that their norm together is at most this; returns what it was."""
    by_dtype = ([g for g in grads if g.dtype == dtype] for dtype in (torch.float32, torch.bfloat16))
    kinds = [kind for kind in by_dtype if kind]
    squares = [torch.stack(torch._foreach_norm(kind)).float().square().sum() for kind in kinds]
    norm = torch.stack(squares).sum().sqrt()
    factor = (most / (norm + 1e-6)).clamp(max=1.0)
    for kind in kinds:
        torch._foreach_mul_(kind, factor.to(kind[0].dtype))
    return norm
