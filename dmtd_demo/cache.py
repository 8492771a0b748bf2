"""The KV cache: one entry per layer, whose lengths may differ between the layer groups (methods.md section 2)."""
from __future__ import annotations

from torch import Tensor


class KVCache:
    """Keys and values of one text (batch 1), preallocated per layer and grown by doubling.

    Attention modules call `update`; a decoder reads `length` and rewinds with `crop`.
    """

    def __init__(self, layers: int, capacity: int = 256) -> None:
        self._capacity = capacity
        self._keys: list[Tensor | None] = [None] * layers
        self._values: list[Tensor | None] = [None] * layers
        self._lengths = [0] * layers

    def length(self, layer: int) -> int:
        """Positions that this layer holds."""
        return self._lengths[layer]

    def update(self, key: Tensor, value: Tensor, layer: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Append key and value, [1, kv heads, q, head size], and return views of everything this layer holds."""
        start = self._lengths[layer]
        stop = start + key.shape[2]
        keys, values = self._keys[layer], self._values[layer]
        if keys is None or stop > keys.shape[2]:
            keys, values = self._grow(layer, key, value, start, stop)
        keys[:, :, start:stop] = key
        values[:, :, start:stop] = value
        self._lengths[layer] = stop
        return keys[:, :, :stop], values[:, :, :stop]

    def _grow(self, layer: int, key: Tensor, value: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor]:
        capacity = self._capacity
        while capacity < stop:
            capacity *= 2
        grown = []
        for old, new in ((self._keys[layer], key), (self._values[layer], value)):
            buffer = new.new_empty((new.shape[0], new.shape[1], capacity, new.shape[3]))
            if old is not None:
                buffer[:, :, :start] = old[:, :, :start]
            grown.append(buffer)
        self._keys[layer], self._values[layer] = grown
        return grown[0], grown[1]

    def crop(self, length: int, start: int = 0, stop: int | None = None) -> None:
        """Forget every position from `length` on, in the layers [start, stop). Layers that are shorter stay as they are."""
        if length < 0:
            raise ValueError(f"crop needs a length of 0 or more, got {length}")
        for layer in range(start, len(self._lengths) if stop is None else stop):
            self._lengths[layer] = min(self._lengths[layer], length)

    def nbytes(self) -> int:
        """Bytes that the buffers hold."""
        return sum(t.numel() * t.element_size() for t in (*self._keys, *self._values) if t is not None)
