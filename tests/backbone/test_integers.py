"""Products of bytes and layers of them against the formula in float64; the trial that chooses."""

from __future__ import annotations

import copy
import struct
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from dmtd_demo.backbone import avx512, integers
from dmtd_demo.backbone.cache import KVCache
from dmtd_demo.backbone.cpu_packed import Int4Linear, Int8Linear, Kinds, joined, pack
from dmtd_demo.backbone.fused import FEW
from dmtd_demo.backbone.integers import KINDS, ByBytesInt4, ByBytesInt8, EvenInt4
from dmtd_demo.backbone.packed import GROUP, Levels, eight_bits, four_bits
from dmtd_demo.backbone.qwen import Backbone
from tiny import tiny_module

needs_kernel = pytest.mark.skipif(
    integers.KERNEL is None, reason="needs `pip install ./vnni` and a CPU with AVX512-VNNI"
)
pytestmark = needs_kernel


def in_steps(x):
    """Round each GROUP of a row to 127 steps of its largest."""
    grouped = x.float().unflatten(-1, (-1, GROUP))
    most = grouped.abs().amax(-1, keepdim=True).clamp(min=1e-30)
    return (
        (grouped * torch.tensor(127.0).div(most))
        .round()
        .double()
        .mul(most.double() / 127)
        .flatten(-2)
    )


def rounded(linear, kind):
    """What a dense linear's weights are rounded to, [out, in], in float64."""
    rows = linear.weight.float()
    if kind is ByBytesInt8:
        levels, scale = eight_bits(rows, torch.bfloat16)
        return levels.double() * scale[:, None].double()
    levels, scale = four_bits(rows, torch.bfloat16)
    step, middle = scale.double().split(1, dim=-1)
    return (middle + step * (levels.double().unflatten(1, (-1, GROUP)) - 8)).flatten(1)


def product(x, linear, kind=ByBytesInt4):
    y = in_steps(x) @ rounded(linear, kind).t()
    return y if linear.bias is None else y + linear.bias.double()


def dense(rows, columns, bias=False):
    return torch.nn.Linear(columns, rows, bias=bias, dtype=torch.bfloat16).requires_grad_(False)


@pytest.mark.parametrize("kind,plain", [(ByBytesInt4, Int4Linear), (ByBytesInt8, Int8Linear)])
@pytest.mark.parametrize("rows,columns", [(16, 32), (192, 576), (80, 4864)])
@pytest.mark.parametrize("bias", [False, True])
def test_a_product_is_that_of_the_inputs_in_steps_and_the_same_weights(
    kind, plain, rows, columns, bias
):
    torch.manual_seed(rows)
    linear = dense(rows, columns, bias)
    packed = kind.of(linear)
    # the weights of PyTorch's kernel, to the bit, in as many bytes
    assert torch.equal(packed.dense(), plain.of(linear).dense())
    assert packed.weight.nbytes == plain.of(linear).weight.nbytes
    # longer than what shares one reading of the matrix
    x = torch.randn(70, columns).bfloat16()
    expected = product(x, linear, kind)
    torch.testing.assert_close(
        packed(x).double(), expected, rtol=2**-8, atol=1e-4 * expected.abs().max().item()
    )
    for threads in (2, 1):
        torch.set_num_threads(threads)
        alone = torch.cat([packed(x[i : i + 1]) for i in range(FEW)])
        for n in range(2, FEW + 1):
            assert torch.equal(packed(x[:n]), alone[:n])


