"""The KV cache: one entry per layer, with a length of its own (docs/methods.md, section 2)."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor


class KVCache:
    """Keys and values of one text (batch 1), preallocated per layer and grown by doubling.

    Layers call `append` or `update`; a decoder reads `length` and rewinds with `crop`.
    """

    def __init__(self, layers: int, capacity: int = 256) -> None:
        self._capacity = capacity
        # [2 x kv heads, capacity, head size]: keys, then values
        self._entries: list[Tensor | None] = [None] * layers
        self._lengths = [0] * layers
        # by start and stop what `rooms` returns while the buffers stay, and for how many positions
        self._rooms: dict[tuple[int, int], tuple[list[int], int]] = {}

    def length(self, layer: int) -> int:
        """Return how many positions this layer holds."""
        return self._lengths[layer]

    def append(self, new: Tensor, layer: int, window: int = 0) -> tuple[Tensor, Tensor]:
        """Append keys and values, and return views of all that this layer holds.

        new: keys and values side by side, [q, 2 x kv heads, head size]; the views are
        [1, kv heads, positions, head size] each. window: how many positions they show at least;
        what none were appended for is finite, and to be masked.
        """
        q, heads, size = new.shape
        start = self._lengths[layer]
        stop = start + q
        shown = max(stop, window)
        entries = self._entries[layer]
        if entries is None or shown > entries.shape[1]:
            entries = self._grow(layer, new, shown)
        entries[:, start:stop] = new.transpose(0, 1)
        self._lengths[layer] = stop
        held = entries[:, :shown].view(2, 1, heads // 2, shown, size)
        return held[0], held[1]

    def rooms(self, h: Tensor, shape: tuple[int, int], start: int, stop: int) -> list[int]:
        """Count the positions of h [q, hidden] in the layers [start, stop), which hold equally
        many, and return each layer's address and capacity for whoever writes them.

        shape: 2 x kv heads, head size. At an address is [2 x kv heads, capacity, head size].
        """
        length = self._lengths[start] + h.shape[0]
        rooms, capacity = self._rooms.get((start, stop), ([], 0))
        if length > capacity:
            held: list[Tensor] = []
            for layer in range(start, stop):
                entries = self._entries[layer]
                if entries is None or length > entries.shape[1]:
                    entries = self._grow(layer, h.new_empty((0, *shape)), length)
                held.append(entries)
            rooms = [each for t in held for each in (t.data_ptr(), t.shape[1])]
            self._rooms[start, stop] = rooms, min(t.shape[1] for t in held)
        self._lengths[start:stop] = [length] * (stop - start)
        return rooms

    def update(
        self, key: Tensor, value: Tensor, layer: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Append for transformers' attention modules: key, value [1, kv heads, q, head size]."""
        return self.append(torch.cat((key, value), dim=1)[0].transpose(0, 1), layer)

    def _grow(self, layer: int, new: Tensor, stop: int) -> Tensor:
        capacity = self._capacity
        while capacity < stop:
            capacity *= 2
        old, start = self._entries[layer], self._lengths[layer]
        grown = new.new_zeros((new.shape[1], capacity, new.shape[2]))
        if old is not None:
            grown[:, :start] = old[:, :start]
        self._entries[layer] = grown
        self._rooms.clear()
        return grown

    def crop(self, length: int, start: int = 0, stop: int | None = None) -> None:
        """Forget every position from `length` on, in the layers [start, stop).

        Layers that are shorter stay as they are. Raises ValueError for a negative length.
        """
        if length < 0:
            raise ValueError(f"crop needs a length of 0 or more, got {length}")
        for layer in range(start, len(self._lengths) if stop is None else stop):
            self._lengths[layer] = min(self._lengths[layer], length)

    def take_branch(self, trunk: int, places: list[int]) -> None:
        """Of what all layers hold behind the trunk keep these places alone, in this order.

        The places of a tree's branch (`Tree.branch`).
        """
        if places != list(range(len(places))):
            index: Tensor | None = None
            for entries in self._entries:
                assert entries is not None
                if index is None:
                    index = torch.tensor(places, device=entries.device) + trunk
                entries[:, trunk : trunk + len(places)] = entries[:, index]
        self.crop(trunk + len(places))

    def keep(self, length: int | None) -> None:
        """Make a rewind to `length` or a later position possible from now on; None: no more.

        Recurrent layers log their passes only meanwhile; keys and values need nothing of it.
        """

    def nbytes(self) -> int:
        """Return the bytes that the buffers hold."""
        return sum(t.numel() * t.element_size() for t in self._entries if t is not None)


class PlacedEntries:
    """Entries that stay where they are, as layers see them within one static pass (`graphs.py`).

    at: the places of the new positions, [q]. window: how many positions attention reads, seen or
    masked. kernels: `kernels.py`, which writes keys and values to their places by itself; None:
    layers do it by `append`.
    """

    def __init__(
        self, entries: list[Tensor | None], at: Tensor, window: int, kernels: ModuleType | None
    ) -> None:
        self._entries, self.at, self._window, self.kernels = entries, at, window, kernels

    def append(self, new: Tensor, layer: int, window: int = 0) -> tuple[Tensor, Tensor]:
        """Write as `KVCache.append` does, and return views of the whole window."""
        self.entries(layer).index_copy_(1, self.at, new.transpose(0, 1))
        return self.held(layer)

    def entries(self, layer: int) -> Tensor:
        """Return the buffer of a layer, [2 x kv heads, capacity, head size]."""
        entries = self._entries[layer]
        assert entries is not None
        return entries

    def held(self, layer: int) -> tuple[Tensor, Tensor]:
        """Return keys and values of the window, [1, kv heads, window, head size] each."""
        entries = self.entries(layer)
        held = entries[:, : self._window].view(
            2, 1, entries.shape[0] // 2, self._window, entries.shape[2]
        )
        return held[0], held[1]
