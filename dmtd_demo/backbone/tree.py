"""Positions that continue one text along several branches, in one pass.

As in SpecInfer (arXiv 2305.09781) and Medusa (arXiv 2401.10774): each position sees the text and
its own ancestors, and is turned by RoPE as the place on its branch that it stands for.
"""

from __future__ import annotations

import array
from functools import cached_property
from typing import Sequence

import torch
from torch import Tensor


class Tree:
    """A tree behind a trunk, the positions that a KV cache held before it.

    trunk: how many they are. parents: for each place of the tree, in the order in which the cache
    takes them, the place before it on its branch, or -1 behind the trunk; a parent comes first.
    """

    def __init__(self, trunk: int, parents: Sequence[int]) -> None:
        assert all(-1 <= parent < i for i, parent in enumerate(parents))
        self.trunk, self.parents = trunk, list(parents)

    def branch(self, place: int) -> list[int]:
        """Return the places from behind the trunk to this one, in the order of the text."""
        found = []
        while place >= 0:
            found.append(place)
            place = self.parents[place]
        return found[::-1]

    @cached_property
    def positions(self) -> list[int]:
        """The position in the text that each place stands for, from 0."""
        found: list[int] = []
        for parent in self.parents:
            found.append(self.trunk if parent < 0 else found[parent] + 1)
        return found

    @cached_property
    def sees(self) -> Tensor:
        """What each place sees of the tree, float32 on the CPU, [places, places]: 0 where it does,
        -inf where it does not."""
        found = torch.full((len(self.parents), len(self.parents)), -torch.inf)
        for place, row in enumerate(found):
            row[self.branch(place)] = 0
        return found

    @cached_property
    def held_parents(self) -> array.array[int]:
        """The parents as 64-bit numbers that lie in a row, for the kernel."""
        return array.array("q", self.parents)
