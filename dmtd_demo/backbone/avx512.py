"""Whole decoder layers, and the norm after them, by the optional package (`dmtd_demo/vnni.py`)."""

from __future__ import annotations

import struct
from typing import Any, Protocol, Sequence

import torch
from torch import Tensor

from dmtd_demo.backbone.cache import KVCache
from dmtd_demo.backbone.norms import FusedNorm
from dmtd_demo.backbone.tree import Tree
from dmtd_demo.vnni import KERNEL

# what the head size has to be a multiple of for layers in one call, and for attention
HEAD_MULTIPLE = 32
# and what it may be at most: the kernel's MOST_HEAD
LARGEST_HEAD = 512
# what the size of a norm has to be a multiple of: the kernel's GROUP
NORM_MULTIPLE = 32
# the kernel's structs (vnni/dmtd_vnni.c) Matrix, Norm, what Layer has behind them, Place
MATRIX, NORM, LAYER, PLACE = "PPPqqqq", "Pd", "qqq", "Pq"


def takes_heads(size: int) -> bool:
    """Whether the kernel has attention for heads of this size."""
    return size % HEAD_MULTIPLE == 0 and size <= LARGEST_HEAD


def final_norm(weight: Tensor, eps: float) -> FusedNorm:
    """Return a norm over hidden states, by the kernel where it has one."""
    able = KERNEL is not None and weight.is_cpu and not weight.shape[-1] % NORM_MULTIPLE
    return WholeNorm(weight, eps) if able else FusedNorm(weight, eps)


class WholeNorm(FusedNorm):
    """RMSNorm over the last dimension in one call: on a CPU, of a size that is a multiple of
    NORM_MULTIPLE."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        super().__init__(weight, eps)
        self._norm, self._held = _struct_of(self)

    def __call__(self, x: Tensor) -> Tensor:
        floats = x.dtype == torch.float32
        if not floats and x.dtype != torch.bfloat16:
            return super().__call__(x)
        (size,), x = self.size, x.contiguous()
        y = torch.empty_like(x)
        KERNEL.norm(
            self._norm,
            x.data_ptr(),
            x.numel() // size,
            size,
            floats,
            y.data_ptr(),
            torch.get_num_threads(),
        )
        return y


def _struct_of(norm: FusedNorm | None) -> tuple[bytes, Tensor | None]:
    """Return the kernel's struct of a norm, and the tensor whose address is in it."""
    if norm is None or norm.scaled is None:
        return struct.pack(NORM, 0, 0), None
    weight = norm.scaled.contiguous()
    return struct.pack(NORM, weight.data_ptr(), norm.size[0] * norm.eps), weight


class HasMatrix(Protocol):
    """A linear that the kernel knows."""

    def matrix(self, with_bias: bool = True) -> tuple[bytes, list[Tensor]]:
        """Return the kernel's struct, and the tensors whose addresses are in it."""
        ...


class WholeLayer:
    """A decoder layer, all products of which are the kernel's.

    linears: of queries, keys and values, of attention's output, of gate and up, and the last.
    rotated: query and key heads, of `heads`, which count values too.
    """

    def __init__(
        self,
        linears: Sequence[HasMatrix],
        norms: Sequence[FusedNorm | None],
        heads: int,
        rotated: int,
        head_size: int,
    ) -> None:
        self.shape, self.kv_shape = (heads, head_size), (2 * (heads - rotated), head_size)
        self.held: list[Any] = []
        parts = []
        for linear in linears:
            matrix, held = linear.matrix()
            parts.append(matrix)
            self.held += held
        for norm in norms:
            packed, weight = _struct_of(norm)
            self.held.append(weight)
            parts.append(packed)
        self.layer = b"".join((*parts, struct.pack(LAYER, heads, rotated, head_size)))

    def heads(self, h: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Return queries and keys, rotated, and values of h [q, hidden]: [q, heads, head size]."""
        h, cos, sin = h.contiguous(), cos.contiguous(), sin.contiguous()
        y = h.new_empty(len(h), *self.shape)
        KERNEL.heads(
            self.layer,
            h.data_ptr(),
            len(h),
            cos.data_ptr(),
            sin.data_ptr(),
            y.data_ptr(),
            torch.get_num_threads(),
        )
        return y

    def rest(self, h: Tensor, seen: Tensor) -> Tensor:
        """Run the layer from what its attention saw, [q, heads x head size], to its output."""
        h, seen = h.contiguous(), seen.contiguous()
        y = torch.empty_like(h)
        KERNEL.rest(
            self.layer,
            h.data_ptr(),
            seen.data_ptr(),
            len(h),
            y.data_ptr(),
            torch.get_num_threads(),
        )
        return y


class WholeLayers:
    """Neighbouring layers of one shape, in one call. first: the index of the first of them."""

    def __init__(self, layers: Sequence[WholeLayer], first: int) -> None:
        # what the structs point to stays with the layers
        self._layers, self._first = layers, first
        self._structs = b"".join(layer.layer for layer in layers)
        self._places = struct.Struct(PLACE * len(layers))

    def __call__(
        self, h: Tensor, cos: Tensor, sin: Tensor, cache: KVCache, tree: Tree | None = None
    ) -> Tensor:
        """Run them over few positions h [q, hidden], which the cache takes.

        They all hold equally many. cos, sin: as `FusedLayer` has them. tree: the last places of
        which the positions are, where they do not follow each other.
        """
        h, cos, sin = h.contiguous(), cos.contiguous(), sin.contiguous()
        first = self._first
        past = cache.length(first)
        rooms = cache.rooms(h, self._layers[0].kv_shape, first, first + len(self._layers))
        y = torch.empty_like(h)
        KERNEL.whole(
            self._structs,
            self._places.pack(*rooms),
            h.data_ptr(),
            len(h),
            cos.data_ptr(),
            sin.data_ptr(),
            past,
            y.data_ptr(),
            torch.get_num_threads(),
            *((0, 0) if tree is None else (tree.trunk, tree.held_parents.buffer_info()[0])),
        )
        return y
