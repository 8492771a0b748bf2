"""Linears in 8 or 4 bits by PyTorch's own CPU kernels.

They are what `--quantization fast-int8` and `fast-int4` mean on a CPU. Weights alone are rounded;
the LM head is packed too.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

# rows that are quantized at once, so that the float32 copy of an LM head is never whole
ROWS_AT_ONCE = 4096
# linears of recurrent layers that stay dense: tiny, with fewer rows than kernels of 4 bits want
DENSE = ("in_proj_a", "in_proj_b")
# attribute of packed weights: how many lie in an element
IN_ONE = "in_one"
# weights of a row that share a scale, in 4 bits
GROUP = 32
# what the number of rows has to be a multiple of, in 4 bits
ROW_MULTIPLE = 16
# rows that the 4-bit layouts keep together, at most
ROWS_TOGETHER = 64
# rows from which on 8 bits are multiplied as integers where the CPU can: LM heads, which are read
# for drafts too. 49,152 x 576, one thread, CPU time: 4.4 ms for one position and 10.3 for five by
# `_weight_int8pack_mm`, 1.5 and 2.1 so
HEAD_ROWS = 2**14
# bytes that FBGEMM holds for each row beside its weights: their sum, their scale, their zero
REPEATED_ROW = 12
# positions that the 4-bit kernel multiplies at once: a pass over five costs half as much again
AT_ONCE = 4
FOUR_BITS = torch.ops.aten._weight_int4pack_mm_for_cpu.default


def eight_bits(rows: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Round rows, float32, to int8 by a scale for each.

    The scales are rounded to the dtype before the weights are.
    """
    scale = (rows.abs().amax(dim=1) / 127).clamp_(min=torch.finfo(dtype).tiny).to(dtype)
    return rows.div(scale[:, None].float()).round_().clamp_(-127, 127).to(torch.int8), scale


def four_bits(rows: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Round rows, float32, to levels from 0 to 15, uint8, in groups of GROUP.

    Returns them and, for each group, [rows, groups, 2]: what a level is worth, and the eighth. Both
    are rounded to the dtype before the weights are.
    """
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


@dataclass(frozen=True, eq=False)
class Packed:
    """The tensors of one packed linear, and its shape.

    weight: as its kernel wants it. scale: what else it takes to read the weight. bias: [out] or
    None. shared: the weights are another module's parameters too (a tied LM head).
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None
    out_features: int
    in_features: int
    shared: bool = False


class PackedLinear(nn.Module):
    """A linear x W^T + bias, W rounded: x [..., in] to [..., out].

    A shared weight is counted as a buffer, any other as a parameter. repeated: bytes that hold the
    weight once more from its first product on.
    """

    weight: Tensor
    scale: Tensor
    bias: nn.Parameter | None
    repeated = 0

    def __init__(self, packed: Packed) -> None:
        super().__init__()
        self.out_features, self.in_features = packed.out_features, packed.in_features
        if packed.shared:
            self.register_buffer("weight", packed.weight)
        else:
            self.weight = nn.Parameter(packed.weight, requires_grad=False)
        self.register_buffer("scale", packed.scale)
        bias = packed.bias
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        # `dense` for as long as `dense_kept` lasts; no part of this module
        self.held: list[Tensor] = []

    def dense(self) -> Tensor:
        """Return the weights as they are rounded, [out, in]."""
        raise NotImplementedError

    def picked(self, rows: Tensor) -> PackedLinear | None:
        """Return a linear of these rows [n] alone, rounded as they are here; None where its kernel
        cannot divide them.

        n: a multiple of ROWS_TOGETHER.
        """
        return None

    def _of_rows(self, weight: Tensor, scale: Tensor, rows: Tensor) -> Packed:
        bias = None if self.bias is None else self.bias[rows]
        return Packed(weight, scale, bias, len(rows), self.in_features)

    def product(self) -> Callable[[Tensor], Tensor]:
        """Return the product without the bias: x [rows, in], contiguous, to [rows, out]."""
        raise NotImplementedError

    def kernel(self) -> Callable[[Tensor], Tensor]:
        """Return the product with the bias: all of `forward` but what a module's call takes."""
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
    """Make a packed linear's dense weights once, not each time that gradients go through it.

    With any other module nothing changes.
    """
    if not isinstance(linear, PackedLinear):
        yield
        return
    linear.held = [linear.dense()]
    try:
        yield
    finally:
        linear.held = []


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
        self._count_as_large(packed.out_features >= HEAD_ROWS)

    def _count_as_large(self, large: bool) -> None:
        self.large = large
        # not of another kernel's
        if type(self) is Int8Linear and is_by_integers(large, self.scale):
            self.repeated = self.weight.numel() + REPEATED_ROW * self.out_features

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


@cache
def has_integers() -> bool:
    """Whether this CPU multiplies bytes, and PyTorch's build has the kernels for it.

    Without its own instructions for that FBGEMM's sums of pairs could overflow.
    """
    engines = torch.backends.quantized
    return (
        torch.cpu._is_vnni_supported()
        and engines.engine in ("x86", "fbgemm")
        and engines.engine in engines.supported_engines
    )


def is_by_integers(large: bool, scale: Tensor) -> bool:
    """Whether a matrix in 8 bits, of HEAD_ROWS or rows of such, is multiplied as integers here."""
    return scale.dtype == torch.bfloat16 and large and has_integers()


def by_integers(weight: Tensor, scale: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the product of x [rows, in] by bytes, int8 [out, in], each row of which has a scale.

    x goes in as 127 steps of its row's largest entry, and 127 of half a step again, 16 bits in all:
    twice the rows, which cost next to nothing, and more than bfloat16 has. Sums are integers, so a
    position's result does not depend on what is beside it. By FBGEMM, which ships with PyTorch; it
    holds the weight once more in its own layout.
    """
    with warnings.catch_warnings():
        # of torch.ao, which this is not
        warnings.simplefilter("ignore")
        zeros = torch.zeros(len(weight), dtype=torch.long)
        quantized = torch._make_per_channel_quantized_tensor(weight, scale.double(), zeros, 0)
        held = torch.ops.quantized.linear_prepack(quantized, None)
    multiply = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32.default
    least = torch.finfo(torch.float32).tiny

    def product(x: Tensor) -> Tensor:
        rows = len(x)
        steps = x.float()
        step = torch.linalg.vector_norm(steps, torch.inf, -1, True).div_(127).clamp_(min=least)
        steps = steps / step
        coarse = steps.round()
        fine = steps.sub_(coarse).mul_(254).round_()
        # one step is 1, and a byte is 128 more
        y = multiply(torch.cat((coarse, fine)), 1.0, 128, held)
        return torch.add(y[:rows], y[rows:], alpha=1 / 254).mul_(step).to(x.dtype)

    return product


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
