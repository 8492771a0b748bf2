"""The passes that decoders are made of: three layer groups over one text.

DMTD paper (arXiv 2510.11958), section 3; docs/methods.md, section 2.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

import torch
from torch import Tensor

from dmtd_demo.backbone.qwen import Backbone
from dmtd_demo.backbone.split import Split
from dmtd_demo.backbone.tree import Tree
from dmtd_demo.decoders.base import Pass, Run, Step, Token
from dmtd_demo.sampling import Sampler

# positions between two chances to stop
PREFILL_CHUNK = 512


class Stack:
    """A text's KV cache and the passes over it.

    Positions that went through a late-layer-only pass wait in `skipped` until the middle layers
    refill them at the next cycle head.
    """

    def __init__(self, backbone: Backbone, split: Split | None) -> None:
        self.backbone = backbone
        self.split = split or Split.default(backbone.layers) if backbone.layers > 1 else None
        self.cache = backbone.new_cache()
        # early outputs c_i, [1, 1, hidden] each
        self.skipped: list[Tensor] = []

    def full(self, ids: Sequence[int], tree: Tree | None = None) -> tuple[Tensor, tuple[Run, ...]]:
        """Run all layers over q ids, every position a cycle head (m = 1).

        The middle layers first refill what they skipped. tree: the places of the ids, where nothing
        was skipped. Returns the late outputs [1, q, hidden] before the final norm, and the runs.
        """
        backbone, split, q = self.backbone, self.split, len(ids)
        n = backbone.layers

        def run(h: Tensor, start: int, stop: int) -> Tensor:
            if tree is not None:
                return backbone.run_tree(h, start, stop, self.cache, tree)
            return backbone.run_layers(h, start, stop, self.cache)

        h = backbone.embed(list(ids))
        # the ordinary Qwen stack
        if split is None or (split.head_input == "replace" and not self.skipped):
            return run(h, 0, n), ((0, n, q),)
        assert tree is None or not self.skipped
        c = run(h, 0, split.early)
        unseen = torch.cat([*self.skipped, c], dim=1) if self.skipped else c
        self.skipped = []
        thought = run(unseen, split.early, split.late_start)[:, -q:]
        u = c + thought if split.head_input == "sum" else thought
        out = run(u, split.late_start, n)
        return out, _merged(
            (0, split.early, q),
            (split.early, split.late_start, unseen.shape[1]),
            (split.late_start, n, q),
        )

    def late(self, token: int) -> tuple[Tensor, tuple[Run, ...]]:
        """Run one position without the middle layers (m = 0).

        By late layers of its own, where the backbone has them for this split. Returns the late
        output [1, 1, hidden] before the final norm, and the runs.
        """
        backbone, split = self.backbone, self.split
        assert split is not None
        c = backbone.run_layers(backbone.embed([token]), 0, split.early, self.cache)
        self.skipped.append(c)
        out = backbone.run_layers(
            c,
            split.late_start,
            split.layers,
            self.cache,
            adapted=backbone.adapted_to == split,
        )
        return out, _merged((0, split.early, 1), (split.late_start, split.layers, 1))

    @property
    def length(self) -> int:
        """Positions read so far: the late layers hold an entry for each."""
        return self.cache.length(self.backbone.layers - 1)

    @property
    def room(self) -> int:
        """Positions that the context has left.

        A draft needs one for itself and one for the token before it.
        """
        return self.backbone.context - self.length

    def rewind(self, length: int) -> None:
        """Forget every position from `length` on, in all three layer groups."""
        self.cache.crop(length)
        if self.skipped:
            assert self.split is not None
            del self.skipped[max(length - self.cache.length(self.split.early), 0) :]

    def last_hidden(self, out: Tensor) -> Tensor:
        """Return the last position's hidden state after the final norm, [1, hidden]."""
        return self.backbone.final_norm(out.select(1, -1))


def prefill(
    stack: Stack,
    prompt_ids: Sequence[int],
    sampler: Sampler,
    read: Callable[[Tensor], None] = lambda out: None,
) -> Generator[Step, None, Token]:
    """Read the prompt, every position a head, in chunks of PREFILL_CHUNK.

    The last step holds the first token, which the generator returns. read: is told of each chunk's
    late outputs before the final norm, [1, q, hidden].
    """
    last = (len(prompt_ids) - 1) // PREFILL_CHUNK * PREFILL_CHUNK
    for start in range(0, last, PREFILL_CHUNK):
        out, runs = stack.full(prompt_ids[start : start + PREFILL_CHUNK])
        read(out)
        yield Step((), (Pass("prefill", runs),))
    out, runs = stack.full(prompt_ids[last:])
    read(out)
    token = Token.of(sampler.choose(stack.backbone.logits(stack.last_hidden(out)))[0], "full")
    yield Step((token,), (Pass("prefill", runs),))
    return token


def _merged(*runs: Run) -> tuple[Run, ...]:
    """Merge neighbouring runs over equally many positions; leave out empty ones."""
    merged: list[Run] = []
    for start, stop, positions in runs:
        if start == stop:
            continue
        if merged and merged[-1][1:] == (start, positions):
            merged[-1] = (merged[-1][0], stop, positions)
        else:
            merged.append((start, stop, positions))
    return tuple(merged)
