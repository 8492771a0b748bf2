"""Qwen3.5: recurrent layers and attention over one cache, against transformers and from scratch."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import naive
from dmtd_demo.backbone.recurrent import SOLVED_AT_ONCE, Write, chunk, step
from dmtd_demo.backbone.split import Split
from dmtd_demo.race.panels import PanelSpec
from tiny import VOCABULARY, tiny_model
from written import KIND, generated, ids_of, prompts, steps_of


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("layers", [4, 8])
def test_ar_equals_generate(layers, tied):
    model = tiny_model(KIND, tied=tied, layers=layers, seed=layers)
    for prompt in prompts(20, 40):
        assert ids_of(steps_of(model, PanelSpec("ar"), prompt, 64)) == generated(model, prompt, 64)


@pytest.mark.parametrize(
    "positions",
    [1, 2, SOLVED_AT_ONCE - 1, SOLVED_AT_ONCE, SOLVED_AT_ONCE + 1, 3 * SOLVED_AT_ONCE - 5],
)
def test_the_block_form_is_the_rule(positions):
    """Against the rule as it is written, position by position, in float64."""
    torch.manual_seed(positions)
    heads, size = 3, 8
    state = torch.randn(heads, size, size)
    q, k = torch.nn.functional.normalize(torch.randn(2, heads, positions, size), dim=-1)
    v, g = torch.randn(heads, positions, size), -torch.rand(heads, positions)
    beta = torch.rand(heads, positions)
    out, after = chunk(state, q, Write(k, v, g, beta))
    wanted = state.double()
    for i in range(positions):
        wanted = wanted * g[:, i].double().exp()[:, None, None]
        read = (k[:, i, None].double() @ wanted)[:, 0]
        change = beta[:, i, None] * (v[:, i] - read)
        wanted = wanted + k[:, i, :, None] * change[:, None]
        assert torch.allclose(
            out[:, i].double(), (q[:, i, None].double() @ wanted)[:, 0], atol=1e-4
        )
    assert torch.allclose(after.double(), wanted, atol=1e-4)
    if positions == 1:
        for in_place in (False, True):
            one, then = step(state.clone(), q, Write(k, v, g, beta), in_place)
            assert torch.allclose(one, out, atol=1e-5) and torch.allclose(then, after, atol=1e-5)


# at the larger range of the other tests rounding grows from layer to layer
MODELS = {
    layers: tiny_model(KIND, layers=layers, seed=3, initializer_range=0.1) for layers in (4, 8)
}


@given(
    st.sampled_from([4, 8]),
    st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=8),
    st.randoms(use_true_random=False),
)
@settings(max_examples=120, deadline=None)
@torch.inference_mode()
def test_runs_and_rewinds_are_a_run_from_nothing(layers, moves, rng):
    """Random passes, each rewound by a random number of its and earlier positions: the next pass
    gives what one pass over the text as it stands gives."""
    backbone = MODELS[layers].backbone
    cache, text, floor = backbone.new_cache(), [], 0
    for run, back in moves:
        if rng.random() < 0.5:
            floor = len(text)
            cache.keep(floor)
        elif rng.random() < 0.2:  # nothing will be asked for
            floor = None
            cache.keep(None)
        new = [rng.randrange(VOCABULARY) for _ in range(run)]
        out = backbone.run_layers(backbone.embed(new), 0, layers, cache)
        text += new
        fresh = backbone.run_layers(backbone.embed(text), 0, layers, backbone.new_cache())
        assert torch.allclose(out[0], fresh[0, -run:], atol=3e-4)
        if floor is not None and back and cache.states[0].floor is not None:
            kept = max(len(text) - back, floor)
            cache.crop(kept)
            del text[kept:]
        assert {cache.length(layer) for layer in range(layers)} == {len(text)}


def test_a_rewind_that_was_not_announced_is_an_error():
    backbone = MODELS[4].backbone
    cache = backbone.new_cache()
    with torch.inference_mode():
        backbone.run_layers(backbone.embed([1, 2, 3]), 0, 4, cache)
        with pytest.raises(ValueError, match="after a keep"):
            cache.crop(2)
        before = cache.nbytes()
        cache.keep(3)
        backbone.run_layers(backbone.embed([4]), 0, 4, cache)
        assert cache.nbytes() > before  # the log
        cache.keep(None)
        assert cache.nbytes() == before


GRID = [
    (early, late, head_input)
    for head_input in ("sum", "replace")
    for early in (0, 1, 2)
    for late in range(1, 4 - early)
]


@pytest.mark.parametrize("early,late,head_input", GRID)
def test_dmtd_equals_the_formula(early, late, head_input):
    model = tiny_model(KIND, split=Split(4, early, late, head_input), seed=early + 2 * late)
    module = model.backbone.module
    for tau, length in itertools.product(range(1, 7), (1, 3, 12)):
        prompt = prompts(2, length, seed=tau)[1]
        new = 2 * tau + 2
        fast = ids_of(steps_of(model, PanelSpec("dmtd", {"tau": tau}), prompt, new))
        assert fast == naive.dmtd_would_go_on(module, prompt, fast, tau, early, late, head_input)


@pytest.mark.parametrize(
    "panel",
    [PanelSpec("dmtd-spec", {"tau": tau}) for tau in (2, 3, 5)]
    + [PanelSpec("mtp-verified", {"k": k}) for k in (1, 4)]
    + [PanelSpec("prompt-lookup", {"ngram": 1, "k": 4})],
    ids=str,
)
@pytest.mark.parametrize("head_input", ["replace", "sum"])
def test_verified_decoders_write_what_ar_writes(panel, head_input):
    model = tiny_model(KIND, layers=8, addons=True, split=Split(8, 2, 3, head_input))
    for prompt in prompts(6, 30):
        wanted = ids_of(steps_of(model, PanelSpec("ar"), prompt, 60))[:60]
        assert ids_of(steps_of(model, panel, prompt, 60))[:60] == wanted


def test_every_other_decoder_runs_on_it():
    """Greedy, and by the formula where one is written down."""
    model = tiny_model(KIND, layers=8, addons=True, split=Split(8, 0, 3), seed=2)
    for prompt in prompts(3, 9):
        panel = PanelSpec("clp", {"k": 3, "threshold": 0.4})
        fast = [[t.id for t in step.tokens] for step in steps_of(model, panel, prompt, 30)]
        assert fast == naive.clp(model.backbone.module, model.addons, prompt, 3, 0.4, 30)
        for name in ("dmtd-adaptive", "mtp-heads", "mtp-gate", "mixed"):
            assert len(ids_of(steps_of(model, PanelSpec(name), prompt, 30))) >= 30
