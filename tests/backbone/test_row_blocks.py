"""Dense linears in blocks of rows: products and whole layers against the plain ones."""

from __future__ import annotations

import copy
import struct

import pytest
import torch
from torch.nn import functional as F

from dmtd_demo.backbone import avx512, layouts, row_blocks
from dmtd_demo.backbone.fused import FEW
from dmtd_demo.backbone.layouts import lay_out
from dmtd_demo.backbone.norms import FusedNorm
from dmtd_demo.backbone.onednn import joined, plain
from dmtd_demo.backbone.qwen import Backbone
from dmtd_demo.backbone.row_blocks import RowBlockLinear
from dmtd_demo.backbone.split import Split
from dmtd_demo.models.loading import load
from dmtd_demo.models.memory import taken
from tiny import tiny_module

pytestmark = pytest.mark.skipif(
    not row_blocks.DTYPES, reason="needs `pip install ./vnni` and a CPU with AVX512"
)
# of each dtype: what a product may be off by
DTYPES = {torch.float32: 1e-5, torch.bfloat16: 2**-7}
SHAPE = dict(
    layers=3,
    vocab_size=96,
    hidden_size=64,
    intermediate_size=96,
    num_attention_heads=3,
    num_key_value_heads=1,
    head_dim=32,
)


@pytest.fixture(params=DTYPES)
def dtype(request):
    if request.param not in row_blocks.DTYPES:
        pytest.skip("needs a CPU with AVX512-BF16")
    return request.param


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("inputs", [32, 96, 1568])
def test_it_is_the_same_product_alone_and_beside_others(inputs, bias, dtype, threads):
    torch.manual_seed(inputs)
    linears = [torch.nn.Linear(inputs, n, bias=bias, dtype=dtype) for n in (16, 48, 80)]
    parts = [RowBlockLinear(linear.weight, linear.bias) for linear in linears]
    x, near = torch.randn(2, 11, inputs).to(dtype), dict(rtol=DTYPES[dtype], atol=DTYPES[dtype])
    with torch.no_grad():
        for joint in (False, True):
            whole = joined(*parts).kernel() if joint else None
            for linear, part in zip(linears, parts):
                assert torch.equal(part.dense(), linear.weight)
                got, wanted = part(x), copy.deepcopy(linear).double()(x.double())
                torch.testing.assert_close(got.double(), wanted, **near)
                alone = torch.stack([part(x[0, i : i + 1])[0] for i in range(11)])
                assert torch.equal(alone, got[0])
            if whole is not None:
                side_by_side = torch.cat([part(x[0]) for part in parts], -1)
                torch.testing.assert_close(whole(x[0]), side_by_side, **near)


def test_gradients_go_through_it(dtype):
    linears = [torch.nn.Linear(32, n, dtype=dtype) for n in (16, 48)]
    packed = [RowBlockLinear(linear.weight, linear.bias) for linear in linears]
    joined(*packed)
    for one, linear in zip(packed, linears):
        x = torch.randn(3, 32, dtype=dtype, requires_grad=True)
        one(x).sum().backward()
        torch.testing.assert_close(x.grad, linear.weight.sum(0).expand(3, -1))


def read(backbone: Backbone, ids: list[int], most: int) -> torch.Tensor:
    """The logits of a text that is read by so many positions a pass."""
    cache, found = backbone.new_cache(), []
    for at in range(0, len(ids), most):
        h = backbone.embed(ids[at : at + most])
        found.append(backbone.run_layers(h, 0, backbone.layers, cache)[0])
    return backbone.logits(backbone.final_norm(torch.cat(found)))


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_a_model_in_blocks_is_the_plain_one(kind, dtype, threads, chosen):
    """In passes over one position, few and many; a position is the same in each of them."""
    module = tiny_module(kind, **SHAPE).to(dtype)
    ids, before = [(7 * i + 1) % 96 for i in range(60)], taken(module)
    with torch.inference_mode():
        exact = copy.deepcopy(module).double()(torch.tensor([ids])).logits[0]
        said = lay_out(module)
    assert row_blocks.DTYPES[dtype][0] in said and "1000.0 in oneDNN's layout" in said
    assert taken(module) <= before + module.lm_head.weight.numel() * dtype.itemsize
    backbone = Backbone(module)
    assert backbone.alike and all(layer.whole is not None for layer in backbone._fused)
    with torch.inference_mode():
        texts = [read(backbone, ids, most) for most in (1, 3, FEW, 60)]
        again = plain(module)(torch.tensor([ids])).logits[0]
    for few in texts[:3]:
        assert torch.equal(few, texts[0])
    # the dtype's own distance from the exact logits; float32's products are summed up in line here,
    # where PyTorch adds parts of them
    scale = (again.double() - exact).square().mean().sqrt()
    for logits in texts:
        error = (logits.double() - exact).square().mean().sqrt()
        assert error < (1.2 if dtype == torch.bfloat16 else 3) * scale


