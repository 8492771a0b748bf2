"""Short passes over a KV cache that stays where it is.

What changes from pass to pass lies in tensors, so that on CUDA each kind of pass is one graph: a
launch in place of some fifteen for every layer, and nothing that the host waits for. The same
passes run without graphs on a CPU, where tests hold them against the others.
"""

from __future__ import annotations

import time
import weakref
from functools import lru_cache
from types import ModuleType
from typing import TYPE_CHECKING, Callable, Sequence

import torch
from torch import Tensor

from dmtd_demo.backbone.cache import KVCache, PlacedEntries
from dmtd_demo.backbone.fused import FusedLayer, can_attend_apart
from dmtd_demo.backbone.tree import Tree

if TYPE_CHECKING:
    from torch.cuda import _POOL_HANDLE

# positions that attention reads, seen or masked; twice as many where a text is longer, and so on
WINDOW = 1024
# runs before a capture: kernels are chosen and libraries get their memory
WARM = 2

# a window to cos and sin of its positions, each [window, 1, head size], as `FusedLayer` reads them
Rope = Callable[[int], tuple[Tensor, Tensor]]


class _Buffers:
    """Keys and values of every layer, and the passes over them.

    They outlive a text, and serve the next.
    """

    def __init__(self, layers: Sequence[FusedLayer]) -> None:
        # [2 x kv heads, capacity, head size]
        self.entries: list[Tensor | None] = [None] * len(layers)
        self.capacity = 0
        # by layers, positions, window, whether the late layers are adapted, and whether the
        # positions are a tree's
        self.passes: dict[tuple[int, int, int, int, bool, bool], _Pass] = {}
        # of the graphs' memory: passes never overlap, and their results are kept apart
        self.pool: _POOL_HANDLE | None = None
        self._layers = layers

    def reserve(self, positions: int, dtype: torch.dtype, device: torch.device) -> None:
        """Make room for so many positions in every layer; what is held stays."""
        if positions <= self.capacity:
            return
        self.capacity = window_of(positions)
        # they know the old places
        self.passes.clear()
        # a pool whose graphs are all gone takes no other
        self.pool = None
        for layer in self._layers:
            old = self.entries[layer.index]
            # what is masked is read too, and has to be finite
            grown = torch.zeros(
                (2 * layer.kv_heads, self.capacity, layer.head_size), dtype=dtype, device=device
            )
            if old is not None:
                grown[:, : old.shape[1]] = old
            self.entries[layer.index] = grown


class StaticCache(KVCache):
    """A KV cache over buffers that stay where they are."""

    def __init__(self, buffers: _Buffers) -> None:
        super().__init__(len(buffers.entries))
        self.buffers = buffers
        self._entries = buffers.entries

    def _grow(self, layer: int, new: Tensor, stop: int) -> Tensor:
        self.buffers.reserve(stop, new.dtype, new.device)
        entries = self.buffers.entries[layer]
        assert entries is not None
        return entries

    def passed(self, start: int, stop: int, length: int) -> None:
        """Note that the layers [start, stop) hold `length` positions now."""
        self._lengths[start:stop] = [length] * (stop - start)


class StaticPasses:
    """The static passes of one model.

    seconds: what preparing them took, which no panel's clock counts. refused: why there are no
    graphs, once one could not be captured.
    """

    def __init__(self, layers: Sequence[FusedLayer], rope: Rope) -> None:
        self.seconds = 0.0
        self.refused: str | None = None
        self._layers, self._rope = layers, rope
        self._free: list[_Buffers] = []

    def new_cache(self) -> StaticCache:
        """Return an empty cache, over buffers that no other one uses."""
        buffers = self._free.pop() if self._free else _Buffers(self._layers)
        cache = StaticCache(buffers)
        weakref.finalize(cache, self._free.append, buffers)
        return cache

    def run(
        self,
        h: Tensor,
        start: int,
        stop: int,
        cache: StaticCache,
        adapted: Sequence[FusedLayer] | None = None,
        tree: Tree | None = None,
    ) -> Tensor | None:
        """Run h [q, hidden] through the layers [start, stop), q up to fused.FEW.

        adapted: all layers, in place of the model's own. tree: whose places the positions are, all
        of them. Returns None where there are no graphs to be had.
        """
        if self.refused is not None:
            return None
        positions, past = h.shape[0], cache.length(start)
        assert tree is None or (len(tree.parents), tree.trunk) == (positions, past)
        buffers, window = cache.buffers, window_of(past + positions)
        buffers.reserve(window, h.dtype, h.device)
        key = (start, stop, positions, window, adapted is not None, tree is not None)
        known = buffers.passes.get(key)
        one = known or _Pass(
            (adapted or self._layers)[start:stop],
            buffers.entries,
            window,
            h,
            self._rope(window),
            tree is not None,
        )
        one.h.copy_(h)
        one.past.fill_(past)
        if tree is not None:
            one.take(tree)
        if known is None:
            if h.device.type == "cuda" and not self._captured(one, buffers):
                return None
            buffers.passes[key] = one
        cache.passed(start, stop, past + positions)
        return one()

    def _captured(self, one: _Pass, buffers: _Buffers) -> bool:
        began = time.perf_counter()
        try:
            buffers.pool = buffers.pool or torch.cuda.graph_pool_handle()
            one.capture(buffers.pool)
        except Exception as error:
            # some kernel waits for the host or does not compile, or the memory is short
            self.refused = " ".join(str(error).split())[:300]
        self.seconds += time.perf_counter() - began
        return self.refused is None


