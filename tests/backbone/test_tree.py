"""Passes over the places of a tree, against plain passes over each branch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmtd_demo.backbone import graphs, row_blocks
from dmtd_demo.backbone.fused import FEW
from dmtd_demo.backbone.graphs import StaticCache
from dmtd_demo.backbone.layouts import lay_out
from dmtd_demo.backbone.qwen import Backbone
from dmtd_demo.backbone.tree import Tree
from tiny import ATTENTION, tiny_module

PARENTS = st.lists(st.integers(0, 99), min_size=1, max_size=FEW)
# so that a branch crosses the blocks in which attention reads keys
TRUNKS = (1, 3, 13, 16, 30, 250)
# the heads of real models, which 16 bits and the kernel attend by
SHAPE = dict(
    vocab_size=96,
    hidden_size=64,
    intermediate_size=96,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=32,
)


def a_tree(trunk: int, choices: list[int]) -> Tree:
    """Each place behind one of those before it, or behind the trunk."""
    return Tree(trunk, [choice % (i + 1) - 1 for i, choice in enumerate(choices)])


def token(i: int) -> int:
    return (7 * i + 1) % 96


def read(backbone, ids, cache, tree=None) -> torch.Tensor:
    h, layers = backbone.embed(ids), backbone.layers
    if tree is not None:
        return backbone.run_tree(h, 0, layers, cache, tree)[0]
    return backbone.run_layers(h, 0, layers, cache)[0]


def one_by_one(backbone: Backbone, trunk: list[int], ids: list[int], tree: Tree) -> torch.Tensor:
    """Each place as the last of a text of its own, read by passes over one position."""
    found = []
    for place in range(len(ids)):
        cache = backbone.new_cache()
        read(backbone, trunk, cache)
        found += [read(backbone, [ids[i]], cache) for i in tree.branch(place)][-1:]
    return torch.cat(found)


def test_branches_and_positions():
    tree = Tree(5, [-1, 0, 0, 2, -1, 3])
    assert [tree.branch(i) for i in range(6)] == [
        [0],
        [0, 1],
        [0, 2],
        [0, 2, 3],
        [4],
        [0, 2, 3, 5],
    ]
    assert tree.positions == [5, 6, 6, 7, 5, 8]
    with pytest.raises(AssertionError):
        Tree(0, [0])


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(ATTENTION), st.booleans(), st.sampled_from(TRUNKS), PARENTS, PARENTS)
def test_a_place_is_the_end_of_its_branch(family, static, trunk, choices, more):
    """In one pass and in two, over buffers that stay too; and what is kept is the text."""
    backbone = Backbone(tiny_module(family, max_position_embeddings=300))
    backbone.static = static
    tree = a_tree(trunk, choices)
    text = [token(i) for i in range(trunk)]
    ids = [token(3 * i + 50) for i in range(len(choices))]
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(graphs, "WINDOW", 8)
        wanted = one_by_one(backbone, text, ids, tree)
        for cut in {0, len(ids) // 2}:
            cache = backbone.new_cache()
            assert isinstance(cache, StaticCache) == static
            read(backbone, text, cache)
            first = Tree(trunk, tree.parents[:cut])
            parts = [read(backbone, ids[:cut], cache, first)] if cut else []
            got = torch.cat([*parts, read(backbone, ids[cut:], cache, tree)])
            torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5 * wanted.abs().max().item())
        branch = tree.branch(more[0] % len(ids))
        cache.take_branch(trunk, branch)
        plain = backbone.new_cache()
        read(backbone, [*text, *(ids[i] for i in branch)], plain)
        assert cache.length(0) == plain.length(3) == trunk + len(branch)
        after = [read(backbone, [11, 12], each) for each in (cache, plain)]
        torch.testing.assert_close(*after, rtol=0, atol=1e-5 * after[0].abs().max().item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("by_package", [False, True])
@pytest.mark.parametrize("trunk", TRUNKS)
def test_rounding_is_that_of_a_pass_by_itself(by_package, dtype, trunk, request):
    """So that verified drafts are `ar`'s own choices (docs/performance.md)."""
    module = tiny_module("qwen3", max_position_embeddings=300, **SHAPE).to(dtype)
    if by_package:
        if dtype not in row_blocks.DTYPES:
            pytest.skip("needs `pip install ./vnni` and a CPU with AVX512")
        request.getfixturevalue("chosen")
        lay_out(module)
    backbone = Backbone(module)
    if not backbone.alike:
        pytest.skip("this CPU's products of a position depend on those beside it")
    assert backbone._whole == by_package
    choices = [0, 1, 1, 2, 3, 0, 5, 2, 8, 9, 10, 11, 4, 7, 1, 15]
    tree, text = a_tree(trunk, choices), [token(i) for i in range(trunk)]
    ids = [token(5 * i + 2) for i in range(len(choices))]
    before = torch.get_num_threads()
    with torch.inference_mode():
        wanted = one_by_one(backbone, text, ids, tree)
        for threads in (1, 2):
            torch.set_num_threads(threads)
            cache = backbone.new_cache()
            read(backbone, text, cache)
            assert torch.equal(read(backbone, ids, cache, tree), wanted)
    torch.set_num_threads(before)


@settings(max_examples=20, deadline=None)
@given(PARENTS, st.integers(0, 99))
def test_a_branch_that_is_kept_lies_where_its_text_would(choices, place):
    backbone = Backbone(tiny_module("qwen2"))
    tree, text = a_tree(9, choices), [token(i) for i in range(9)]
    ids = [token(i) for i in range(len(choices))]
    branch = tree.branch(place % len(ids))
    with torch.inference_mode():
        caches = backbone.new_cache(), backbone.new_cache()
        read(backbone, text, caches[0])
        read(backbone, ids, caches[0], tree)
        caches[0].take_branch(9, branch)
        read(backbone, [*text, *(ids[i] for i in branch)], caches[1])
    n = 9 + len(branch)
    for got, wanted in zip(*(cache._entries for cache in caches)):
        torch.testing.assert_close(got[:, :n], wanted[:, :n], rtol=0, atol=1e-4)
