"""Linears of one input as one product: a position's cost on a CPU is mostly its operations' number.

Linears are joined where they are of one kind and not quantized by bitsandbytes. The joined matrix
takes the place of their own ones, which become (transposed) views or rows of it: nothing is held
twice, and transformers' module stays usable as it is; whoever saves it takes `onednn.plain` of it.
All other linears run as the modules that they are.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from dmtd_demo.backbone import cpu_packed, cuda_packed, onednn
from dmtd_demo.backbone.cuda_packed import CudaLinear
from dmtd_demo.backbone.onednn import BlockedLinear
from dmtd_demo.backbone.packed import PackedLinear
from dmtd_demo.backbone.row_blocks import RowBlockLinear

# bytes up to which matrices in oneDNN's layout are joined: the call costs as much as it reads. Each
# of them alone would compute all
JOINED = 2**22


class Linear(Protocol):
    """A linear of any kind: dense, packed, laid out by oneDNN, or of bitsandbytes.

    Takes x [..., in] to [..., out]; how the weight is held is the kind's own affair.
    """

    in_features: int
    out_features: int

    @property
    def weight(self) -> Tensor: ...

    @property
    def bias(self) -> Tensor | None: ...

    def __call__(self, x: Tensor) -> Tensor: ...


class Product(Protocol):
    """One or more linears of the same input, x [q, in], as a layer calls them.

    gated: they are a gate and its up, and the result is silu(gate) up already.
    """

    gated: bool

    def __call__(self, x: Tensor) -> Tensor:
        """Return the outputs of all of them side by side, [q, out]."""
        ...

    def add_to(self, h: Tensor, x: Tensor) -> Tensor:
        """Return h [q, out] + the output of the only one."""
        ...


def is_known(linear: Linear) -> bool:
    """Whether a linear is of a kind that is read here, and not wrapped by accelerate's hooks."""
    kind = type(linear)
    return not hasattr(linear, "_hf_hook") and (
        kind is nn.Linear
        or isinstance(linear, (PackedLinear, BlockedLinear))
        or kind.__module__.startswith("bitsandbytes.")
    )


@torch.no_grad()
def picked(linear: Linear, rows: Tensor) -> nn.Module | None:
    """Return a linear of these rows [n] alone, held and rounded as they are; None where it cannot
    be divided, or lies on no CPU.

    n: a multiple of `cpu_packed.ROWS_TOGETHER`.
    """
    if not is_known(linear) or linear.weight.device.type != "cpu":
        return None
    if isinstance(linear, PackedLinear):
        return linear.picked(rows)
    bias = None if linear.bias is None else linear.bias[rows]
    if isinstance(linear, BlockedLinear):
        return type(linear)(linear.dense()[rows], bias)
    if type(linear) is not nn.Linear:
        return None
    part = nn.Linear(linear.in_features, len(rows), bias=False, device="meta")
    part.weight = nn.Parameter(linear.weight[rows], requires_grad=False)
    part.register_parameter("bias", None if bias is None else nn.Parameter(bias, False))
    return part


def together(*linears: Linear, gated: bool = False) -> Product:
    """Return one product for linears of the same input, joined where that is possible.

    gated: they are a gate and its up, which some kinds apply by the way.
    """
    if not all(map(is_known, linears)):
        return Several(*linears)
    dense = [linear for linear in linears if type(linear) is nn.Linear]
    if len(dense) == len(linears):
        return Dense(*dense)
    whole = _joined(linears, gated)
    return Several(*linears) if whole is None else Kernel(whole)


def _joined(linears: tuple[Linear, ...], gated: bool) -> PackedLinear | BlockedLinear | None:
    """Return the one linear that has the weights of all; None where there is none."""
    first = linears[0]
    if len(linears) == 1:
        return first if isinstance(first, (PackedLinear, BlockedLinear)) else None
    if len({type(linear) for linear in linears}) > 1:
        return None
    on_cuda = [linear for linear in linears if isinstance(linear, CudaLinear)]
    if on_cuda:
        return cuda_packed.joined(*on_cuda, gated=gated)
    packed = [linear for linear in linears if isinstance(linear, PackedLinear)]
    if packed:
        return cpu_packed.joined(*packed)
    blocked = [linear for linear in linears if isinstance(linear, BlockedLinear)]
    size = sum(linear.weight.numel() * linear.weight.element_size() for linear in blocked)
    if isinstance(first, RowBlockLinear) or blocked and size <= JOINED:
        return onednn.joined(*blocked)
    return None


class Dense:
    """One matrix for dense linears.

    In float32 on a CPU it lies as [in, out], which one position reads from memory in 1.4 ms where
    [out, in] took 2.4 (docs/performance.md); otherwise as [out, in]. ahead: the matrix is read once
    before it is multiplied by (`reading.py`).
    """

    gated = False
    ahead = False

    def __init__(self, *linears: nn.Linear) -> None:
        weight = linears[0].weight
        turned = weight.dtype == torch.float32 and weight.device.type == "cpu"
        joined = (
            torch.cat([linear.weight.t() for linear in linears], dim=1)
            if turned
            else torch.cat([linear.weight for linear in linears]).t()
        )
        # [in, out] to who multiplies by it
        self.weight = joined
        self.alone = (
            weight.dtype == torch.float32
            or weight.device.type != "cpu"
            or joined.shape[0] <= onednn.LONG_SUM
        )
        self.bias = (
            torch.cat([linear.bias for linear in linears]) if linears[0].bias is not None else None
        )
        start = 0
        # the linears' own parameters become views
        for linear in linears:
            stop = start + linear.out_features
            linear.weight.data = joined[:, start:stop].t()
            if self.bias is not None:
                linear.bias.data = self.bias[start:stop]
            start = stop

    def __call__(self, x: Tensor) -> Tensor:
        return self._product(x) if self.alone else onednn.among_others(self._product, x)

    def _product(self, x: Tensor) -> Tensor:
        if self.ahead:
            self.weight.sum()
        return (
            torch.mm(x, self.weight)
            if self.bias is None
            else torch.addmm(self.bias, x, self.weight)
        )

    def add_to(self, h: Tensor, x: Tensor) -> Tensor:
        if not self.alone:
            return onednn.among_others(self._product, x).add_(h)
        if self.ahead:
            self.weight.sum()
        # as a bias, which cuBLAS adds by the way; a matrix would be copied first
        if h.is_cuda and h.shape[0] == 1:
            h = h[0]
        return torch.addmm(h, x, self.weight)


class Kernel:
    """A packed or laid-out linear by its kernel alone.

    As a module it would take 3 to 5 µs more, with every call.
    """

    def __init__(self, linear: PackedLinear | BlockedLinear) -> None:
        self.linear, self.weight = linear, linear.weight
        self._kernel = linear.kernel()
        # the product with a residual added by the way
        self._added = linear.added if isinstance(linear, CudaLinear) else None
        self.gated = isinstance(linear, CudaLinear) and linear.gated

    def __call__(self, x: Tensor) -> Tensor:
        return self._kernel(x)

    def add_to(self, h: Tensor, x: Tensor) -> Tensor:
        return self._kernel(x).add_(h) if self._added is None else self._added(x, h)


class Several:
    """Linears of the same input that cannot be joined, one after another."""

    gated = False

    def __init__(self, *linears: Linear) -> None:
        self.linears = linears

    def __call__(self, x: Tensor) -> Tensor:
        return torch.cat([linear(x) for linear in self.linears], dim=-1)

    def add_to(self, h: Tensor, x: Tensor) -> Tensor:
        return h + self.linears[0](x)