@pytest.mark.parametrize("even", [False, True])
def test_levels_of_a_file_are_kept(even):
    """Levels as they are, steps and middles in bfloat16, as PyTorch's kernel has them; middles that
    are all 0, as in Q4_0, are not held."""
    torch.manual_seed(0)
    held = torch.randint(0, 16, (48, 64), dtype=torch.uint8)
    levels = Levels(held, torch.rand(2, 48) + 0.1, torch.randn(2, 48) * (not even))
    linear, x = dense(48, 64), torch.randn(70, 64).bfloat16()
    ours, theirs = (kind.of_levels(levels, linear) for kind in (ByBytesInt4, Int4Linear))
    assert torch.equal(ours.dense(), theirs.dense())
    assert ours.scale.numel() == 48 * 2 * (1 if even else 2)
    step, middle = (
        each.bfloat16().double().t()[..., None] for each in (levels.step, levels.middle)
    )
    weights = middle + step * (held.double().unflatten(1, (-1, GROUP)) - 8)
    expected = in_steps(x) @ weights.flatten(1).t()
    torch.testing.assert_close(
        ours(x).double(), expected, rtol=2**-8, atol=1e-4 * expected.abs().max().item()
    )
    whole = joined(ours, ByBytesInt4.of_levels(levels, linear))
    assert torch.equal(whole(x), torch.cat([ours(x), ours(x)], dim=-1))


@pytest.mark.parametrize("kind", [ByBytesInt4, ByBytesInt8])
@pytest.mark.parametrize("bias", [False, True])
def test_joined_linears_hold_nothing_twice(kind, bias):
    parts = [kind.of(dense(n, 64, bias)) for n in (64, 16, 32)]
    x = torch.randn(2, 64).bfloat16()
    before = torch.cat([part(x) for part in parts], dim=-1)
    whole = joined(*parts)
    assert torch.equal(whole(x), before)
    assert torch.equal(torch.cat([part(x) for part in parts], dim=-1), before)
    assert torch.equal(torch.cat([part.dense() for part in parts]), whole.dense())
    assert {part.weight.untyped_storage().data_ptr() for part in parts} == {
        whole.weight.untyped_storage().data_ptr()
    }


def is_near(got, expected, tolerance):
    """Near on average: where an input rounds to the step beside, its whole row moves a little."""
    error = (got.double() - expected).abs() / expected.std()
    assert error.mean() < tolerance and error.max() < 0.1


def norm(x, weight, eps):
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight.double()


