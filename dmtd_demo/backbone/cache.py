"""The KV cache: one entry per layer, whose lengths may differ between the layer groups (docs/methods.md, section 2)."""

from __future__ import annotations

import torch
from torch import Tensor


class KVCache:
    """Keys and values of one text (batch 1), preallocated per layer and grown by doubling.

    Layers call `append` or `update`; a decoder reads `length` and rewinds with `crop`.
    """

    kernels = None  # of fused.Appending: nothing but `append` writes here

    def __init__(self, layers: int, capacity: int = 256) -> None:
        self._capacity = capacity
        # [2 x kv heads, capacity, head size]: keys, then values
        self._entries: list[Tensor | None] = [None] * layers
        self._lengths = [0] * layers

    def length(self, layer: int) -> int:
        """Positions that this layer holds."""
        return self._lengths[layer]

    def append(self, new: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Append keys and values side by side, [q, 2 x kv heads, head size], and return views of everything this layer holds, each [1, kv heads, positions, head size]."""
        q, heads, size = new.shape
        start = self._lengths[layer]
        stop = start + q
        entries = self._entries[layer]
        if entries is None or stop > entries.shape[1]:
            entries = self._grow(layer, new, stop)
        entries[:, start:stop] = new.transpose(0, 1)
        self._lengths[layer] = stop
        held = entries[:, :stop].view(2, 1, heads // 2, stop, size)
        return held[0], held[1]

    def update(
        self, key: Tensor, value: Tensor, layer: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """The same for transformers' attention modules: key and value [1, kv heads, q, head size]."""
        return self.append(torch.cat((key, value), dim=1)[0].transpose(0, 1), layer)

    def _grow(self, layer: int, new: Tensor, stop: int) -> Tensor:
        capacity = self._capacity
        while capacity < stop:
            capacity *= 2
        old, start = self._entries[layer], self._lengths[layer]
        grown = new.new_empty((new.shape[1], capacity, new.shape[2]))
        if old is not None:
            grown[:, :start] = old[:, :start]
        self._entries[layer] = grown
        return grown

    def crop(self, length: int, start: int = 0, stop: int | None = None) -> None:
        """Forget every position from `length` on, in the layers [start, stop). Layers that are shorter stay as they are."""
        if length < 0:
            raise ValueError(f"crop needs a length of 0 or more, got {length}")
        for layer in range(start, len(self._lengths) if stop is None else stop):
            self._lengths[layer] = min(self._lengths[layer], length)

    def keep(self, length: int | None) -> None:
        """From now on a rewind to `length` or a later position may be asked for; None: no more.
        Recurrent layers log their passes only meanwhile; keys and values need nothing of it."""

    def nbytes(self) -> int:
        """Bytes that the buffers hold."""
        return sum(t.numel() * t.element_size() for t in self._entries if t is not None)
