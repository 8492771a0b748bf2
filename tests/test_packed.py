"""Packed linears against the matrix product with their own dequantized weights, and packed models against dense ones."""
from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from dmtd_demo.backbone import MODEL_TYPES, Backbone
from dmtd_demo.catalog import CATALOG
from dmtd_demo.errors import UserError
from dmtd_demo.loading import load
from dmtd_demo.memory import Sizes
from dmtd_demo.packed import PackedLinear, joined, pack
from dmtd_demo.placement import offered, place
from tiny import tiny_module

TEXTS = ["Once upon a time there was a red fox.", "What is a language model?", "Ada found a kite in the garden and took it home.", "Explain quantization."]


@pytest.mark.parametrize("dtype,tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 2 ** -7)])
@pytest.mark.parametrize("rows,columns", [(97, 64), (128, 48), (5000, 32), (1, 256)])
@pytest.mark.parametrize("bias", [False, True])
def test_a_packed_linear_is_the_product_with_its_dequantized_weights(dtype, tolerance, rows, columns, bias):
    torch.manual_seed(rows)
    linear = torch.nn.Linear(columns, rows, bias=bias, dtype=dtype)
    packed = PackedLinear.of(linear)
    assert packed.weight.dtype == torch.int8
    weight = packed.weight.double() * packed.scale.double()[:, None]
    off = (weight - linear.weight.double()).abs()
    assert (off <= packed.scale.double()[:, None] * 1.01).all() and off.mean() < packed.scale.double().mean() / 2   # half a step, and the rounded scale's at the ends
    for positions in (1, 2, 3, 4, 7, 16, 33):
        x = torch.randn(2, positions, columns, dtype=dtype)
        wanted = F.linear(x.double(), weight, linear.bias.double() if bias else None)
        with torch.no_grad():
            torch.testing.assert_close(packed(x).double(), wanted, rtol=tolerance, atol=tolerance * wanted.abs().max().item())


def test_gradients_go_through_a_packed_linear():
    packed = PackedLinear.of(torch.nn.Linear(32, 7))
    x = torch.randn(3, 32, requires_grad=True)
    packed(x).sum().backward()
    torch.testing.assert_close(x.grad, packed.dense().sum(0).expand(3, -1))


def test_a_row_of_zeros_stays_zero():
    linear = torch.nn.Linear(32, 3, bias=False)
    torch.nn.init.zeros_(linear.weight)
    assert torch.equal(PackedLinear.of(linear)(torch.ones(1, 32)), torch.zeros(1, 3))


def test_joined_linears_hold_nothing_twice():
    parts = [PackedLinear.of(torch.nn.Linear(32, rows)) for rows in (8, 5, 5)]
    x = torch.randn(2, 32)
    with torch.no_grad():
        before = torch.cat([part(x) for part in parts], dim=-1)
        whole = joined(*parts)
        assert torch.equal(whole(x), before) and torch.equal(torch.cat([part(x) for part in parts], dim=-1), before)
    assert {part.weight.untyped_storage().data_ptr() for part in parts} == {whole.weight.untyped_storage().data_ptr()}


@pytest.mark.parametrize("family", MODEL_TYPES)
@pytest.mark.parametrize("tied", [True, False])
def test_a_packed_model_is_near_the_dense_one_and_is_fused(family, tied):
    module = tiny_module(family, tied=tied, initializer_range=0.15)
    ids = [5, 17, 60, 42, 9, 5, 17, 60]
    dense = module(torch.tensor([ids])).logits
    table = module.get_input_embeddings().weight.clone()
    pack(module)
    assert not any(type(part) is torch.nn.Linear for part in module.modules()) and torch.equal(module.get_input_embeddings().weight, table)
    packed = module(torch.tensor([ids])).logits
    assert 0 < (packed - dense).abs().mean() < 0.05 * dense.abs().mean()
    backbone = Backbone(module)
    with torch.inference_mode():
        cache = backbone.new_cache()
        fused = backbone.logits(backbone.final_norm(backbone.run_layers(backbone.embed(ids), 0, backbone.layers, cache)))
    assert backbone._fused
    torch.testing.assert_close(fused, packed, rtol=0, atol=1e-4 * packed.abs().max().item())


def test_the_classroom_chooses_the_same_tokens():
    dense, packed = load("classroom"), load("classroom", quantization="cpu-int8")
    same = []
    for text in TEXTS:
        ids = dense.tokenizer(text, return_tensors="pt").input_ids
        same.append(dense.backbone.module(ids).logits.argmax(-1) == packed.backbone.module(ids).logits.argmax(-1))
    assert torch.cat(same, dim=1).float().mean() >= 0.9


def test_it_is_a_quantization_of_cpus():
    sizes = Sizes.of("qwen2", CATALOG["Qwen2.5-0.5B-Instruct"].shape)
    assert "cpu-int8" in offered("cpu") and "cpu-int8" not in offered("cuda")
    assert place(sizes, 64, quantization="cpu-int8", device="cpu").dtype == torch.bfloat16
    if torch.cuda.is_available():
        with pytest.raises(UserError, match="runs on a CPU alone"):
            place(sizes, 64, quantization="cpu-int8", device="cuda")
