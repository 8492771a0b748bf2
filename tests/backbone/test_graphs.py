"""The static passes, which are CUDA graphs where there is CUDA, against the ordinary ones and
`generate`. Here they run on the CPU, without graphs.
"""

from __future__ import annotations

import gc

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmtd_demo.backbone import graphs
from dmtd_demo.backbone.graphs import StaticCache
from dmtd_demo.backbone.qwen import Backbone
from dmtd_demo.backbone.split import Split
from dmtd_demo.race.panels import PanelSpec, parse_panel
from dmtd_demo.race.race import race_ids
from dmtd_demo.race.settings import RaceSettings
from dmtd_demo.sampling import Sampling
from tiny import ATTENTION, tiny_model, tiny_module
from written import ANYWHERE


@pytest.fixture
def windows(monkeypatch):
    """So small that texts outgrow them."""
    monkeypatch.setattr(graphs, "WINDOW", 8)


@settings(max_examples=100, deadline=None)
@given(
    st.booleans(),
    st.lists(st.one_of(st.integers(1, 20), st.integers(-9, -1)), min_size=1, max_size=8),
    st.integers(0, 3),
    st.integers(0, 1000),
)
def test_a_static_pass_is_the_ordinary_one(qwen3, lengths, start, seed):
    """Negative: so many positions are forgotten."""
    generator = torch.Generator().manual_seed(seed)
    module = tiny_module("qwen3" if qwen3 else "qwen2", seed=seed % 3)
    chunks = [
        n if n < 0 else torch.randint(0, 97, (n,), generator=generator).tolist() for n in lengths
    ]
    outputs = []
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(graphs, "WINDOW", 8)
        for static in (False, True):
            backbone = Backbone(module)
            backbone.static = static
            cache = backbone.new_cache()
            assert isinstance(cache, StaticCache) == static
            outputs.append([])
            for chunk in chunks:
                if isinstance(chunk, int):
                    cache.crop(max(cache.length(start) + chunk, 0))
                else:
                    outputs[-1].append(backbone.run_layers(backbone.embed(chunk), start, 4, cache))
    for plain, static in zip(*outputs):
        torch.testing.assert_close(static, plain, rtol=0, atol=1e-5 * plain.abs().max().item())


@pytest.mark.parametrize("family", ATTENTION)
@pytest.mark.parametrize("name", [*ANYWHERE, "mtp-verified:tree=9"])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.8, top_p=0.9, seed=3)])
def test_every_decoder_draws_the_same_tokens(name, family, sampling, windows):
    drawn = []
    for static in (False, True):
        model = tiny_model(family, addons=True, split=Split(4, 1, 1), layers=4)
        model.backbone.static = static
        # side by side, each over buffers of its own
        panels, prompts = [parse_panel(name)] * 2, [[1, 2, 3] * 3, [4, 5] * 12]
        records = [
            r
            for batch in race_ids(
                model,
                panels,
                prompts,
                RaceSettings(sampling, max_new_tokens=40, top=3, ignore_eos=True),
            )
            for r in batch
        ]
        assert all(r["stop"] == "length" for r in records if r["type"] == "summary")
        drawn.append(
            [
                [
                    (t["id"], [i for i, *_ in t["top"]])
                    for r in records
                    if r["type"] == "step" and r["panel"] == panel
                    for t in r["tokens"]
                ]
                for panel in (0, 1)
            ]
        )
        assert ("_passes" in vars(model.backbone)) == static
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("family", ATTENTION)
def test_ar_is_generate(family, windows):
    model = tiny_model(family)
    model.backbone.static = True
    ids = torch.tensor([[5, 17, 60, 42, 9]])
    wanted = model.backbone.module.generate(
        ids, max_new_tokens=30, do_sample=False, pad_token_id=0
    )[0, 5:].tolist()
    records = [
        r
        for batch in race_ids(
            model, [PanelSpec("ar")], ids.tolist(), RaceSettings(max_new_tokens=30, ignore_eos=True)
        )
        for r in batch
    ]
    assert [t["id"] for r in records if r["type"] == "step" for t in r["tokens"]] == wanted
    # those of windows that were outgrown are gone
    assert {key[2:4] for buffers in model.backbone._passes._free for key in buffers.passes} == {
        (1, 64)
    }


