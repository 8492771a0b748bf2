"""Packed linears against the matrix product with their own dequantized weights, and packed models
against dense ones.
"""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from dmtd_demo.backbone import cuda_packed
from dmtd_demo.backbone.cpu_packed import KINDS, ROWS_TOGETHER, Int4Linear, Int8Linear, joined, pack
from dmtd_demo.backbone.fbgemm import HEAD_ROWS, by_integers, has_integers
from dmtd_demo.backbone.packed import DENSE, GROUP, dense_kept, parameters
from dmtd_demo.backbone.qwen import Backbone
from dmtd_demo.backbone.supported import MODEL_TYPES
from dmtd_demo.errors import UserError
from dmtd_demo.models.catalog import CATALOG
from dmtd_demo.models.loading import load, load_random
from dmtd_demo.models.memory import Need, Sizes, repeated_bytes, taken, weight_bytes
from dmtd_demo.models.placement import FAST, Asked, offered, place
from tiny import fused_layers, tiny_module

TEXTS = [
    "Once upon a time there was a red fox.",
    "What is a language model?",
    "Ada found a kite in the garden and took it home.",
    "Explain quantization.",
]
needs_integers = pytest.mark.skipif(not has_integers(), reason="this CPU has no products of bytes")
DTYPES = [(torch.float32, 1e-5), (torch.bfloat16, 2**-7)]


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def is_the_product(packed, linear, weight, dtype, tolerance) -> None:
    """weight: the dequantized one, float64."""
    for positions in (1, 2, 3, 4, 7, 16, 33):
        x = torch.randn(2, positions, linear.in_features, dtype=dtype)
        wanted = F.linear(
            x.double(), weight, linear.bias.double() if linear.bias is not None else None
        )
        # rounding goes by them; biases are smaller
        terms = F.linear(x.double().abs(), weight.abs()).max().item() + 1
        with torch.no_grad():
            torch.testing.assert_close(
                packed(x).double(), wanted, rtol=tolerance, atol=tolerance * terms / 2
            )


@pytest.mark.parametrize("dtype,tolerance", DTYPES)
@pytest.mark.parametrize("rows,columns", [(97, 64), (128, 48), (5000, 32), (1, 256)])
@pytest.mark.parametrize("bias", [False, True])
def test_8_bits_are_the_product_with_the_dequantized_weights(dtype, tolerance, rows, columns, bias):
    torch.manual_seed(rows)
    linear = torch.nn.Linear(columns, rows, bias=bias, dtype=dtype)
    packed = Int8Linear.of(linear)
    assert packed.weight.dtype == torch.int8
    weight = packed.weight.double() * packed.scale.double()[:, None]
    off = (weight - linear.weight.double()).abs()
    # half a step, and the rounded scale's at the ends
    assert (
        off <= packed.scale.double()[:, None] * 1.01
    ).all() and off.mean() < packed.scale.double().mean() / 2
    is_the_product(packed, linear, weight, dtype, tolerance)


@needs_integers
@pytest.mark.parametrize("columns", [64, 577])
def test_an_lm_head_in_8_bits_is_multiplied_as_integers(columns):
    """Up to the 16 bits of its input, and bit for bit the same alone and beside others."""
    torch.manual_seed(columns)
    linear = torch.nn.Linear(columns, HEAD_ROWS + 3, bias=False, dtype=torch.bfloat16)
    packed = Int8Linear.of(linear)
    weight = packed.weight.double() * packed.scale.double()[:, None]
    is_the_product(packed, linear, weight, torch.bfloat16, 2**-7)
    product = by_integers(packed.weight, packed.scale)
    x = torch.randn(16, columns) * torch.logspace(-9, 9, 16)[:, None]
    x[3] = 0
    x[4, 5] = 1e6  # one entry far over the others
    found, wanted = product(x), x.double() @ weight.mT
    # half of the finest step, 127 x 254 of which are the largest entry, in each product at most
    bound = x.abs().amax(1).double()[:, None] / (127 * 508) * weight.abs().sum(1)
    assert ((found.double() - wanted).abs() <= bound + 1e-5 * wanted.abs() + 1e-30).all()
    for n in (1, 2, 3, 5, 9):
        assert torch.equal(product(x[:n]), found[:n])