def test_layers_in_one_call_are_those_one_by_one(dtype, chosen):
    """Also where some of them hold fewer positions, late ones are a model's second, and a buffer
    grows."""
    module = tiny_module("qwen3", **SHAPE).to(dtype)
    lay_out(module)
    backbone, split = Backbone(module), Split.parse("E1D1", 3, "replace")
    shapes = backbone.linear_shapes()
    name = "mlp.down_proj"
    backbone.adapt(split, [{name: torch.randn(shapes[name]) * 0.1}])
    with torch.inference_mode():
        caches = [backbone.new_cache(8) for _ in range(2)]
        for ids, start, stop, adapted in (
            (range(5), 0, 3, False),
            ([7], 0, 1, False),
            ([7], 2, 3, True),
            ([3, 4, 5], 1, 2, False),
            ([1] * 7, 0, 1, False),
        ):
            h, past = backbone.embed(list(ids)), caches[0].length(start)
            got = backbone.run_layers(h, start, stop, caches[0], adapted=adapted)[0]
            cos, sin, mask = backbone.attending(h, past, h.shape[1])
            wanted = h[0]
            for layer in (backbone._fused_adapted if adapted else backbone._fused)[start:stop]:
                wanted = layer(wanted, cos, sin, mask, caches[1])
            assert torch.equal(got, wanted) and mask is None
        assert [caches[0].length(i) for i in range(3)] == [13, 8, 6]
        for ours, theirs in zip(*(cache._entries for cache in caches)):
            assert torch.equal(ours, theirs)


def test_what_is_no_number_stays_none(dtype, chosen):
    module = tiny_module("qwen3", **SHAPE).to(dtype)
    lay_out(module)
    backbone = Backbone(module)
    with torch.inference_mode():
        for bad in (torch.nan, torch.inf):
            cache = backbone.new_cache()
            h = backbone.embed([1, 2, 3])
            h[0, 1, 5] = bad
            out = backbone.run_layers(h, 0, 3, cache)[0]
            assert out[0].isfinite().all() and out[1:].isnan().all(-1).all()


@pytest.mark.parametrize("changes", [dict(head_dim=16), dict(intermediate_size=72)])
def test_what_does_not_fit_goes_without_it(changes, dtype, chosen):
    """Heads of 16 for whole layers, and 72 inputs for a product."""
    module = tiny_module("qwen3", **{**SHAPE, **changes}).to(dtype)
    ids = [(7 * i + 1) % 96 for i in range(20)]
    with torch.inference_mode():
        wanted = module(torch.tensor([ids])).logits[0]
        lay_out(module)
        backbone = Backbone(module)
        assert all(layer.whole is None for layer in backbone._fused)
        got = read(backbone, ids, 2)
    near = wanted.abs().max().item() * (1e-5 if dtype == torch.float32 else 0.1)
    torch.testing.assert_close(got, wanted, rtol=0, atol=near)


def test_small_matrices_come_along_where_layers_are_one_call(chosen, monkeypatch):
    """All of a float32 model's; without whole layers they stay [in, out]."""
    monkeypatch.setattr(layouts, "SMALL", dict.fromkeys(layouts.SMALL, 64 * 96 * 4))
    for changes, small in ((dict(), RowBlockLinear), (dict(head_dim=16), torch.nn.Linear)):
        module = tiny_module("qwen3", **{**SHAPE, **changes})
        lay_out(module)
        layer = module.model.layers[0]
        assert type(layer.self_attn.k_proj) is small
        assert type(layer.mlp.up_proj) is RowBlockLinear


def test_all_layouts_are_timed(dtype):
    linears = [torch.nn.Linear(96, 64, bias=False, dtype=dtype) for _ in range(2)]
    assert len(layouts._compared(linears)) == 3
    odd = torch.nn.Linear(48, 64, bias=False, dtype=dtype)
    assert len(layouts._compared([*linears, odd])) == 2


def test_classroom_writes_what_generate_writes(chosen):
    model = load("classroom", threads=1)
    assert model.backbone._whole
    ids = model.tokenizer("What is a language model?", return_tensors="pt").input_ids
    twin = plain(model.backbone.module)
    with torch.inference_mode():
        wanted = twin.generate(ids, max_new_tokens=60, do_sample=False, eos_token_id=None)[0]
        backbone, cache = model.backbone, model.backbone.new_cache()
        text, new = ids[0].tolist(), ids[0].tolist()
        while len(text) < len(wanted):
            out = backbone.run_layers(backbone.embed(new), 0, backbone.layers, cache)
            new = [int(backbone.logits(backbone.final_norm(out[:, -1])).argmax())]
            text += new
    assert text == wanted.tolist()


@pytest.mark.parametrize("size", [32, 96, 1056])
def test_the_final_norm_in_one_call_is_the_plain_one(size, dtype, threads):
    """Alone and beside others, and of rows that do not lie together."""
    torch.manual_seed(size)
    weight, x = torch.randn(size).to(dtype), torch.randn(2, 16, size).to(dtype)
    norm = avx512.final_norm(weight, 1e-6)
    assert type(norm) is avx512.WholeNorm
    got, wanted = norm(x), F.rms_norm(x.double(), (size,), weight.double(), 1e-6)
    near = dict(rtol=DTYPES[dtype], atol=DTYPES[dtype])
    torch.testing.assert_close(got.double(), wanted, **near)
    for n in range(1, 17):
        assert torch.equal(norm(x[1, :n]), got[1, :n])
    assert torch.equal(norm(x.select(1, -1)), got[:, -1])
    half = norm(x[:1].half())
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.double(), wanted[:1], rtol=2**-9, atol=2**-9)


def test_other_norms_are_left_to_pytorch():
    assert type(avx512.final_norm(torch.ones(48), 1e-6)) is FusedNorm


def test_the_norm_refuses_what_is_no_struct():
    for wrong in ((b"", *[64] * 6), (struct.pack(avx512.NORM, 0, 0),), (0, *[64] * 6)):
        with pytest.raises(TypeError, match="bytes"):
            avx512.KERNEL.norm(*wrong)
