"""Linears in oneDNN's layout against the plain ones that they come from."""
from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from dmtd_demo import blocked
from dmtd_demo.backbone import MODEL_TYPES, Backbone, parameters
from dmtd_demo.blocked import BlockedLinear, lay_out, plain
from tiny import tiny_module

IDS = [5, 17, 60, 42, 9, 5, 17, 60]

needs_instructions = pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="oneDNN has no bfloat16 kernels for this CPU")


@pytest.fixture
def always(monkeypatch):
    """Every size is worth it, and the measurement comes out in its favour."""
    monkeypatch.setattr(blocked, "LARGE", 0)
    monkeypatch.setattr(blocked, "_seconds", lambda linear, x: 1.0 if isinstance(linear, BlockedLinear) else 2.0)


def logits(module) -> torch.Tensor:
    backbone = Backbone(module)
    with torch.inference_mode():
        cache = backbone.new_cache()
        h = [backbone.run_layers(backbone.embed(ids), 0, backbone.layers, cache) for ids in (IDS, [3], [4, 1])][-1]
        assert backbone._fused
        return backbone.logits(backbone.final_norm(h))


@needs_instructions
@pytest.mark.parametrize("rows,columns", [(97, 64), (128, 48), (5000, 33), (1, 256)])
@pytest.mark.parametrize("bias", [False, True])
def test_it_is_the_same_product(rows, columns, bias):
    torch.manual_seed(rows)
    linear = torch.nn.Linear(columns, rows, bias=bias, dtype=torch.bfloat16)
    packed = BlockedLinear(linear)
    assert torch.equal(packed.dense(), linear.weight) and torch.equal(packed.linear().weight, linear.weight)
    for positions in (1, 2, 3, 7, 16, 33):
        x = torch.randn(2, positions, columns, dtype=torch.bfloat16)
        wanted = F.linear(x.double(), linear.weight.double(), linear.bias.double() if bias else None)
        with torch.no_grad():
            torch.testing.assert_close(packed(x).double(), wanted, rtol=2 ** -7, atol=2 ** -7 * wanted.abs().max().item())


@needs_instructions
def test_gradients_go_through_it():
    linear = torch.nn.Linear(32, 7, dtype=torch.bfloat16)
    x = torch.randn(3, 32, dtype=torch.bfloat16, requires_grad=True)
    BlockedLinear(linear)(x).sum().backward()
    torch.testing.assert_close(x.grad, linear.weight.sum(0).expand(3, -1))


@needs_instructions
@pytest.mark.parametrize("family", MODEL_TYPES)
@pytest.mark.parametrize("tied", [True, False])
def test_a_model_is_the_same_function_and_comes_back_exactly(family, tied, always):
    module = tiny_module(family, tied=tied, initializer_range=0.15).to(torch.bfloat16)
    before, count = {name: p.clone() for name, p in module.named_parameters()}, parameters(module)
    wanted = logits(plain(module))
    assert "in oneDNN's layout" in lay_out(module)
    assert not any(type(part) is torch.nn.Linear for part in module.modules()) and parameters(module) == count
    torch.testing.assert_close(logits(module), wanted, rtol=0, atol=0.05 * wanted.abs().max().item())
    back = plain(module)
    assert {name: p.shape for name, p in back.named_parameters()} == {name: p.shape for name, p in before.items()}
    for name, p in back.named_parameters():
        assert torch.equal(p, before[name]) and p.is_contiguous()
    assert (back.lm_head.weight is back.model.embed_tokens.weight) == tied


def test_it_is_left_where_it_is_not_faster_or_too_small(monkeypatch):
    module = tiny_module("qwen3").to(torch.bfloat16)
    assert lay_out(module) is None
    monkeypatch.setattr(blocked, "LARGE", 0)
    monkeypatch.setattr(blocked, "_seconds", lambda linear, x: 1.0)
    found = lay_out(module)
    assert found is None or "as they are" in found
    assert any(type(part) is torch.nn.Linear for part in module.modules())
    assert lay_out(tiny_module("qwen3")) is None   # float32


def test_plain_undoes_what_fusing_did(tmp_path):
    module = tiny_module("qwen2")
    ids = torch.tensor([IDS])
    wanted = module.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0)
    early = plain(module)
    logits(module)
    assert any(not p.is_contiguous() for p in module.parameters())
    for twin in (early, plain(module)):
        assert all(p.is_contiguous() for p in twin.parameters())
        assert torch.equal(twin.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0), wanted)
    plain(module).save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
