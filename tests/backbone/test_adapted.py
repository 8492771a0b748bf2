"""Late layers of their own for late-layer-only passes, against the formula without a cache."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch

import naive
from dmtd_demo.backbone import graphs
from dmtd_demo.backbone.cpu_packed import pack
from dmtd_demo.backbone.qwen import Backbone
from dmtd_demo.backbone.split import Split
from dmtd_demo.models.model import Model
from dmtd_demo.race.panels import PanelSpec, make_decoder
from dmtd_demo.sampling import Sampler
from dmtd_demo.training.masking import masked_hidden
from tiny import tiny_model

GRID = [(early, late) for early in (0, 1) for late in range(1, 4 - early)]


def differences_of(model: Model, split: Split, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            name: 0.2 * torch.randn(shape, generator=generator)
            for name, shape in model.backbone.linear_shapes().items()
        }
        for _ in range(split.late)
    ]


def ids_of(model: Model, panel: PanelSpec, prompt: list[int], new: int) -> list[int]:
    decoder = make_decoder(panel)
    decoder.options = decoder.resolve(decoder.options, model)
    ids: list[int] = []
    for step in decoder.steps(model, prompt, Sampler()):
        ids += [token.id for token in step.tokens]
        if len(ids) >= new:
            return ids[:new]
    raise AssertionError


def adapted(kind: str, early: int, late: int, **changes) -> tuple[Model, list]:
    """A model with such layers, and what they add; its weights stay as they were."""
    split = Split(4, early, late, "replace")
    model = tiny_model(kind, split=split, seed=early + 2 * late, **changes)
    more = differences_of(model, split)
    model.backbone.adapt(split, more)
    return model, more


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("early,late", GRID)
@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_dmtd_equals_the_formula(kind, early, late, static, monkeypatch):
    monkeypatch.setattr(graphs, "WINDOW", 8)
    model, more = adapted(kind, early, late)
    plain = copy.deepcopy(model.backbone.module)
    model.backbone.static = static
    for tau, length in itertools.product((1, 2, 3, 4), (1, 5)):
        prompt = [(7 * i + tau) % 97 for i in range(length)]
        new = 2 * tau + 2
        fast = ids_of(model, PanelSpec("dmtd", {"tau": tau}), prompt, new)
        assert fast == naive.gated_would_go_on(plain, more, prompt, fast, tau, early)
    text = ids_of(model, PanelSpec("dmtd", {"tau": 3}), [1, 2, 3], 12)
    other = tiny_model(kind, split=model.split, seed=early + 2 * late)
    assert text != ids_of(other, PanelSpec("dmtd", {"tau": 3}), [1, 2, 3], 12)


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_full_passes_stay_the_models_own(kind):
    """`ar` and the verified text are the same without such layers; another split has none."""
    model, _ = adapted(kind, 1, 2)
    plain = tiny_model(kind, split=model.split, seed=5)
    for prompt in ([3], [5, 6, 7, 8]):
        text = ids_of(plain, PanelSpec("ar"), prompt, 24)
        assert ids_of(model, PanelSpec("ar"), prompt, 24) == text
        assert ids_of(model, PanelSpec("dmtd-spec", {"tau": 3}), prompt, 24) == text
        other = PanelSpec("dmtd", {"tau": 3, "split": "E0D2"})
        assert ids_of(model, other, prompt, 24) == ids_of(plain, other, prompt, 24)


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_adaptive_and_mixed_draw_their_late_tokens_from_them(kind):
    for decoder in ("dmtd-adaptive", "mixed"):
        model, _ = adapted(kind, 1, 2, addons=True)
        plain = tiny_model(kind, split=model.split, seed=5, addons=True)
        panel = PanelSpec(decoder, {"threshold": 0.0})
        assert ids_of(model, panel, [1, 2], 30) != ids_of(plain, panel, [1, 2], 30)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_masked_rows_equal_the_formula(kind, grad):
    """The layers as transformers' modules, whole rows at once: what training reads."""
    model, more = adapted(kind, 1, 2)
    ids = torch.randint(0, 97, (2, 9), generator=torch.Generator().manual_seed(1))
    heads = torch.rand(2, 9, generator=torch.Generator().manual_seed(2)) < 0.5
    with torch.set_grad_enabled(grad):
        h = masked_hidden(model.backbone, model.split, ids, heads)
    for row in range(2):
        wanted = naive.gated_hidden(
            model.backbone.module, more, ids[row].tolist(), heads[row].tolist(), 1
        )
        torch.testing.assert_close(h[row], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("quantization", ["fast-int8", "fast-int4"])
def test_they_are_packed_as_the_backbone_is(quantization):
    split = Split(4, 1, 2, "replace")
    model = tiny_model("qwen2", split=split, hidden_size=64, intermediate_size=96)
    module = copy.deepcopy(model.backbone.module)
    more = differences_of(model, split)
    pack(module, quantization)
    own = module.model.layers[3].mlp.down_proj
    before = own.dense()
    backbone = Backbone(module)
    backbone.adapt(split, more)
    late = backbone.adapted[1].mlp.down_proj
    assert type(late) is type(own) and torch.equal(own.dense(), before)
    wanted = before + more[1]["mlp.down_proj"]
    error = ((late.dense() - wanted).norm() / wanted.norm()).item()
    assert error < (0.01 if quantization == "fast-int8" else 0.1)
    packed = Model(**{**vars(model), "backbone": backbone})
    assert len(ids_of(packed, PanelSpec("dmtd", {"tau": 2}), [1, 2, 3], 8)) == 8
