"""Linears in 8 or 4 bits by PyTorch's own CPU kernels: `--quantization fast-int8` and `fast-int4`
on a CPU. Weights alone are rounded; the LM head is packed too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

ROWS = 4096  # quantized at once, so that the float32 copy of an LM head is never whole
# of recurrent layers: tiny, and with fewer rows than kernels of 4 bits want
DENSE = ("in_proj_a", "in_proj_b")
IN_ONE = "in_one"  # attribute of packed weights: how many lie in an element
GROUP = 32  # weights of a row that share a scale, in 4 bits
EVEN = 16  # rows: their number has to be a multiple of it, in 4 bits
BLOCK = 64  # rows that the 4-bit layouts keep together, at most
FOUR_BITS = torch.ops.aten._weight_int4pack_mm_for_cpu.default


def eight_bits(rows: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rows, float32, as int8 and a scale for each, rounded to the dtype before they are."""
    scale = (rows.abs().amax(dim=1) / 127).clamp_(min=torch.finfo(dtype).tiny).to(dtype)
    return rows.div(scale[:, None].float()).round_().clamp_(-127, 127).to(torch.int8), scale


def four_bits(rows: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rows, float32, as levels from 0 to 15, uint8, and [rows, groups, 2]: what a level is worth,
    and the eighth, both rounded to the dtype before the weights are."""
    grouped = rows.unflatten(1, (-1, GROUP))
    least, most = grouped.aminmax(dim=-1)
    step = ((most - least) / 15).clamp_(min=torch.finfo(dtype).tiny).to(dtype)
    middle = (least + 8 * step.float()).to(dtype)
    levels = (
        (grouped - middle.float()[..., None])
        .div_(step.float()[..., None])
        .add_(8)
        .round_()
        .clamp_(0, 15)
    )
    return levels.flatten(1).to(torch.uint8), torch.stack((step, middle), dim=-1)


class PackedLinear(nn.Module):
    """x [..., in] to [..., out] as x W^T + bias, W rounded. weight: packed; scale: what else it
    takes to read it, in the dtype of x.

    shared: the weights are another module's parameters too (a tied LM head), so these are counted
    as a buffer.
    """

    weight: Tensor
    scale: Tensor
    bias: nn.Parameter | None

    def __init__(
        self,
        weight: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        out_features: int,
        in_features: int,
        shared: bool = False,
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = out_features, in_features
        if shared:
            self.register_buffer("weight", weight)
        else:
            self.weight = nn.Parameter(weight, requires_grad=False)
        self.register_buffer("scale", scale)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.held: list[Tensor] = []  # `dense` for as long as `dense_kept` lasts; no part of this

    def dense(self) -> Tensor:
        """The weights as they are rounded, [out, in]."""
        raise NotImplementedError

    def product(self) -> Callable[[Tensor], Tensor]:
        """x [rows, in], contiguous, to [rows, out], without the bias."""
        raise NotImplementedError

    def kernel(self) -> Callable[[Tensor], Tensor]:
        """The same with the bias: all that is computed, without what a module's call takes."""
        product, bias = self.product(), self.bias
        return product if bias is None else lambda x: product(x).add_(bias)

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:  # the kernels have no backward
            return F.linear(x, self.held[0] if self.held else self.dense(), self.bias)
        return self.kernel()(x.reshape(-1, self.in_features).contiguous()).view(
            *x.shape[:-1], self.out_features
        )


@contextmanager
def dense_kept(linear: nn.Module) -> Iterator[None]:
    """While gradients go through a packed linear, its dense weights are made once, not each time;
    through any other module nothing changes."""
    if not isinstance(linear, PackedLinear):
        yield
        return
    linear.held = [linear.dense()]
    try:
        yield
    finally:
        linear.held = []


class Int8Linear(PackedLinear):
    """weight int8 [out, in]; scale [out]: symmetric, each row's largest weight at 127."""

    @classmethod
    @torch.no_grad()
    def of(cls, linear: nn.Linear, shared: bool = False) -> Int8Linear:
        """The scale is rounded to the dtype before the weights are."""
        weight = torch.empty(linear.weight.shape, dtype=torch.int8)
        scale = torch.empty(linear.out_features, dtype=linear.weight.dtype)
        for start in range(0, linear.out_features, ROWS):
            weight[start : start + ROWS], scale[start : start + ROWS] = eight_bits(
                linear.weight[start : start + ROWS].float(), scale.dtype
            )
        return cls(weight, scale, linear.bias, linear.out_features, linear.in_features, shared)

    def dense(self) -> Tensor:
        return self.weight.to(self.scale.dtype) * self.scale[:, None]

    def product(self) -> Callable[[Tensor], Tensor]:
        weight, scale = self.weight, self.scale
        return lambda x: torch._weight_int8pack_mm(x, weight, scale)


@dataclass(frozen=True, eq=False)
class Levels:
    """A matrix [rows, columns] as w = (level - 8) step + middle, in groups of GROUP of a row.

    levels: uint8 [rows, columns], 0 to 15; step, middle: float32 [groups, rows].
    """

    levels: Tensor
    step: Tensor
    middle: Tensor


# A parameter's name to the levels that it comes in, which are kept; 8 for what comes in more bits
# than 4 and is held in 8; None for what is rounded as any other.
Held = Callable[[str], "Levels | int | None"]


class Int4Linear(PackedLinear):
    """weight: two weights in a byte, laid out for the kernel. scale [in / GROUP, out, 2]: what a
    step of a group is worth, and its eighth level; its least and largest weight lie at the ends."""

    @classmethod
    @torch.no_grad()
    def of(cls, linear: nn.Linear, shared: bool = False) -> Int4Linear:
        """Scale and middle are rounded to the dtype before the weights are."""
        dtype, groups = linear.weight.dtype, linear.in_features // GROUP
        levels = torch.empty(linear.weight.shape, dtype=torch.uint8)
        scale = torch.empty(groups, linear.out_features, 2, dtype=dtype)
        for start in range(0, linear.out_features, ROWS):
            levels[start : start + ROWS], scales = four_bits(
                linear.weight[start : start + ROWS].float(), dtype
            )
            scale[:, start : start + ROWS] = scales.transpose(0, 1)
        return cls._packed(levels, scale, linear, shared)

    @classmethod
    def of_levels(cls, held: Levels, linear: nn.Linear, shared: bool = False) -> Int4Linear:
        """The levels as they are; step and middle are rounded to the linear's dtype. The linear
        gives its shape and its bias alone."""
        scale = torch.stack((held.step, held.middle), dim=-1).to(linear.weight.dtype)
        return cls._packed(held.levels, scale, linear, shared)

    @classmethod
    def _packed(cls, levels: Tensor, scale: Tensor, linear: nn.Linear, shared: bool) -> Int4Linear:
        return cls(
            torch.ops.aten._convert_weight_to_int4pack_for_cpu(levels.int(), 1),
            scale,
            linear.bias,
            linear.out_features,
            linear.in_features,
            shared,
        )

    def __init__(
        self,
        weight: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        out_features: int,
        in_features: int,
        shared: bool = False,
    ) -> None:
        super().__init__(weight, scale, bias, out_features, in_features, shared)
        setattr(self.weight, IN_ONE, 2)

    def dense(self) -> Tensor:
        return self.product()(torch.eye(self.in_features, dtype=self.scale.dtype)).t()

    def product(self) -> Callable[[Tensor], Tensor]:
        weight, scale = self.weight, self.scale.contiguous()
        return lambda x: FOUR_BITS(x, weight, GROUP, scale)


KINDS: dict[str, type[Int8Linear] | type[Int4Linear]] = {
    "fast-int8": Int8Linear,
    "fast-int4": Int4Linear,
}


@torch.no_grad()
def joined(*linears: PackedLinear) -> PackedLinear | None:
    """One linear for all of them, of which their own tensors become views; None where they cannot
    be. All of one kind."""
    kind, rows = type(linears[0]), 0 if isinstance(linears[0], Int8Linear) else 1
    if kind is Int4Linear and any(linear.out_features % BLOCK for linear in linears[:-1]):
        return None
    biases: list[Tensor] = [linear.bias for linear in linears if linear.bias is not None]
    bias = torch.cat(biases) if biases else None
    whole = kind(
        torch.cat([linear.weight for linear in linears]),
        torch.cat([linear.scale for linear in linears], dim=rows),
        bias,
        sum(linear.out_features for linear in linears),
        linears[0].in_features,
    )
    start = 0
    for linear in linears:
        stop = start + linear.out_features
        linear.weight.data, linear.scale = (
            whole.weight.data[start:stop],
            whole.scale.narrow(rows, start, linear.out_features),
        )
        if bias is not None and linear.bias is not None:
            linear.bias.data = bias[start:stop]
        start = stop
    return whole


def pack(
    module: PreTrainedModel,
    quantization: str,
    held: Held | None = None,
) -> None:
    """Replace every dense linear, one after another, so that the dense matrices go as they are
    packed. A tied LM head gets a packed copy; the table stays for look-ups. Matrices that the 4-bit
    kernel cannot hold are packed in 8. held: asked for each parameter in 4 bits."""
    table = module.get_input_embeddings().weight
    for path, parent in list(module.named_modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and name not in DENSE:
                kind, shared = KINDS[quantization], child.weight is table
                if child.in_features % GROUP or child.out_features % EVEN:
                    kind = Int8Linear
                known = None
                if held and kind is Int4Linear:
                    known = held(f"{path}.{name}.weight".lstrip("."))
                if isinstance(known, Levels):
                    packed: PackedLinear = Int4Linear.of_levels(known, child, shared)
                else:
                    packed = (Int8Linear if known == 8 else kind).of(child, shared)
                setattr(parent, name, packed)