class _Pass:
    """A kind of pass over some buffers, with its inputs: h [q, hidden], and `past`.

    past: how many positions came before. like: a tensor as h is. rope: cos and sin of the window,
    each [window, 1, head size]. of_tree: whether `take` says which place of a tree each is.
    """

    def __init__(
        self,
        layers: Sequence[FusedLayer],
        entries: list[Tensor | None],
        window: int,
        like: Tensor,
        rope: tuple[Tensor, Tensor],
        of_tree: bool,
    ) -> None:
        self._layers, self._entries, self._window = layers, entries, window
        self._cos, self._sin = rope
        positions = len(like)
        # of a tree: what its places see of each other, [q, q], and their positions in the text
        self._branches = like.new_full((positions, positions), -torch.inf) if of_tree else None
        self._positions = torch.zeros(positions, dtype=torch.long, device=like.device)
        self.h = torch.zeros_like(like)
        self.past = torch.zeros((), dtype=torch.long, device=like.device)
        self._steps = torch.arange(positions, device=like.device)
        self._places = torch.arange(window, device=like.device)
        self._unseen = torch.full((), -torch.inf, dtype=like.dtype, device=like.device)
        self._seen = torch.zeros((), dtype=like.dtype, device=like.device)
        # kernels take sizes that are powers of two
        self._kernels = (
            triton_kernels(like.device)[0] if layers[0].head_size.bit_count() == 1 else None
        )
        writer = self._writer()
        self._apart = can_attend_apart(
            like.new_empty((positions, layers[0].query_heads, layers[0].head_size)),
            writer.held(layers[0].index)[0],
            self._mask(writer.at)[:, None, None],
        )
        self._graph: torch.cuda.CUDAGraph | None = None
        self._out: Tensor | None = None

    def __call__(self) -> Tensor:
        if self._graph is None:
            return self._layers_over_buffers()
        self._graph.replay()
        assert self._out is not None
        # the next replay writes there
        return self._out.clone()

    def take(self, tree: Tree) -> None:
        """Note the places of a tree, as many as the pass has positions."""
        assert self._branches is not None
        self._branches.copy_(tree.sees)
        self._positions.copy_(torch.tensor(tree.positions))

    def capture(self, pool: _POOL_HANDLE) -> None:
        """Capture the pass as a CUDA graph. Raises whatever is in the way."""
        device = self.h.device
        aside = torch.cuda.Stream(device)
        aside.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(aside):
            for _ in range(WARM):
                self._layers_over_buffers()
        torch.cuda.current_stream(device).wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            self._out = self._layers_over_buffers()
        torch.cuda.synchronize(device)
        self._graph = graph

    def _layers_over_buffers(self) -> Tensor:
        writer, h = self._writer(), self.h
        positions = writer.at if self._branches is None else self._positions
        cos, sin, mask = self._cos[positions], self._sin[positions], self._mask(writer.at)
        mask = mask[:, None, None] if self._apart else mask.repeat(self._layers[0].group, 1)
        for layer in self._layers:
            h = layer(h, cos, sin, mask, writer)
        return h

    def _mask(self, at: Tensor) -> Tensor:
        """Return what positions at these places, [q], see: [q, window], -inf where they do not."""
        if self._branches is None:
            return torch.where(self._places <= at[:, None], self._seen, self._unseen)
        trunk = torch.where(self._places < self.past, self._seen, self._unseen)
        return trunk.repeat(len(at), 1).index_copy_(1, at, self._branches)

    def _writer(self) -> PlacedEntries:
        return PlacedEntries(self._entries, self.past + self._steps, self._window, self._kernels)


@lru_cache
def triton_kernels(device: torch.device) -> tuple[ModuleType | None, str]:
    """Return `kernels.py`, or None and why it cannot be used.

    It cannot on a CPU, nor where Triton is not there, has no C compiler or does not know the GPU.
    """
    if device.type != "cuda":
        return None, "no CUDA"
    try:
        from dmtd_demo.backbone import kernels

        kernels.try_out(device)
    except Exception as error:
        return None, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return kernels, ""


def window_of(positions: int) -> int:
    """Return how many positions attention reads for a text of this length."""
    window = WINDOW
    while window < positions:
        window *= 2
    return window
