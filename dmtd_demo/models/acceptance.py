"""Whether a draft would be kept, said before it is made *(ours)*.

An MTP head that reads its drafts costs its matrices and the LM head's rows for every draft, and
most of the first ones are thrown away where drafts are kept by their probability alone. A small
network on what is there already knows most of those beforehand. SpecDec++ (Huang et al., arXiv
2405.19715) predicts in this way whether to draft on.
"""

from __future__ import annotations

from bisect import bisect_right

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# thresholds for which it was asked
LEVELS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98)


class AcceptancePredictor(nn.Module):
    """For each of LEVELS, how likely it is that the probability of the head's first draft reaches
    it: the sigmoid of Linear(2 hidden, 32) - ReLU - Linear(32, levels). k: not read."""

    WIDTH = 32

    def __init__(self, hidden_size: int, k: int = 1) -> None:
        super().__init__()
        self.k = k
        self.inner = nn.Linear(2 * hidden_size, self.WIDTH)
        self.outer = nn.Linear(self.WIDTH, len(LEVELS))
        self._real: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [..., levels] of a state after the final norm beside the embedding of the
        token that was chosen from it, [..., 2 hidden]."""
        logits: Tensor = self.outer(F.relu(self.inner(x)))
        return logits

    def chance(self, state: Tensor, embedded: Tensor, threshold: float) -> float:
        """Return how likely it is that the first draft after them, [hidden] each, is as probable
        as a level: the largest of LEVELS up to the threshold. 1 where the threshold is under all.

        The weights must not change after the first call, which copies them.
        """
        level = bisect_right(LEVELS, threshold) - 1
        if level < 0:
            return 1.0
        if not self._real:
            # one product of float32 takes a third of the time of one of bfloat16 on a CPU
            self._real = [p.float() for p in self.parameters()]
        inner, bias, outer, last = self._real
        seen = torch.addmv(bias, inner, torch.cat((state, embedded)).float()).relu_()
        return torch.sigmoid(torch.dot(outer[level], seen) + last[level]).item()