def layer_by_the_formula(layer, kind, h, cos, sin, entries):
    """A decoder layer over all positions of a text, h [q, hidden], in float64.

    layer: of transformers, before it is packed. Rounded to bfloat16 is what the kernel stores: rotated heads,
    values and both sums with the residual. entries: what the cache holds, [2, heads, q, size].
    """
    attention, mlp, size = layer.self_attn, layer.mlp, layer.self_attn.head_dim
    x = norm(h.double(), layer.input_layernorm.weight, layer.input_layernorm.variance_epsilon)
    q, k, v = (
        product(x, linear, kind).unflatten(-1, (-1, size)).transpose(0, 1)
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    if hasattr(attention, "q_norm"):
        q, k = (
            norm(each, own.weight, own.variance_epsilon)
            for each, own in ((q, attention.q_norm), (k, attention.k_norm))
        )
    q, k = (
        (each * cos + torch.cat((-each[..., size // 2 :], each[..., : size // 2]), -1) * sin)
        .bfloat16()
        .double()
        for each in (q, k)
    )
    is_near(entries, torch.stack((k, v)), 0.003)
    k, v = (each.double().repeat_interleave(len(q) // len(k), 0) for each in entries)
    seen = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(0, 1).flatten(1)
    h = (h.double() + product(seen, attention.o_proj, kind)).bfloat16().double()
    x = norm(
        h, layer.post_attention_layernorm.weight, layer.post_attention_layernorm.variance_epsilon
    )
    inner = F.silu(product(x, mlp.gate_proj, kind)) * product(x, mlp.up_proj, kind)
    return h + product(inner, mlp.down_proj, kind)


@pytest.mark.parametrize(
    "family, kind, heads, kv_heads, head_size",
    [
        ("qwen2", ByBytesInt4, 4, 2, 32),
        ("qwen2", ByBytesInt8, 7, 1, 64),
        ("qwen3", ByBytesInt4, 3, 3, 96),
        ("qwen3", ByBytesInt8, 2, 1, 128),
    ],
)
def test_a_layer_is_the_formula_with_its_inputs_in_steps(family, kind, heads, kv_heads, head_size):
    """In one call for few positions, and in two around attention for many."""
    module = tiny_module(
        family,
        initializer_range=0.1,
        hidden_size=128,
        intermediate_size=192,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_size,
    ).bfloat16()
    plain = copy.deepcopy(module.model.layers[0])
    held = (lambda name: 8) if kind is ByBytesInt8 else None
    pack(module, "fast-int4", held, KINDS)
    backbone = Backbone(module)
    ids = [(7 * i + 1) % 97 for i in range(90)]
    with torch.inference_mode():
        h = backbone.embed(ids)
        many = backbone.new_cache()
        out = backbone.run_layers(h, 0, 1, many)[0]
        assert backbone._fused[0].whole is not None and backbone.alike
        few = backbone.new_cache(capacity=64)
        parts, at = [], 0
        while at < len(ids):
            n = 1 + at % FEW
            parts.append(backbone.run_layers(h[:, at : at + n], 0, 1, few)[0])
            at += n
    cos, sin = backbone.rope.span(h, 0, len(ids))
    # what attention saw is rounded to bfloat16 between two calls
    for got, cache, tolerance in ((torch.cat(parts), few, 0.003), (out, many, 0.02)):
        entries = cache._entries[0][:, : len(ids)].unflatten(0, (2, -1))
        expected = layer_by_the_formula(
            plain, kind, h[0], cos[0].double(), sin[0].double(), entries
        )
        is_near(got, expected, tolerance)


def test_the_trial_chooses_what_was_faster_and_says_both(monkeypatch):
    module = tiny_module("qwen3", hidden_size=64, intermediate_size=128).bfloat16()
    assert integers.choose(module) is None
    monkeypatch.setattr(integers, "LARGE", 1)
    for times, kinds in (((0.002, 0.004), KINDS), ((0.0039, 0.004), Kinds())):
        monkeypatch.setattr(integers, "_compared", lambda linears, times=times: times)
        chosen, found = integers.choose(module)
        assert chosen == kinds
        assert f"{times[0] * 1000:.1f} ms" in found and "4.0 by PyTorch's" in found
    assert integers.choose(module.float()) is None
    monkeypatch.setattr(integers, "KERNEL", None)
    assert integers.choose(module.bfloat16()) is None


def test_the_trial_measures_both():
    ours, theirs = integers._compared([dense(64, 64), dense(32, 64)])
    assert 0 < ours < 1 and 0 < theirs < 1


def test_a_buffer_that_grows_keeps_what_it_holds():
    cache = KVCache(1, capacity=2)
    h = torch.zeros(2, 8)
    cache.rooms(h, (4, 3), 0, 1)
    cache._entries[0][:, :2] = 7
    address, room = cache.rooms(h, (4, 3), 0, 1)
    entries = cache._entries[0]
    assert (
        (address, room) == (entries.data_ptr(), 4)
        and entries.shape == (4, 4, 3)
        and cache.length(0) == 4
        and (entries[:, :2] == 7).all()
    )
    # a buffer that grows by itself is found again
    assert cache.rooms(h[:0], (4, 3), 0, 1) == [address, room]
    cache.append(torch.zeros(5, 4, 3), 0)
    entries = cache._entries[0]
    assert cache.rooms(h, (4, 3), 0, 1) == [entries.data_ptr(), 16] and cache.length(0) == 11


def test_what_there_is_no_room_for_raises():
    """Buffers of more bytes than there are addresses for; and calls with what is no struct."""
    matrix = struct.pack(avx512.MATRIX, 0, 0, 0, 16, 2**61, 4, 1)
    layer = matrix * 4 + struct.pack(avx512.NORM, 0, 0) * 3 + struct.pack(avx512.LAYER, 6, 4, 32)
    calls = (
        (integers.KERNEL.product, matrix, 4),
        (integers.KERNEL.heads, layer, 6),
        (integers.KERNEL.rest, layer, 5),
        (partial(integers.KERNEL.whole, layer), struct.pack(avx512.PLACE, 0, 0), 9),
    )
    for call, given, numbers in calls:
        with pytest.raises(MemoryError):
            call(given, *[64] * numbers)
        for wrong in ((given[1:], *[64] * numbers), (given,), (0, *[64] * numbers)):
            with pytest.raises(TypeError, match="bytes"):
                call(*wrong)
        with pytest.raises(TypeError, match="int"):
            call(given, *[None] * numbers)


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 0.003), (torch.float32, 1e-6)])
@pytest.mark.parametrize("kv_heads, group, size", [(1, 9, 32), (3, 3, 64), (2, 1, 96)])
def test_many_texts_attend_each_over_its_own_keys(kv_heads, group, size, dtype, tolerance):
    lengths, room = [1, 2, 16, 17, 64, 90], 100
    heads = torch.randn(len(lengths), (group + 2) * kv_heads, size).to(dtype)
    entries = torch.randn(len(lengths), 2 * kv_heads, room, size).to(dtype)
    for text, length in zip(entries, lengths):
        # what no text wrote yet is not read; the last place is written before it is
        text[:, length - 1 :] = torch.nan
    seen, counts = (
        torch.empty(len(lengths), group * kv_heads, size).to(dtype),
        torch.tensor(lengths),
    )
    for threads in (2, 1):
        seen.zero_()
        integers.KERNEL.attend(
            heads.data_ptr(),
            heads.stride(0),
            entries.data_ptr(),
            room,
            len(lengths),
            kv_heads,
            group,
            size,
            counts.data_ptr(),
            seen.data_ptr(),
            dtype == torch.float32,
            threads,
        )
        for query, text, length, got in zip(heads, entries, lengths, seen):
            keys, values = (
                part[:, :length].double().repeat_interleave(group, 0) for part in text.chunk(2)
            )
            query, new = query[: group * kv_heads, None].double(), query[group * kv_heads :]
            assert torch.equal(text[:, length - 1], new)
            is_near(got, F.scaled_dot_product_attention(query, keys, values)[:, 0], tolerance)


@pytest.mark.parametrize("even", [False, True])
def test_a_linear_made_anew_or_in_part_has_the_scales_of_its_levels(even):
    """Also where the one that it is made from has middles of 0, and it has others."""
    linear = torch.nn.Linear(64, 32, bias=False).bfloat16().requires_grad_(False)
    levels, scale = four_bits(linear.weight.float(), torch.bfloat16)
    if even:
        scale[..., 1] = 0
    first = ByBytesInt4._packed(levels, scale.transpose(0, 1).contiguous(), linear, False)
    assert type(first) is (EvenInt4 if even else ByBytesInt4)
    anew = type(first).of(linear)
    assert type(anew) is ByBytesInt4
    is_near(anew.dense(), rounded(linear, ByBytesInt4), 0.003)
    rows = torch.arange(16) * 2
    part, x = first.picked(rows), torch.randn(3, 64).bfloat16()
    assert torch.equal(part(x), first(x)[:, rows])


def test_what_is_no_number_stays_none():
    heads, entries = torch.randn(1, 3, 32).bfloat16(), torch.randn(2, 2, 20, 32).bfloat16()
    heads = heads.repeat(2, 1, 1)
    entries[1, 0, 3, 5] = torch.nan
    seen, counts = torch.empty(2, 1, 32).bfloat16(), torch.tensor([18, 18])
    addresses = (heads.data_ptr(), 96, entries.data_ptr(), 20, 2, 1, 1, 32)
    integers.KERNEL.attend(*addresses, counts.data_ptr(), seen.data_ptr(), 0, 1)
    assert seen[0].isfinite().all() and seen[1].isnan().all()
