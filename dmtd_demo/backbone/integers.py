"""Linears in 4 bits by products of bytes.

The kernel is the optional package's (`avx512.py`): AVX512-VNNI instructions, which multiply
activations rounded to 8 bits by the levels as they are. Without that package, or where a trial
finds it no faster, PyTorch's kernels of `cpu_packed.py` are what there is.
"""

from __future__ import annotations

import statistics
import struct
import time
from typing import Any, Callable, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dmtd_demo.backbone import avx512
from dmtd_demo.backbone.avx512 import MATRIX
from dmtd_demo.backbone.cpu_packed import ROW_MULTIPLE, Int4Linear, Int8Linear, Kinds
from dmtd_demo.backbone.packed import DENSE, GROUP, Packed, PackedLinear

# weights under which no trial is made: what fits a cache is not read from memory
LARGE = 2**23
# weights of the matrices that are tried
SAMPLE = 2**25
# the share of PyTorch's time that the kernel may take
WORTH = 0.95
# timed turns of either
REPEATS = 5
# None where its products of bytes do not run on this CPU
KERNEL: Any = (
    avx512.KERNEL if avx512.KERNEL is not None and avx512.KERNEL.multiplies_bytes() else None
)


class ByBytes(PackedLinear):
    """What both widths have in common.

    Activations are bfloat16; every GROUP of a position's has a step of its own, a 127th of its
    largest. Weights and scales lie in blocks of ROW_MULTIPLE rows.
    """

    bits: int
    middles = False

    def matrix(self, with_bias: bool = True) -> tuple[bytes, list[Tensor]]:
        """Return the kernel's struct, and the tensors whose addresses are in it."""
        tensors = [self.weight.detach(), self.scale.contiguous()]
        if self.bias is not None and with_bias:
            tensors.append(self.bias.detach().float())
        addresses = [tensor.data_ptr() for tensor in tensors]
        shape = self.out_features, self.in_features, self.bits, self.middles
        return struct.pack(MATRIX, *addresses, *[0] * (3 - len(tensors)), *shape), tensors

    def product(self) -> Callable[[Tensor], Tensor]:
        return self._product(with_bias=False)

    @staticmethod
    def _pick(held: Tensor, rows: Tensor, each: int) -> Tensor:
        """Pick rows of what lies in blocks of them, `each` elements of one after another."""
        blocks = held.reshape(-1, held[0].numel() // each, ROW_MULTIPLE, each)
        picked = blocks.transpose(1, 2).reshape(len(held), -1)[rows]
        blocks = picked.view(-1, ROW_MULTIPLE, blocks.shape[1], each).transpose(1, 2)
        return blocks.reshape(len(rows), *held.shape[1:])

    def kernel(self) -> Callable[[Tensor], Tensor]:
        return self._product(with_bias=True)

    def _product(self, with_bias: bool) -> Callable[[Tensor], Tensor]:
        matrix, held = self.matrix(with_bias)
        outs, multiply, threads = self.out_features, KERNEL.product, torch.get_num_threads

        # held: so that what the struct points to stays
        def product(x: Tensor, held: Sequence[Tensor] = held) -> Tensor:
            # the kernel is given an address alone
            assert x.dtype == torch.bfloat16 and x.is_contiguous()
            y = x.new_empty(len(x), outs)
            multiply(matrix, x.data_ptr(), len(x), y.data_ptr(), threads())
            return y

        return product


class ByBytesInt4(ByBytes, Int4Linear):
    """A linear in 4 bits: weight uint8 [out, in / 2]; scale, bfloat16 [out, groups, 2]."""

    bits = 4
    middles = True

    @classmethod
    def _packed(cls, levels: Tensor, scale: Tensor, linear: nn.Linear, shared: bool) -> Int4Linear:
        even = not scale[..., 1].any()
        kind, scale = (EvenInt4, scale[..., :1]) if even else (ByBytesInt4, scale)
        out, inputs = levels.shape
        # block, row, group, half of it, four of them, one
        low, high = levels.view(-1, ROW_MULTIPLE, inputs // GROUP, 2, GROUP // 8, 4).unbind(3)
        weight = low.bitwise_or(high << 4).permute(0, 2, 3, 1, 4).reshape(out, -1)
        kept, groups = scale.shape[-1], len(scale)
        scale = scale.reshape(groups, -1, ROW_MULTIPLE, kept).transpose(0, 1)
        scale = scale.reshape(out, groups, kept)
        return kind(Packed(weight, scale, linear.bias, out, inputs, shared))

    def picked(self, rows: Tensor) -> Int4Linear:
        weight = self._pick(self.weight, rows, 4)
        scale = self._pick(self.scale, rows, self.scale.shape[-1])
        return type(self)(self._of_rows(weight, scale, rows))

    def dense(self) -> Tensor:
        blocks, groups = self.out_features // ROW_MULTIPLE, self.in_features // GROUP
        held = self.weight.view(blocks, groups, GROUP // 8, ROW_MULTIPLE, 4)
        levels = torch.stack((held & 15, held >> 4), dim=2).permute(0, 4, 1, 2, 3, 5)
        scale = self.scale.view(blocks, groups, ROW_MULTIPLE, -1).transpose(1, 2).float()
        scale = scale.reshape(-1, groups, scale.shape[-1])
        step = scale[..., :1]
        middle = scale[..., 1:] if self.middles else torch.zeros_like(step)
        whole = torch.addcmul(middle, levels.reshape(-1, groups, GROUP).float() - 8, step)
        return whole.flatten(1).to(self.scale.dtype)


class EvenInt4(ByBytesInt4):
    """The same where every middle is 0, as in Q4_0: scale, bfloat16 [out, groups, 1]."""

    middles = False


class ByBytesInt8(ByBytes, Int8Linear):
    """A linear in 8 bits: weight, uint8 [out, in], is 128 more; scale [out]."""

    bits = 8

    @classmethod
    @torch.no_grad()
    def of(cls, linear: nn.Linear, shared: bool = False) -> Int8Linear:
        plain = Int8Linear.of(linear, shared)
        out, inputs = plain.weight.shape
        weight = (plain.weight.view(torch.uint8) ^ 128).view(-1, ROW_MULTIPLE, inputs // 4, 4)
        weight = weight.transpose(1, 2).reshape(out, inputs)
        return cls(Packed(weight, plain.scale, linear.bias, out, inputs, shared))

    def picked(self, rows: Tensor) -> Int8Linear:
        return ByBytesInt8(self._of_rows(self._pick(self.weight, rows, 4), self.scale[rows], rows))

    def dense(self) -> Tensor:
        held = self.weight.view(-1, self.in_features // 4, ROW_MULTIPLE, 4).transpose(1, 2)
        weight = (held ^ 128).view(torch.int8).reshape(self.weight.shape)
        return weight.to(self.scale.dtype) * self.scale[:, None]


ByBytesInt4.eight = ByBytesInt8
KINDS = Kinds(ByBytesInt4, ByBytesInt8)


@torch.inference_mode()
def choose(module: PreTrainedModel) -> tuple[Kinds, str] | None:
    """Try products of 1 and 4 positions, by this kernel and by PyTorch's in turn.

    Returns what is to hold the weights and what was found, for the model's reasons; None where
    there was nothing to choose.
    """
    fit = [
        part
        for name, part in module.named_modules()
        if type(part) is nn.Linear
        and name.rpartition(".")[2] not in DENSE
        and not (part.in_features % GROUP or part.out_features % ROW_MULTIPLE)
        and part.weight.dtype == torch.bfloat16
    ]
    if KERNEL is None or sum(linear.weight.numel() for linear in fit) < LARGE:
        return None
    sample = fit[:1]
    for linear in fit[1:]:
        if sum(part.weight.numel() for part in (*sample, linear)) <= SAMPLE:
            sample.append(linear)
    ours, theirs = _compared(sample)
    megabytes = sum(linear.weight.numel() for linear in sample) / 2e6
    found = (
        f"one position and four through {megabytes:.0f} MB of them take {ours * 1000:.1f} ms by "
        f"products of bytes (dmtd-vnni), and {theirs * 1000:.1f} by PyTorch's own kernel"
    )
    if ours > WORTH * theirs:
        return Kinds(), f"4-bit matrices by PyTorch's kernel: {found}"
    return KINDS, f"4-bit matrices by products of bytes: {found}"


def _compared(linears: Sequence[nn.Linear]) -> tuple[float, float]:
    """Return the median seconds through all linears, by this kernel and by PyTorch's."""
    ways: list[list[Callable[[Tensor], Tensor]]] = [[], []]
    for linear in linears:
        levels = torch.full(linear.weight.shape, 8, dtype=torch.uint8)
        scale = torch.ones(linear.in_features // GROUP, linear.out_features, 2).bfloat16()
        for way, kind in zip(ways, (ByBytesInt4, Int4Linear)):
            way.append(kind._packed(levels, scale, linear, False).kernel())
    inputs = [
        [torch.ones(q, linear.in_features, dtype=torch.bfloat16) for linear in linears]
        for q in (1, 4)
    ]
    times: list[list[float]] = [[], []]
    for _ in range(REPEATS + 1):
        for products, each in zip(ways, times):
            started = time.perf_counter()
            for xs in inputs:
                for x, product in zip(xs, products):
                    product(x)
            each.append(time.perf_counter() - started)
    ours, theirs = (statistics.median(each[1:]) for each in times)
    return ours, theirs
