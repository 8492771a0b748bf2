"""Linears in 8 or 4 bits by PyTorch's own CPU kernels.

They are what `--quantization fast-int8` and `fast-int4` mean on a CPU. Weights alone are rounded;
the LM head is packed too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dmtd_demo.backbone import fbgemm
from dmtd_demo.backbone.fbgemm import by_integers, is_by_integers
from dmtd_demo.backbone.packed import (
    DENSE,
    GROUP,
    IN_ONE,
    ROWS_AT_ONCE,
    Held,
    Levels,
    Packed,
    PackedLinear,
    eight_bits,
    four_bits,
)

# what the number of rows has to be a multiple of, in 4 bits
ROW_MULTIPLE = 16
# rows that the 4-bit layouts keep together, at most
ROWS_TOGETHER = 64
# positions that the 4-bit kernel multiplies at once: a pass over five costs half as much again
AT_ONCE = 4
FOUR_BITS = torch.ops.aten._weight_int4pack_mm_for_cpu.default


class Int8Linear(PackedLinear):
    """A linear in 8 bits: weight int8 [out, in]; scale [out], each row's largest weight at 127.

    large: it is an LM head, or rows of one.
    """

    _by_integers: Callable[[Tensor], Tensor] | None = None

    @classmethod
    @torch.no_grad()
    def of(cls, linear: nn.Linear, shared: bool = False) -> Int8Linear:
        """Round a dense linear."""
        weight = torch.empty(linear.weight.shape, dtype=torch.int8)
        scale = torch.empty(linear.out_features, dtype=linear.weight.dtype)
        for start in range(0, linear.out_features, ROWS_AT_ONCE):
            weight[start : start + ROWS_AT_ONCE], scale[start : start + ROWS_AT_ONCE] = eight_bits(
                linear.weight[start : start + ROWS_AT_ONCE].float(), scale.dtype
            )
        return cls(
            Packed(weight, scale, linear.bias, linear.out_features, linear.in_features, shared)
        )

    def __init__(self, packed: Packed) -> None:
        super().__init__(packed)
        self._count_as_large(packed.out_features >= fbgemm.HEAD_ROWS)

    def _count_as_large(self, large: bool) -> None:
        self.large = large
        # not of another kernel's
        if type(self) is Int8Linear and is_by_integers(large, self.scale):
            self.repeated = self.weight.numel() + fbgemm.REPEATED_ROW * self.out_features

    def picked(self, rows: Tensor) -> Int8Linear:
        part = type(self)(self._of_rows(self.weight[rows], self.scale[rows], rows))
        part._count_as_large(self.large)
        return part

    @property
    def eight(self) -> type[Int8Linear]:
        """What holds a matrix in 8 bits for the same kernel."""
        return type(self)

    def dense(self) -> Tensor:
        return self.weight.to(self.scale.dtype) * self.scale[:, None]

    def product(self) -> Callable[[Tensor], Tensor]:
        weight, scale = self.weight, self.scale
        if self._by_integers is not None:
            return self._by_integers
        if is_by_integers(self.large, scale):
            self._by_integers = by_integers(weight, scale)
            return self._by_integers
        return lambda x: torch._weight_int8pack_mm(x, weight, scale)


class Int4Linear(PackedLinear):
    """A linear in 4 bits, whose weight has two weights in a byte, laid out for the kernel.

    scale [in / GROUP, out, 2]: what a step of a group is worth, and its eighth level; its least and
    largest weight lie at the ends. eight: what holds a matrix in 8 bits for the same kernel.
    """

    eight: type[Int8Linear] = Int8Linear

    @classmethod
    @torch.no_grad()
    def of(cls, linear: nn.Linear, shared: bool = False) -> Int4Linear:
        """Round a dense linear."""
        dtype, groups = linear.weight.dtype, linear.in_features // GROUP
        levels = torch.empty(linear.weight.shape, dtype=torch.uint8)
        scale = torch.empty(groups, linear.out_features, 2, dtype=dtype)
        for start in range(0, linear.out_features, ROWS_AT_ONCE):
            levels[start : start + ROWS_AT_ONCE], scales = four_bits(
                linear.weight[start : start + ROWS_AT_ONCE].float(), dtype
            )
            scale[:, start : start + ROWS_AT_ONCE] = scales.transpose(0, 1)
        return cls._packed(levels, scale, linear, shared)

    @classmethod
    def of_levels(cls, held: Levels, linear: nn.Linear, shared: bool = False) -> Int4Linear:
        """Keep levels as they are; step and middle are rounded to the linear's dtype.

        The linear gives its shape and its bias alone.
        """
        scale = torch.stack((held.step, held.middle), dim=-1).to(linear.weight.dtype)
        return cls._packed(held.levels, scale, linear, shared)

    @classmethod
    def _packed(cls, levels: Tensor, scale: Tensor, linear: nn.Linear, shared: bool) -> Int4Linear:
        weight = torch.ops.aten._convert_weight_to_int4pack_for_cpu(levels.int(), 1)
        return cls(
            Packed(weight, scale, linear.bias, linear.out_features, linear.in_features, shared)
        )

    def __init__(self, packed: Packed) -> None:
        super().__init__(packed)
        setattr(self.weight, IN_ONE, 2)

    def dense(self) -> Tensor:
        return self.product()(torch.eye(self.in_features, dtype=self.scale.dtype)).t()

    def picked(self, rows: Tensor) -> Int4Linear:
        levels = torch.empty(len(rows), self.in_features, dtype=torch.uint8)
        eye = torch.eye(self.in_features, dtype=self.scale.dtype)
        for start in range(0, self.out_features, ROWS_AT_ONCE):
            weight = self.weight[start : start + ROWS_AT_ONCE]
            # by a step of 1 and a middle of 8 the weights are the levels
            plain = self.scale.new_tensor([1, 8]).expand(len(self.scale), len(weight), 2)
            here = (start <= rows) & (rows < start + ROWS_AT_ONCE)
            found = FOUR_BITS(eye, weight, GROUP, plain.contiguous())
            levels[here] = found[:, rows[here] - start].t().to(torch.uint8)
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(levels.int(), 1)
        return Int4Linear(self._of_rows(packed, self.scale[:, rows], rows))

    def product(self) -> Callable[[Tensor], Tensor]:
        weight, scale = self.weight, self.scale.contiguous()
        return lambda x: FOUR_BITS(x, weight, GROUP, scale)


KINDS: dict[str, type[Int8Linear] | type[Int4Linear]] = {
    "fast-int8": Int8Linear,
    "fast-int4": Int4Linear,
}


@dataclass(frozen=True)
class Kinds:
    """What holds matrices under `fast-int4`: those in 4 bits, and those in 8 that fit the kernel.

    By default PyTorch's kernels; `integers.py` has others.
    """

    four: type[Int4Linear] = Int4Linear
    eight: type[Int8Linear] = Int8Linear


def fits_four_bits(linear: nn.Linear) -> bool:
    """Whether the 4-bit kernels can hold a linear of this shape."""
    return not (linear.in_features % GROUP or linear.out_features % ROW_MULTIPLE)


def in_eight_bits(linear: nn.Linear, other: nn.Module) -> nn.Module:
    """Return a dense linear in 8 bits, for the kernel of another that is packed.

    The linear itself where the other is not packed, or not on a CPU.
    """
    if not isinstance(other, (Int8Linear, Int4Linear)):
        return linear
    return (other.eight if fits_four_bits(linear) else Int8Linear).of(linear)


@torch.no_grad()
def joined(*linears: PackedLinear) -> PackedLinear | None:
    """Return one linear for all, which are of one kind; their own tensors become views of its.

    None where that is not possible.
    """
    kind = type(linears[0])
    # of a scale
    rows = 1 if kind is Int4Linear else 0
    if kind is Int4Linear and any(linear.out_features % ROWS_TOGETHER for linear in linears[:-1]):
        return None
    biases: list[Tensor] = [linear.bias for linear in linears if linear.bias is not None]
    bias = torch.cat(biases) if biases else None
    whole = kind(
        Packed(
            torch.cat([linear.weight for linear in linears]),
            torch.cat([linear.scale for linear in linears], dim=rows),
            bias,
            sum(linear.out_features for linear in linears),
            linears[0].in_features,
        )
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
        # `whole` is none of the model's modules
        linear.repeated = whole.repeated * linear.out_features // whole.out_features
        start = stop
    return whole


def pack(
    module: PreTrainedModel,
    quantization: str,
    held: Held | None = None,
    kinds: Kinds = Kinds(),
) -> None:
    """Replace every dense linear by a packed one.

    One goes after another, so that the dense matrices go as they are packed. A tied LM head gets a
    packed copy; the table stays for look-ups. Matrices that the 4-bit kernel cannot hold are packed
    in 8 bits. held: asked for each parameter in 4 bits. kinds: of `fast-int4`.
    """
    table = module.get_input_embeddings().weight
    for path, parent in list(module.named_modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and name not in DENSE:
                shared = child.weight is table
                fits = fits_four_bits(child)
                known = None
                if held and fits and quantization == "fast-int4":
                    known = held(f"{path}.{name}.weight".lstrip("."))
                if isinstance(known, Levels):
                    packed: PackedLinear = kinds.four.of_levels(known, child, shared)
                elif quantization == "fast-int4" and fits:
                    packed = (kinds.eight if known == 8 else kinds.four).of(child, shared)
                else:
                    packed = Int8Linear.of(child, shared)
                setattr(parent, name, packed)