@pytest.mark.parametrize("dtype,tolerance", DTYPES)
@pytest.mark.parametrize("rows,columns", [(96, 64), (128, 96), (5008, 32), (16, 256)])
@pytest.mark.parametrize("bias", [False, True])
def test_4_bits_are_the_product_with_the_dequantized_weights(dtype, tolerance, rows, columns, bias):
    """Dequantized by the formula, from the levels that it holds; of the sixteen none is nearer to
    its weight.
    """
    torch.manual_seed(rows)
    linear = torch.nn.Linear(columns, rows, bias=bias, dtype=dtype)
    packed = Int4Linear.of(linear)
    assert (
        packed.weight.nbytes == rows * columns // 2
        and packed.scale.nbytes == rows * columns // GROUP * 2 * dtype.itemsize
    )
    # [groups, rows]
    step, middle = packed.scale.double().unbind(-1)
    # [groups, rows, 16]
    grid = middle[..., None] + step[..., None] * (torch.arange(16) - 8)
    # [groups, rows, GROUP]
    groups, held = (
        w.double().view(rows, -1, GROUP).transpose(0, 1) for w in (linear.weight, packed.dense())
    )
    nearest = grid.gather(-1, (held[..., None] - grid[..., None, :]).abs().argmin(-1))
    assert (
        (nearest - groups).abs()
        <= (groups[..., None] - grid[..., None, :]).abs().amin(-1) + 1e-3 * step[..., None]
    ).all()
    weight = nearest.transpose(0, 1).reshape(rows, columns)
    torch.testing.assert_close(
        packed.dense().double(), weight, rtol=tolerance, atol=tolerance * weight.abs().max().item()
    )
    is_the_product(packed, linear, weight, dtype, tolerance)


@pytest.mark.parametrize("kind", KINDS.values())
def test_gradients_go_through_a_packed_linear(kind):
    packed = kind.of(torch.nn.Linear(32, 16))
    x = torch.randn(3, 32, requires_grad=True)
    packed(x).sum().backward()
    torch.testing.assert_close(x.grad, packed.dense().sum(0).expand(3, -1))


@pytest.mark.parametrize("kind", KINDS.values())
def test_a_row_of_zeros_stays_zero(kind):
    linear = torch.nn.Linear(32, 16, bias=False)
    torch.nn.init.zeros_(linear.weight)
    assert kind.of(linear)(torch.ones(1, 32)).abs().max() <= 1e-36


@pytest.mark.parametrize(
    "kind,rows", [(Int8Linear, (8, 5, 5)), (Int4Linear, (ROWS_TOGETHER, 2 * ROWS_TOGETHER, 16))]
)
@pytest.mark.parametrize("bias", [False, True])
def test_joined_linears_hold_nothing_twice(kind, rows, bias):
    parts = [kind.of(torch.nn.Linear(64, n, bias=bias)) for n in rows]
    x = torch.randn(2, 64)
    with torch.no_grad():
        before = torch.cat([part(x) for part in parts], dim=-1)
        whole = joined(*parts)
        assert torch.equal(whole(x), before) and torch.equal(
            torch.cat([part(x) for part in parts], dim=-1), before
        )
    assert {part.weight.untyped_storage().data_ptr() for part in parts} == {
        whole.weight.untyped_storage().data_ptr()
    }


def test_what_the_4_bit_layout_would_mix_up_is_not_joined():
    assert (
        joined(
            *(Int4Linear.of(torch.nn.Linear(32, n)) for n in (ROWS_TOGETHER - 16, ROWS_TOGETHER))
        )
        is None
    )


@pytest.mark.parametrize("family", MODEL_TYPES)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("quantization,near", [("fast-int8", 0.05), ("fast-int4", 0.5)])
def test_a_packed_model_is_near_the_dense_one_and_is_fused(family, tied, quantization, near):
    module = tiny_module(
        family, tied=tied, initializer_range=0.15, hidden_size=64, intermediate_size=128
    )
    ids, count = [5, 17, 60, 42, 9, 5, 17, 60], parameters(module)
    dense = module(torch.tensor([ids])).logits
    table = module.get_input_embeddings().weight.clone()
    pack(module, quantization)
    plain = {n.split(".")[-1] for n, p in module.named_modules() if type(p) is torch.nn.Linear}
    assert plain <= set(DENSE) and torch.equal(module.get_input_embeddings().weight, table)
    assert parameters(module) == count
    packed = module(torch.tensor([ids])).logits
    assert 0 < (packed - dense).abs().mean() < near * dense.abs().mean()
    backbone = Backbone(module)
    with torch.inference_mode():
        cache = backbone.new_cache()
        fused = backbone.logits(
            backbone.final_norm(backbone.run_layers(backbone.embed(ids), 0, backbone.layers, cache))
        )
    assert fused_layers(backbone) and parameters(module) == count
    torch.testing.assert_close(fused, packed, rtol=0, atol=1e-4 * packed.abs().max().item())
    assert type(backbone._layers[0].mlp.down_proj) is KINDS[quantization]