def test_buffers_serve_the_next_text(windows):
    backbone = Backbone(tiny_module("qwen3"))
    backbone.static = True
    with torch.inference_mode():
        one, two = backbone.new_cache(), backbone.new_cache()
        for cache in (one, two):
            backbone.run_layers(backbone.embed([1, 2, 3]), 0, 4, cache)
        assert one.buffers is not two.buffers
        kept = two.buffers
        del cache, two
        gc.collect()
        again = backbone.new_cache()
        assert again.buffers is kept and again.length(0) == 0 and len(kept.passes) == 1
        same = [
            backbone.run_layers(backbone.embed([4, 5]), 0, 4, cache)
            for cache in (again, ordinary_cache(backbone))
        ]
        torch.testing.assert_close(*same, rtol=0, atol=1e-5 * same[0].abs().max().item())


def ordinary_cache(backbone):
    backbone.static = False
    return backbone.new_cache()


def test_where_a_pass_cannot_be_captured_the_ordinary_ones_go_on(windows, monkeypatch):
    model = tiny_model("qwen3", addons=True)
    wanted = [
        r
        for batch in race_ids(
            model, [PanelSpec("dmtd")], [[1, 2, 3]], RaceSettings(max_new_tokens=20)
        )
        for r in batch
    ]
    model.backbone.static = True
    model.backbone._passes.refused = "operation not permitted when stream is capturing"
    # the one that a text had when it was tried
    cache = StaticCache(graphs._Buffers(model.backbone._fused))
    with torch.inference_mode():
        backbone = model.backbone
        before = backbone.run_layers(backbone.embed([1, 2]), 0, 4, cache)
        assert not isinstance(backbone.new_cache(), StaticCache)
        torch.testing.assert_close(
            before, backbone.run_layers(backbone.embed([1, 2]), 0, 4, backbone.new_cache())
        )
    got = [
        r
        for batch in race_ids(
            model, [PanelSpec("dmtd")], [[1, 2, 3]], RaceSettings(max_new_tokens=20)
        )
        for r in batch
    ]
    assert [r["tokens"] for r in got if r["type"] == "step"] == [
        r["tokens"] for r in wanted if r["type"] == "step"
    ]


def test_passes_are_there_before_anybody_waits():
    backbone = Backbone(tiny_module("qwen3"))
    assert backbone.prepare([(0, 4, 1)]) is None  # on a CPU
    backbone.static = True
    assert "of 2 kinds of pass" in backbone.prepare([(0, 4, 1), (0, 0, 1), (2, 4, 3)])
    assert {key[:3] for key in backbone._passes._free[0].passes} == {(0, 4, 1), (2, 4, 3)}
    backbone._passes.refused = "operation not permitted when stream is capturing"
    assert backbone.prepare([(0, 4, 1)]) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("name", [*ANYWHERE, "mtp-verified:tree=9"])
def test_graphs_draw_the_same_tokens(name):
    drawn = []
    for static in (False, True):
        model = tiny_model("qwen3", addons=True, split=Split(4, 1, 1))
        model.backbone = Backbone(model.backbone.module.to("cuda"))
        model.addons = {method: module.to("cuda") for method, module in model.addons.items()}
        model.backbone.static = static
        records = [
            r
            for batch in race_ids(
                model,
                [parse_panel(name)] * 2,
                [[1, 2, 3] * 3, [4, 5]],
                RaceSettings(max_new_tokens=60, ignore_eos=True),
            )
            for r in batch
        ]
        drawn.append(
            [
                [
                    t["id"]
                    for r in records
                    if r["type"] == "step" and r["panel"] == panel
                    for t in r["tokens"]
                ]
                for panel in (0, 1)
            ]
        )
        assert (model.backbone.preparing > 0) == static and (
            not static or model.backbone._passes.refused is None
        )
    assert drawn[0] == drawn[1]
