"""Linears in oneDNN's layout against the plain ones that they come from."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from dmtd_demo.backbone import layouts
from dmtd_demo.backbone.layouts import lay_out
from dmtd_demo.backbone.onednn import BlockedLinear, joined, plain
from dmtd_demo.backbone.packed import parameters
from dmtd_demo.backbone.qwen import Backbone
from dmtd_demo.backbone.supported import MODEL_TYPES
from dmtd_demo.models.loading import load
from dmtd_demo.models.memory import taken
from tiny import fused_layers, tiny_module

IDS = [5, 17, 60, 42, 9, 5, 17, 60]

DTYPES = [torch.float32] + [torch.bfloat16] * torch.ops.mkldnn._is_mkldnn_bf16_supported()


@pytest.fixture
def always(monkeypatch):
    """Every size is worth it, and the measurement comes out in its favour."""
    monkeypatch.setattr(layouts, "LARGE", 0)
    monkeypatch.setattr(layouts, "SMALL", dict.fromkeys(layouts.SMALL, 0))
    monkeypatch.setattr(layouts, "_compared", lambda linears: (2.0, 1.0))


def logits(module) -> torch.Tensor:
    backbone = Backbone(module)
    with torch.inference_mode():
        cache = backbone.new_cache()
        h = [
            backbone.run_layers(backbone.embed(ids), 0, backbone.layers, cache)
            for ids in (IDS, [3], [4, 1])
        ][-1]
        assert fused_layers(backbone)
        return backbone.logits(backbone.final_norm(h))


@pytest.mark.parametrize("rows,columns", [(97, 64), (128, 48), (5000, 33), (1, 256)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_it_is_the_same_product(rows, columns, bias, dtype):
    torch.manual_seed(rows)
    linears = [torch.nn.Linear(columns, n, bias=bias, dtype=dtype) for n in (rows, 3, 70)]
    packed = [BlockedLinear(linear.weight, linear.bias) for linear in linears]
    for whole in (None, joined(*packed)):
        ours, plain_ones = packed, linears
        if whole is not None:
            assert all(part.weight is whole.weight for part in packed)
            ours = [*packed, whole]
            plain_ones = [
                *linears,
                BlockedLinear(
                    torch.cat([linear.weight for linear in linears]),
                    torch.cat([linear.bias for linear in linears]) if bias else None,
                ).linear(),
            ]
        for one, linear in zip(ours, plain_ones):
            assert (
                torch.equal(one.dense(), linear.weight)
                and torch.equal(one.linear().weight, linear.weight)
                and one.linear().weight.is_contiguous()
            )
            for positions in (1, 2, 3, 7, 16, 33):
                x = torch.randn(2, positions, columns, dtype=dtype)
                wanted = F.linear(
                    x.double(), linear.weight.double(), linear.bias.double() if bias else None
                )
                # rounding goes by them: biases are smaller
                terms = F.linear(x.double().abs(), linear.weight.double().abs()).max().item() + 4
                eps = torch.finfo(dtype).eps
                with torch.no_grad():
                    torch.testing.assert_close(
                        one(x).double(), wanted, rtol=0, atol=4 * eps * terms
                    )
                    if one.rows is None:
                        assert torch.equal(one.kernel()(x), one(x))


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_go_through_it(dtype):
    linears = [torch.nn.Linear(32, n, dtype=dtype) for n in (7, 5)]
    packed = [BlockedLinear(linear.weight, linear.bias) for linear in linears]
    joined(*packed)
    for one, linear in zip(packed, linears):
        x = torch.randn(3, 32, dtype=dtype, requires_grad=True)
        one(x).sum().backward()
        torch.testing.assert_close(x.grad, linear.weight.sum(0).expand(3, -1))


@pytest.mark.parametrize("family", MODEL_TYPES)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("small", [0, 48 * 32 * 2])
def test_a_model_is_the_same_function_and_comes_back_exactly(
    family, tied, dtype, small, always, monkeypatch
):
    # all of them, or all but some
    monkeypatch.setattr(layouts, "SMALL", dict.fromkeys(layouts.SMALL, small))
    module = tiny_module(family, tied=tied, initializer_range=0.15).to(dtype)
    before, count = {name: p.clone() for name, p in module.named_parameters()}, parameters(module)
    size = taken(module)
    wanted = logits(plain(module))
    assert "in oneDNN's layout" in lay_out(module)
    kinds = {type(part) for part in module.modules() if hasattr(part, "in_features")}
    assert kinds == ({BlockedLinear} if small == 0 else kinds) and BlockedLinear in kinds
    assert parameters(module) == count
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(
        logits(module), wanted, rtol=0, atol=tolerance * wanted.abs().max().item()
    )
    with torch.inference_mode():  # transformers' own layers, over what has been fused
        torch.testing.assert_close(
            module(torch.tensor([IDS])).logits,
            plain(module)(torch.tensor([IDS])).logits,
            rtol=0,
            atol=tolerance * wanted.abs().max().item(),
        )
    # a tied LM head is held twice, nothing else
    assert (
        parameters(module) == count
        and taken(module) <= size + before["model.embed_tokens.weight"].nbytes
    )
    back = plain(module)
    assert {name: p.shape for name, p in back.named_parameters()} == {
        name: p.shape for name, p in before.items()
    }
    for name, p in back.named_parameters():
        assert torch.equal(p, before[name]) and p.is_contiguous()
    assert (back.lm_head.weight is back.model.embed_tokens.weight) == tied


@pytest.mark.parametrize("dtype", DTYPES)
def test_it_is_left_where_it_is_not_faster_or_too_small(dtype, always, monkeypatch):
    module = tiny_module("qwen3").to(dtype)
    monkeypatch.setattr(layouts, "_compared", lambda linears: (1.0, 1.0))
    assert "as they are" in lay_out(module)
    monkeypatch.setattr(layouts, "_compared", lambda linears: (2.0, 1.0))
    monkeypatch.setattr(layouts, "LARGE", 2**30)
    assert lay_out(module) is None
    assert not any(isinstance(part, BlockedLinear) for part in module.modules())


def test_where_there_is_no_such_layout_everything_stays(always, monkeypatch):
    def none_here(linears):
        raise RuntimeError("reorder_linear_weight: not built with oneDNN")

    monkeypatch.setattr(layouts, "_compared", none_here)
    module = tiny_module("qwen3")
    assert lay_out(module) is None and not any(
        isinstance(part, BlockedLinear) for part in module.modules()
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_are_timed(dtype):
    linears = [torch.nn.Linear(64, 48, dtype=dtype), torch.nn.Linear(48, 32, dtype=dtype)]
    plain, laid_out = layouts._compared(linears)
    assert plain > 0 and laid_out > 0


def test_a_model_of_the_size_of_ours_is_measured():
    assert any("oneDNN's layout" in reason for reason in load("classroom", threads=1).reasons)


def test_plain_undoes_what_fusing_did(tmp_path):
    module = tiny_module("qwen2")
    ids = torch.tensor([IDS])
    wanted = module.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0)
    early = plain(module)
    logits(module)
    assert any(not p.is_contiguous() for p in module.parameters())
    for twin in (early, plain(module)):
        assert all(p.is_contiguous() for p in twin.parameters())
        assert torch.equal(
            twin.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0), wanted
        )
    plain(module).save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
