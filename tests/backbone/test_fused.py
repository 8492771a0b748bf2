"""Fused layers are transformers' own layers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmtd_demo.backbone import fused
from dmtd_demo.backbone.cpu_packed import pack
from dmtd_demo.backbone.qwen import Backbone
from tiny import sums_alike, tiny_module


def both(module, ids: list[list[int]], start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The last hidden states of the chunks run one after another, plain and fused."""
    outputs = []
    for fuse in (False, True):
        backbone = Backbone(module)
        if not fuse:
            backbone.__dict__["_fused"] = []
        assert bool(backbone._fused) == fuse
        cache = backbone.new_cache(capacity=4)
        with torch.inference_mode():
            outputs.append(
                [backbone.run_layers(backbone.embed(chunk), start, stop, cache) for chunk in ids][
                    -1
                ]
            )
    return outputs[0], outputs[1]


@settings(max_examples=150, deadline=None)
@given(
    st.booleans(),
    st.lists(st.integers(1, 40), min_size=1, max_size=4),
    st.integers(0, 3),
    st.integers(0, 1000),
    st.sampled_from([1, fused.LONG]),
)
def test_a_fused_layer_is_the_plain_layer(qwen3, lengths, start, seed, long):
    generator = torch.Generator().manual_seed(seed)
    module = tiny_module("qwen3" if qwen3 else "qwen2", seed=seed % 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "LONG", long)  # so that short texts are long ones
        wanted, found = both(
            module,
            [torch.randint(0, 97, (n,), generator=generator).tolist() for n in lengths],
            start,
            4,
        )
    # rounding goes by the largest term
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5 * wanted.abs().max().item())


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_fusing_holds_nothing_twice_and_leaves_the_module_as_it_was(kind):
    module = tiny_module(kind)
    before = {name: p.clone() for name, p in module.named_parameters()}
    ids = torch.arange(9)[None]
    logits = module(ids).logits
    backbone = Backbone(module)
    assert backbone._fused
    for name, p in module.named_parameters():
        assert torch.equal(p, before[name])
    assert torch.equal(module(ids).logits, logits)
    held = {
        part.weight.untyped_storage().data_ptr()
        for layer in backbone._fused
        for part in (layer.qkv, layer.gate_up, layer.o, layer.down)
    }
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    assert held <= own


def test_what_is_not_dense_is_not_fused():
    module = tiny_module("qwen2")

    class Other(torch.nn.Linear):
        pass

    layer = module.model.layers[1].mlp
    other = Other(layer.up_proj.in_features, layer.up_proj.out_features, bias=False)
    layer.up_proj = other
    assert Backbone(module)._fused == [] and not Backbone(module).alike


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
@pytest.mark.parametrize("quantization", ["none", "fast-int4", "fast-int8"])
def test_in_16_bits_a_position_is_the_same_alone_and_beside_others(kind, quantization):
    """Bit for bit: what verified decoders need in order to write what `ar` writes."""
    if not sums_alike():
        pytest.skip("this CPU's bfloat16 products depend on how many positions a pass has")
    module = tiny_module(kind, intermediate_size=1536).bfloat16()
    if quantization != "none":
        pack(module, quantization)
    backbone = Backbone(module)
    assert backbone.alike
    generator = torch.Generator().manual_seed(7)
    for past in (1, 20, 77):
        ids = torch.randint(0, 97, (past + 8,), generator=generator).tolist()
        for n in (2, 5, 8):
            alone, together = backbone.new_cache(capacity=4), backbone.new_cache(capacity=4)
            with torch.inference_mode():
                for cache in (alone, together):
                    backbone.run_layers(backbone.embed(ids[:past]), 0, 4, cache)
                new = backbone.embed(ids[past : past + n])
                one = [backbone.run_layers(new[:, i : i + 1], 0, 4, alone) for i in range(n)]
                many = backbone.run_layers(new, 0, 4, together)
                wanted, found = (
                    backbone.logits(backbone.final_norm(h)) for h in (torch.cat(one, 1), many)
                )
            assert torch.equal(found, wanted)


def in_line(layer, past, heads, entries):
    """Let positions after `past` others attend at once. heads, entries: as layers have them."""
    mask = fused.line_mask(past, len(heads), layer.group, heads)
    keys, values = entries[..., : mask.shape[1], :]
    return layer._attend_in_line(heads[:, : layer.kv_heads * layer.group], keys, values, mask)


@pytest.mark.parametrize("group", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_positions_attend_in_line_as_alone(group, dtype):
    """Bit for bit where the CPU can, and up to rounding as attention is defined."""
    kv_heads, size = 3, 32
    layer = fused.GroupedAttention()
    layer.head_size, layer.kv_heads, layer.group = size, kv_heads, group
    alike = fused.attends_in_line(group, size, dtype)
    generator = torch.Generator().manual_seed(group)
    for past, n in ((0, 3), (5, 9), (30, 4), (61, fused.FEW), (509, 6)):
        room = fused.filled(past + n)
        entries = torch.randn(2, 1, kv_heads, room, size, generator=generator).to(dtype)
        heads = torch.randn(n, kv_heads * (group + 2), size, generator=generator).to(dtype)
        found = in_line(layer, past, heads, entries)
        if alike:
            alone = [in_line(layer, past + i, heads[i : i + 1], entries) for i in range(n)]
            assert torch.equal(found, torch.cat(alone))
        for at in range(n):
            seen = slice(0, past + at + 1)
            query = heads[at, : kv_heads * group].view(kv_heads, group, size).double()
            weights = (query @ entries[0, 0, :, seen].double().mT * size**-0.5).softmax(-1)
            wanted = (weights @ entries[1, 0, :, seen].double()).reshape(-1)
            close = {"rtol": 0, "atol": 2e-2 if dtype == torch.bfloat16 else 1e-5}
            torch.testing.assert_close(found[at].double(), wanted, **close)
