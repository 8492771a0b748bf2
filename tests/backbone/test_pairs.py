"""Dense bfloat16 linears in pairs: products and whole layers against the plain ones."""

from __future__ import annotations

import copy

import pytest
import torch

from dmtd_demo.backbone import layouts, pairs
from dmtd_demo.backbone.fused import FEW
from dmtd_demo.backbone.layouts import lay_out
from dmtd_demo.backbone.onednn import joined, plain
from dmtd_demo.backbone.pairs import PairedLinear
from dmtd_demo.backbone.qwen import Backbone
from dmtd_demo.models.memory import taken
from tiny import tiny_module

pytestmark = pytest.mark.skipif(
    not pairs.PAIRS, reason="needs `pip install ./vnni` and a CPU with AVX512-BF16"
)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("inputs", [32, 96, 1568])
def test_it_is_the_same_product_alone_and_beside_others(inputs, bias):
    torch.manual_seed(inputs)
    linears = [torch.nn.Linear(inputs, n, bias=bias).bfloat16() for n in (16, 48, 80)]
    parts = [PairedLinear(linear.weight, linear.bias) for linear in linears]
    x = torch.randn(2, 11, inputs).bfloat16()
    with torch.no_grad():
        for joint in (False, True):
            whole = joined(*parts).kernel() if joint else None
            for linear, part in zip(linears, parts):
                assert torch.equal(part.dense(), linear.weight)
                got, wanted = part(x), copy.deepcopy(linear).double()(x.double())
                torch.testing.assert_close(got.double(), wanted, rtol=2**-7, atol=2**-7)
                alone = torch.stack([part(x[0, i : i + 1])[0] for i in range(11)])
                assert torch.equal(alone, got[0])
            if whole is not None:
                side_by_side = torch.cat([part(x[0]) for part in parts], -1)
                torch.testing.assert_close(whole(x[0]), side_by_side, rtol=2**-7, atol=2**-7)


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_a_model_in_pairs_is_the_plain_one(kind, monkeypatch):
    """In passes over one position, few and many; a position is the same in each of them."""
    monkeypatch.setattr(layouts, "LARGE", 0)
    monkeypatch.setattr(layouts, "_compared", lambda linears: (2.0, 1.0, 0.5))
    module = tiny_module(
        kind,
        layers=3,
        vocab_size=96,
        hidden_size=64,
        intermediate_size=96,
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=32,
    ).bfloat16()
    ids, before = [(7 * i + 1) % 96 for i in range(60)], taken(module)
    with torch.inference_mode():
        exact = copy.deepcopy(module).double()(torch.tensor([ids])).logits[0]
        said = lay_out(module)
    assert "pairs for AVX512-BF16 (dmtd-vnni)" in said and "1000.0 in oneDNN's layout" in said
    assert taken(module) <= before + module.lm_head.weight.numel() * 2
    backbone = Backbone(module)
    assert backbone.alike and all(layer.whole is not None for layer in backbone._fused)
    texts = []
    with torch.inference_mode():
        for most in (1, 3, FEW, 60):
            cache, found = backbone.new_cache(), []
            for at in range(0, len(ids), most):
                h = backbone.embed(ids[at : at + most])
                found.append(backbone.run_layers(h, 0, backbone.layers, cache)[0])
            texts.append(backbone.logits(backbone.final_norm(torch.cat(found))))
        again = plain(module)(torch.tensor([ids])).logits[0]
    for few in texts[:3]:
        assert torch.equal(few, texts[0])
    # bfloat16's own distance from the exact logits
    scale = (again.double() - exact).square().mean().sqrt()
    for logits in texts:
        assert (logits.double() - exact).square().mean().sqrt() < 1.2 * scale


def test_all_layouts_are_timed():
    linears = [torch.nn.Linear(96, 64, bias=False).bfloat16() for _ in range(2)]
    assert len(layouts._compared(linears)) == 3
    assert len(layouts._compared([*linears, torch.nn.Linear(48, 64, bias=False).bfloat16()])) == 2
