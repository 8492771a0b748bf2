"""RMSNorm in few operations, as Qwen2 and Qwen3 have it and as Qwen3.5 has it."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


class FusedNorm:
    """RMSNorm over the last dimension: x / rms(x) * w.

    On a CPU it is computed in float32 by the vector norm of x with one more entry for eps: a third
    to half of the time of F.rms_norm, which is many operations there.
    """

    def __init__(self, weight: Tensor, eps: float) -> None:
        size = weight.shape[-1]
        self.weight, self.eps, self.size = weight, eps, (size,)
        self.scaled = weight.float() * math.sqrt(size) if weight.device.type == "cpu" else None
        self.least = torch.tensor(math.sqrt(size * eps), device=weight.device)

    def __call__(self, x: Tensor) -> Tensor:
        if self.scaled is None:
            return F.rms_norm(x, self.size, None, self.eps) * self.weight
        # asked, since a conversion that changes nothing takes half a microsecond: one hundredth of
        # a step of `classroom`
        if x.dtype != torch.float32:
            return self(x.float()).to(x.dtype)
        return torch.mul(x, self.scaled).div_(
            torch.linalg.vector_norm(x, 2, -1, True).hypot_(self.least)
        )


class CentredNorm(FusedNorm):
    """RMSNorm whose weight lies around 0, as Qwen3.5's: x / rms(x) * (1 + w)."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        super().__init__(weight, eps)
        if self.scaled is not None:
            self.scaled = (1 + weight.float()) * math.sqrt(weight.shape[-1])

    def __call__(self, x: Tensor) -> Tensor:
        if self.scaled is not None:
            return super().__call__(x)
        normed = F.rms_norm(x, self.size, None, self.eps)
        return torch.addcmul(normed, normed, self.weight)
