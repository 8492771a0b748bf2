"""The KV cache: growth, lengths that differ between layers, crop."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmtd_demo.backbone.cache import KVCache


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from(["append", "crop"]), st.integers(1, 9)),
        max_size=40,
    )
)
@settings(max_examples=150, deadline=None)
def test_it_holds_what_a_list_would(operations):
    cache = KVCache(3, capacity=2)
    plain: list[list[float]] = [[], [], []]
    counter = 0.0
    for layer, what, n in operations:
        if what == "append":
            values = [counter + i for i in range(n)]
            counter += n
            plain[layer] += values
            new = torch.tensor(values)[None, None, :, None].expand(1, 2, n, 4)
            keys, vals = cache.update(new, -new, layer)
            assert keys[0, 1, :, 3].tolist() == plain[layer]
            assert vals[0, 0, :, 0].tolist() == [-v for v in plain[layer]]
        else:
            cache.crop(n, layer, layer + 1)
            del plain[layer][n:]
        assert [cache.length(i) for i in range(3)] == [len(p) for p in plain]


def test_it_grows_by_doubling():
    cache = KVCache(1, capacity=4)
    for expected in (4, 4, 4, 4, 8):
        keys, _ = cache.update(torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 2), 0)
        assert cache.nbytes() == 2 * expected * 2 * 4
    assert keys.shape == (1, 1, 5, 2)


def test_a_negative_crop_is_an_error():
    with pytest.raises(ValueError, match="0 or more"):
        KVCache(1).crop(-1)
