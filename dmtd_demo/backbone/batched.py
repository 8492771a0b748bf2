"""Several texts at once through the fused layers: a static cache of B texts, padded at their ends.

A text's position i lies at index i of its row, whatever the others' lengths: so rotary angles and
results are those of the text alone, up to rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dmtd_demo.backbone import avx512
from dmtd_demo.backbone.fused import FusedLayer

# keys that a step reads come in multiples of this: few shapes, which kernels are built for
WINDOW = 64


class BatchCache:
    """Keys and values of B texts for every layer, [B, 2 x kv heads, room, head size].

    lengths: how many positions each text holds. room: positions of a row; it is doubled where a
    text needs more.
    """

    def __init__(self, layers: int, texts: int, room: int = 2 * WINDOW) -> None:
        self._entries: list[Tensor | None] = [None] * layers
        self._room = -(-room // WINDOW) * WINDOW
        self.lengths = [0] * texts

    def entries(self, layer: int, new: Tensor, needed: int) -> Tensor:
        """Return a layer's keys and values, [B, 2 x kv heads, room, head size], room for `needed`
        positions at least; `new` shows their shape.
        """
        old = self._entries[layer]
        while self._room < needed:
            self._room *= 2
        if old is None or old.shape[2] < self._room:
            heads, size = new.shape[-2:]
            # zeros: what no text wrote yet is masked, and must not be NaN
            entries = new.new_zeros(len(self.lengths), heads, self._room, size)
            if old is not None:
                entries[:, :, : old.shape[2]] = old
            self._entries[layer] = old = entries
        return old

    def begin(self, layer: int, new: Tensor, rows: Tensor) -> None:
        """Write the first positions of texts, new [n, q, 2 x kv heads, head size], to `rows`."""
        self.entries(layer, new, new.shape[1])[rows, :, : new.shape[1]] = new.transpose(1, 2)

    def append(self, layer: int, new: Tensor, at: Tensor, window: int) -> Tensor:
        """Write one position of every text, new [B, 2 x kv heads, head size], to its place `at`.

        Returns all `entries`, with room for `window`.
        """
        entries = self.entries(layer, new, window)
        entries[torch.arange(len(at), device=at.device), :, at] = new
        return entries

    def keep(self, rows: list[int]) -> None:
        """Keep these rows alone, in this order."""
        self._entries = [None if e is None else e[rows] for e in self._entries]
        self.lengths = [self.lengths[row] for row in rows]


def begin(
    layers: list[FusedLayer],
    h: Tensor,
    angles: tuple[Tensor, Tensor],
    cache: BatchCache,
    rows: Tensor,
) -> Tensor:
    """Read n texts from their first position on, h [n, q, hidden], each into its row of the cache.

    angles: cos and sin as FusedLayer reads them, of positions from 0 on. The caller sets
    `cache.lengths`; what stands behind a text's end is overwritten as it goes on.
    """
    n, q, hidden = h.shape
    cos, sin = (table[:q].repeat(n, 1, 1) for table in angles)
    h = h.reshape(n * q, hidden)
    for layer in layers:
        heads = layer.heads(h, cos, sin).view(n, q, -1, layer.head_size)
        queries, new = heads[:, :, : layer.query_heads], heads[:, :, layer.query_heads :]
        cache.begin(layer.index, new, rows)
        keys, values = (
            part.transpose(1, 2).repeat_interleave(layer.group, dim=1)
            for part in new.chunk(2, dim=2)
        )
        seen = F.scaled_dot_product_attention(queries.transpose(1, 2), keys, values, is_causal=True)
        h = layer.rest(h, seen.transpose(1, 2).reshape(n * q, -1))
    return h.view(n, q, hidden)


def step(
    layers: list[FusedLayer], h: Tensor, angles: tuple[Tensor, Tensor], cache: BatchCache
) -> Tensor:
    """Read one further position of every text, h [B, hidden], and count it."""
    at = torch.tensor(cache.lengths, device=h.device)
    window = -(-(max(cache.lengths) + 1) // WINDOW) * WINDOW
    cos, sin = (table[at] for table in angles)
    kernel, counts = _kernel_for(h, layers[0].head_size), at + 1
    if kernel is None:
        mask = torch.zeros((len(at), 1, 1, window), dtype=h.dtype, device=h.device)
        places = torch.arange(window, device=h.device)
        mask.masked_fill_(places > at[:, None, None, None], -torch.inf)
    for layer in layers:
        heads = layer.heads(h, cos, sin)
        new = heads[:, layer.query_heads :]
        if kernel is None:
            entries = cache.append(layer.index, new, at, window)
            keys, values = entries[:, :, :window].chunk(2, dim=1)
            # the query heads of a group stand in line as positions, over the keys that they share
            queries = heads[:, : layer.query_heads]
            queries = queries.unflatten(1, (layer.kv_heads, layer.group))
            seen = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        else:
            entries = cache.entries(layer.index, new, window)
            seen = h.new_empty(len(at), layer.query_heads, layer.head_size)
            # keys and values are written there too
            kernel.attend(
                heads.data_ptr(),
                heads.stride(0),
                entries.data_ptr(),
                entries.shape[2],
                len(at),
                layer.kv_heads,
                layer.group,
                layer.head_size,
                counts.data_ptr(),
                seen.data_ptr(),
                h.dtype == torch.float32,
                torch.get_num_threads(),
            )
        h = layer.rest(h, seen.reshape(len(at), -1))
    cache.lengths = [length + 1 for length in cache.lengths]
    return h


def _kernel_for(h: Tensor, head_size: int) -> Any:
    """Return the optional package that attends for all texts in one call, None where it cannot.

    In bfloat16 and float32 on a CPU; in bfloat16 `scaled_dot_product_attention` under a mask takes
    five times as long.
    """
    known = h.dtype in (torch.bfloat16, torch.float32) and h.device.type == "cpu"
    return avx512.KERNEL if known and avx512.takes_heads(head_size) else None
