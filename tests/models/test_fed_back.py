"""The MTP head that reads its own drafts, with a cache, against transformers' layer without one."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

import naive
from dmtd_demo.backbone import integers
from dmtd_demo.backbone.cache import KVCache
from dmtd_demo.backbone.cpu_packed import Int8Linear, Kinds, pack
from dmtd_demo.backbone.integers import KINDS
from dmtd_demo.backbone.packed import parameters
from dmtd_demo.backbone.qwen import Backbone
from dmtd_demo.decoders.mtp_native import NativeHead
from dmtd_demo.errors import UserError
from dmtd_demo.models.addons import load_fed_back
from dmtd_demo.models.attaching import take_all
from dmtd_demo.models.fed_back import LINEARS, NORMS, FedBackHead, names_of
from dmtd_demo.models.memory import taken
from tiny import tiny_model


@torch.no_grad()
def random_head(model, seed: int = 3) -> FedBackHead:
    torch.manual_seed(seed)
    head = FedBackHead(model.backbone, model.backbone.config.intermediate_size)
    for p in head.parameters():
        p.normal_(std=0.2)
    return head.eval().requires_grad_(False)


def whole(module, head: FedBackHead, states: torch.Tensor, ids: list[int]) -> torch.Tensor:
    """All m of a text [n, hidden], by the formula."""
    layered = copy.deepcopy(module)
    layer = layered.model.layers[0]
    for key, name in LINEARS.items():
        part = layer.get_submodule(name)
        part.weight.data = head.linears[key].weight.data.clone()
        if part.bias is not None:
            part.bias.data.zero_()
    for key in ("before_attention", "before_mlp"):
        layer.get_submodule(NORMS[key].split(".")[-1]).weight.data = head.norms[key].data
    eps, size = module.config.rms_norm_eps, (module.config.hidden_size,)

    def norm(x: torch.Tensor, key: str) -> torch.Tensor:
        return F.rms_norm(x, size, head.norms[key], eps)

    embedded = module.model.embed_tokens(torch.tensor(ids))
    pair = torch.cat((norm(embedded, "of_embedding"), norm(states, "of_state")), -1)
    u = pair @ head.linears["fc"].weight.T
    return norm(naive.layers(layered, u[None], 0, 1)[0], "after")


def test_runs_with_a_cache_are_the_formula():
    model = tiny_model("qwen2")
    module, head = copy.deepcopy(model.backbone.module), random_head(model)
    ids = [(11 * i) % 97 for i in range(30)]
    states = torch.randn(30, 32, generator=torch.Generator().manual_seed(0))
    wanted = whole(module, head, states, ids)
    cache, at = KVCache(1), 0
    with torch.inference_mode():
        for n in (5, 1, 3, 1, 20):
            embedded = model.backbone.embed(ids[at : at + n])[0]
            m = head.run(states[at : at + n], embedded, cache)
            at += n
            torch.testing.assert_close(m[0], wanted[at - 1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("quantization", ["fast-int8", "fast-int4"])
@pytest.mark.parametrize("kinds", [Kinds(), KINDS], ids=["PyTorch's", "by bytes"])
def test_beside_a_packed_backbone_it_is_packed_in_8_bits(quantization, kinds):
    if kinds is KINDS and integers.KERNEL is None:
        pytest.skip("needs dmtd-vnni and a CPU with AVX512-VNNI")
    # of the shape for which the kernel has whole layers
    shape = {"hidden_size": 128, "intermediate_size": 192}
    model = tiny_model("qwen2", dtype=torch.bfloat16, initializer_range=0.1, **shape)
    head, other = random_head(model).bfloat16(), random_head(model).bfloat16()
    pack(model.backbone.module, quantization, kinds=kinds)
    backbone = model.backbone = other.backbone = head.backbone = Backbone(model.backbone.module)
    head.pack()
    kind = kinds.eight if quantization == "fast-int4" else Int8Linear
    assert {type(linear) for linear in head.linears.values()} == {kind}
    with torch.no_grad():
        for key, linear in head.linears.items():
            other.linears[key].weight.copy_(linear.dense())
    assert parameters(head) == parameters(other) and taken(head) < 0.6 * taken(other)
    ids = [(11 * i) % 97 for i in range(9)]
    states = torch.randn(9, 128, generator=torch.Generator().manual_seed(0)).bfloat16()
    found = []
    with torch.inference_mode():
        for each in (head, other):
            cache = KVCache(1)
            each.run(states[:6], backbone.embed(ids[:6])[0], cache)
            found.append(each.run(states[6:], backbone.embed(ids[6:])[0], cache).float())
    assert (found[0] - found[1]).abs().max() < 0.05 * found[1].abs().max()


def test_a_head_that_does_not_fit_is_refused(tmp_path: Path):
    model = tiny_model("qwen2")
    head = random_head(model)
    named = names_of(head)
    tensors = {named[name]: t.clone() for name, t in head.state_dict().items()}
    card = {"schema": 1, "base_model": "tiny", "hidden_size": 32, "addons": {"fed_back": {}}}
    (tmp_path / "addons.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match="needs width"):
        load_fed_back(tmp_path, model.backbone)
    card["addons"]["fed_back"] = {"width": 48}
    (tmp_path / "addons.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match="needs fed_back.safetensors"):
        load_fed_back(tmp_path, model.backbone)
    save_file(tensors, tmp_path / "fed_back.safetensors")
    loaded = load_fed_back(tmp_path, model.backbone)
    assert torch.equal(loaded.linears["fc"].weight, head.linears["fc"].weight)
    save_file(tensors | {"mtp.more": torch.ones(1)}, tmp_path / "fed_back.safetensors")
    with pytest.raises(UserError, match="nothing reads: mtp.more"):
        load_fed_back(tmp_path, model.backbone)
    with pytest.raises(UserError, match="for this model"):
        load_fed_back(tmp_path, tiny_model("qwen2", hidden_size=64).backbone)


def test_what_its_card_says_is_the_default_of_its_unverified_decoder(tmp_path: Path):
    model = tiny_model("qwen2")
    head, card = random_head(model), {"schema": 1, "base_model": "", "hidden_size": 32}
    tensors = {names_of(head)[name]: t.clone() for name, t in head.state_dict().items()}
    save_file(tensors, tmp_path / "fed_back.safetensors")
    for facts, wanted in (({}, (1, 0.9)), ({"k": 3, "threshold": 0.95}, (3, 0.95))):
        whole_card = card | {"addons": {"fed_back": {"width": 48, **facts}}}
        (tmp_path / "addons.json").write_text(json.dumps(whole_card))
        model.addons, model.addon_facts = {}, {}
        take_all(model, tmp_path, str(tmp_path), None)
        found = NativeHead.defaults(model)
        assert (found.k, found.threshold, found.rule) == (*wanted, "probability")
