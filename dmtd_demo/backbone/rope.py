"""Cosines and sines of RoPE for any positions, from tables that grow by doubling."""

from __future__ import annotations

from typing import Callable

import torch
from torch import Tensor

Angles = tuple[Tensor, Tensor]


class Rope:
    """The tables of one model's rotary embedding, for each device and dtype that asks.

    rotary: transformers' own module, (anything of that device and dtype, positions) to cos and sin.
    threefold: it wants positions of time, height and width (Qwen3.5).
    """

    def __init__(self, rotary: Callable[[Tensor, Tensor], Angles], threefold: bool) -> None:
        self._rotary, self._threefold = rotary, threefold
        self._tables: dict[tuple[torch.device, torch.dtype], Angles] = {}
        self._signed: dict[tuple[torch.device, torch.dtype], Angles] = {}

    def signed(self, h: Tensor, start: int, stop: int) -> Angles:
        """Return cos and sin of [start, stop) for `FusedLayer`, each [q, 1, head size]."""
        key = (h.device, h.dtype)
        pair = self._signed.get(key)
        if pair is None or pair[0].shape[0] < stop:
            self.span(h, start, stop)
            with torch.inference_mode(False), torch.no_grad():
                cos, sin = (table[0][:, None] for table in self._tables[key])
                half = sin.shape[-1] // 2
                pair = cos, torch.cat((-sin[..., :half], sin[..., half:]), dim=-1)
            self._signed[key] = pair
        return pair[0][start:stop], pair[1][start:stop]

    def at(self, h: Tensor, positions: Tensor) -> Angles:
        """Return cos and sin of any positions [n], each [1, n, size], as transformers' layers read
        them beside h."""
        cos, sin = self.span(h, 0, int(positions.max()) + 1)
        return cos[:, positions], sin[:, positions]

    def span(self, h: Tensor, start: int, stop: int) -> Angles:
        """Return cos and sin of the positions [start, stop), each [1, q, head size]."""
        key = (h.device, h.dtype)
        table = self._tables.get(key)
        if table is None or table[0].shape[1] < stop:
            size = 256
            while size < stop:
                size *= 2
            with torch.inference_mode(False), torch.no_grad():
                positions = torch.arange(size, device=h.device)[None]
                # one for time, height and width each, which are the same in a text; before
                # transformers 5.24 they had to be given
                if self._threefold:
                    positions = positions.expand(3, 1, -1)
                table = self._rotary(torch.empty(0, device=h.device, dtype=h.dtype), positions)
            self._tables[key] = table
        return table[0][:, start:stop], table[1][:, start:stop]