@pytest.mark.parametrize("quantization,alike", [("fast-int8", 0.9), ("fast-int4", 0.7)])
def test_the_classroom_chooses_the_same_tokens(quantization, alike):
    dense, packed = load("classroom", trainable=True), load("classroom", quantization=quantization)
    same = []
    for text in TEXTS:
        ids = dense.tokenizer(text, return_tensors="pt").input_ids
        same.append(
            dense.backbone.module(ids).logits.argmax(-1)
            == packed.backbone.module(ids).logits.argmax(-1)
        )
    assert torch.cat(same, dim=1).float().mean() >= alike


@pytest.mark.parametrize("quantization", FAST)
def test_it_takes_what_the_arithmetic_says(quantization):
    model = load_random("classroom", quantization=quantization)
    assert (
        abs(
            taken(model.backbone.module)
            / weight_bytes(Sizes.of("qwen3", CATALOG["classroom"].shape), quantization, 2)
            - 1
        )
        < 0.01
    )


@needs_integers
def test_what_products_as_integers_hold_once_more_is_counted():
    """Of the LM head and of joined matrices with as many rows; in bytes of the process, too."""
    module = tiny_module(
        "qwen3",
        hidden_size=64,
        intermediate_size=HEAD_ROWS // 2,
        vocab_size=HEAD_ROWS,
    ).bfloat16()
    pack(module, "fast-int8")
    backbone = Backbone(module)
    with torch.inference_mode():
        h = backbone.embed([1, 2])
        backbone.logits(backbone.run_layers(h, 0, backbone.layers, backbone.new_cache()))
    sizes = Sizes.of("qwen3", module.config.to_dict())
    tables = sum(b.nbytes for b in module.model.rotary_emb.buffers())
    stated = weight_bytes(sizes, "fast-int8", 2) + repeated_bytes(sizes, "fast-int8", 2)
    assert taken(module) - tables == stated == Need.of(sizes, "fast-int8", 2, 64).weights
    assert stated > 1.2 * weight_bytes(sizes, "fast-int8", 2)
    linear = Int8Linear.of(torch.nn.Linear(2048, HEAD_ROWS, bias=False, dtype=torch.bfloat16))
    before = resident()
    linear(torch.zeros(1, 2048, dtype=torch.bfloat16))
    assert abs((resident() - before) / linear.repeated - 1) < 0.1


def test_they_have_one_name_on_every_device():
    sizes = Sizes.of("qwen2", CATALOG["Qwen2.5-0.5B-Instruct"].shape)
    assert set(KINDS) == set(FAST) == set(cuda_packed.KINDS)
    for quantization in FAST:
        assert quantization in offered("cpu") and quantization not in offered("auto")
        asked = Asked(quantization=quantization, device="cpu")
        assert place(sizes, 64, asked).dtype == torch.bfloat16
        asked = Asked(quantization=quantization.replace("fast", "cpu"), device="cpu")
        former = place(sizes, 64, asked)
        assert former.quantization == quantization
        if (
            torch.cuda.is_available()
            and torch.cuda.get_device_capability() >= cuda_packed.CAPABILITY
        ):
            assert quantization in offered("cuda")
            with pytest.raises(UserError, match="needs bfloat16"):
                place(sizes, 64, Asked(quantization=quantization, device="cuda", dtype="float32"))


@pytest.mark.parametrize("quantization", FAST)
def test_dense_weights_are_made_once_while_they_are_kept(quantization, monkeypatch):
    """And gradients go through the same product."""
    packed = KINDS[quantization].of(torch.nn.Linear(64, 32, bias=False, dtype=torch.bfloat16))
    x = torch.randn(3, 64, dtype=torch.bfloat16, requires_grad=True)
    wanted, made, dense = packed(x), [], packed.dense
    monkeypatch.setattr(packed, "dense", lambda: made.append(1) or dense())
    with dense_kept(packed):
        assert torch.equal(packed(x), wanted) and torch.equal(packed(x), wanted)
    assert len(made) == 1 and not packed.held
    with dense_kept(torch.nn.Linear(2, 2)):
        pass
