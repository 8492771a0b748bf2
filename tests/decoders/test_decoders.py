"""Every decoder against its oracle: transformers' generate, or the formula recomputed without a
cache.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import naive
from dmtd_demo.backbone.split import Split
from dmtd_demo.decoders import DECODERS
from dmtd_demo.decoders.clp import accepted_length
from dmtd_demo.decoders.mtp import checked_heads
from dmtd_demo.decoders.mtp_verified import VerifiedHeads
from dmtd_demo.decoders.stack import PREFILL_CHUNK
from dmtd_demo.errors import UserError
from dmtd_demo.race.panels import PanelSpec
from dmtd_demo.sampling import Sampler, Sampling
from tiny import tiny_model
from written import ids_of, kind_for, prompts, steps_of, tokens_of


def test_ar_equals_generate(family):
    model = tiny_model(family[0], tied=family[1])
    for prompt in prompts(20, 40):
        ids = torch.tensor([prompt])
        wanted = model.backbone.module.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=64,
            do_sample=False,
            repetition_penalty=1.0,
            pad_token_id=0,
        )[0, len(prompt) :].tolist()
        assert ids_of(steps_of(model, PanelSpec("ar"), prompt, 64)) == wanted


GRID = [
    (early, late, head_input)
    for head_input in ("sum", "replace")
    for early in (0, 1)
    for late in range(1, 4 - early)
]


@pytest.mark.parametrize("early,late,head_input", GRID)
@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_dmtd_equals_the_formula(kind, early, late, head_input):
    model = tiny_model(kind, split=Split(4, early, late, head_input), seed=early + 2 * late)
    for tau, length in itertools.product(range(1, 7), range(1, 13)):
        prompt = prompts(2, length, seed=tau)[1]
        new = 2 * tau + 2  # two cycles and into the third: the second refill follows a first one
        fast = ids_of(steps_of(model, PanelSpec("dmtd", {"tau": tau}), prompt, new))
        assert len(fast) == new and fast == naive.dmtd_would_go_on(
            model.backbone.module, prompt, fast, tau, early, late, head_input
        ), (tau, length)
        if length in (1, 12):  # token by token, each from nothing
            assert fast == naive.dmtd(
                model.backbone.module, prompt, tau, early, late, head_input, new
            ), (tau, length)


@pytest.mark.parametrize("head_input", ["sum", "replace"])
def test_dmtd_at_tau_1_equals_ar(family, head_input):
    model = tiny_model(family[0], tied=family[1], split=Split(4, 1, 2, head_input))
    for prompt in prompts(5, 20):
        assert ids_of(steps_of(model, PanelSpec("dmtd", {"tau": 1}), prompt, 40)) == ids_of(
            steps_of(model, PanelSpec("ar"), prompt, 40)
        )


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_ar_on_a_sum_checkpoint_is_the_formula_with_every_position_a_head(kind):
    model = tiny_model(kind, split=Split(4, 1, 2, "sum"))
    for prompt in prompts(4, 12):
        assert ids_of(steps_of(model, PanelSpec("ar"), prompt, 20)) == naive.dmtd(
            model.backbone.module, prompt, 1, 1, 2, "sum", 20
        )


@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize("threshold", [0.0, 0.35, 0.6, 0.9])
def test_clp_equals_the_formula(k, threshold):
    model = tiny_model("qwen3", addons=True, seed=k)
    for prompt in prompts(3, 9, seed=k):
        fast = [
            [t.id for t in step.tokens]
            for step in steps_of(
                model, PanelSpec("clp", {"k": k, "threshold": threshold}), prompt, 30
            )
        ]
        slow = naive.clp(model.backbone.module, model.addons, prompt, k, threshold, 30)
        assert fast == slow
        if threshold == 0.0:
            assert all(len(step) == k + 1 for step in fast[1:])


def test_clp_steps_say_what_the_predictor_held_probable():
    model = tiny_model("qwen3", addons=True, seed=2)
    for step in steps_of(model, PanelSpec("clp", {"k": 2, "threshold": 0.3}), [1, 2, 3], 20)[1:]:
        assert len(step.lengths) == 3 and sum(step.lengths) == pytest.approx(1, abs=1e-5)
        assert len(step.tokens) == 1 + accepted_length(step.lengths, 2, 0.3, "cumulative")


@pytest.mark.parametrize(
    "panel",
    [PanelSpec("ar"), PanelSpec("dmtd", {"tau": 3}), PanelSpec("clp", {"threshold": 0.4})],
    ids=str,
)
def test_a_prompt_read_in_chunks_gives_the_same_text(panel, monkeypatch):
    model = tiny_model("qwen3", addons=True, split=Split(4, 1, 1, "sum"))
    prompt = prompts(2, 50)[1]
    whole = ids_of(steps_of(model, panel, prompt, 20))
    monkeypatch.setattr("dmtd_demo.decoders.stack.PREFILL_CHUNK", 16)
    steps = steps_of(model, panel, prompt, 20)
    assert ids_of(steps) == whole
    assert [len(step.tokens) for step in steps[:4]] == [0, 0, 0, 1]
    assert sum(runs[0][2] for step in steps[:4] for runs in [step.passes[0].runs]) == 50
    assert PREFILL_CHUNK > 50


def test_origins_passes_and_spans_are_the_methods():
    model = tiny_model("qwen3", layers=12, split=Split(12, 0, 3), addons=True)
    steps = steps_of(model, PanelSpec("dmtd", {"tau": 4}), [1, 2, 3], 9)
    assert [t.origin for t in tokens_of(steps)] == [
        "full",
        "full",
        "late",
        "late",
        "late",
        "full",
        "late",
        "late",
        "late",
    ]
    kinds = [(p.kind, p.runs) for step in steps for p in step.passes]
    assert kinds[0] == ("prefill", ((0, 12, 3),))
    assert kinds[1] == ("full", ((0, 12, 1),))  # nothing to refill yet
    assert kinds[2] == ("late", ((9, 12, 1),))
    assert kinds[5] == ("full", ((0, 9, 4), (9, 12, 1)))  # the example of the decoder contract
    clp = steps_of(model, PanelSpec("clp", {"k": 3, "threshold": 0.0}), [1, 2, 3], 9)
    assert [[t.origin for t in step.tokens] for step in clp] == [
        ["full"],
        ["full", "mtp", "mtp", "mtp"],
        ["full", "mtp", "mtp", "mtp"],
    ]
    assert [p.runs for step in clp for p in step.passes] == [
        ((0, 12, 3),),
        ((0, 12, 1),),
        ((0, 12, 4),),
    ]


def test_early_layers_run_in_late_passes():
    model = tiny_model("qwen2", layers=6, split=Split(6, 2, 1))
    steps = steps_of(model, PanelSpec("dmtd", {"tau": 2}), [5], 5)
    assert [p.runs for step in steps[2:4] for p in step.passes] == [
        ((0, 2, 1), (5, 6, 1)),
        ((0, 2, 1), (2, 5, 2), (5, 6, 1)),
    ]


def test_logprobs_and_alternatives_are_the_plain_softmax():
    model = tiny_model("qwen3", addons=True)
    prompt = [3, 1, 4]
    for sampling in (Sampling(), Sampling(temperature=1.3, top_k=5, seed=3)):
        decoder = DECODERS["ar"]()
        steps = decoder.steps(model, prompt, Sampler(sampling, top=3))
        ids = list(prompt)
        for _ in range(10):
            (token,) = next(steps).tokens
            with torch.no_grad():
                expected = model.backbone.module(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
            assert token.logprob == pytest.approx(float(expected[token.id]), abs=1e-4)
            best = expected.exp().topk(3)
            assert [i for i, _ in token.top] == best.indices.tolist()
            assert [p for _, p in token.top] == pytest.approx(best.values.tolist(), abs=1e-4)
            ids.append(token.id)


@pytest.mark.parametrize("name", DECODERS)
def test_sampling_follows_its_seed(name):
    model = tiny_model(kind_for(name), addons=True, split=Split(4, 0, 1))
    hot = [
        ids_of(steps_of(model, PanelSpec(name), [7, 8], 40, Sampling(temperature=1.5, seed=seed)))
        for seed in (1, 1, 2)
    ]
    assert hot[0] == hot[1] != hot[2]


@pytest.mark.parametrize("name", DECODERS)
def test_top_k_1_is_greedy(name):
    model = tiny_model(kind_for(name), addons=True, split=Split(4, 0, 1))
    greedy, forced = (
        ids_of(steps_of(model, PanelSpec(name), [7, 8], 40, s))
        for s in (Sampling(), Sampling(temperature=2.0, top_k=1))
    )
    assert greedy == forced


# its tokens are not the backbone's
@pytest.mark.parametrize("name", [name for name in DECODERS if name != "mtp-heads"])
@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_below_float32_a_token_is_within_one_unit_of_the_top_logit(name, dtype):
    """Teacher-forced by the formula in the same dtype: a token may differ from its argmax only
    where the logits round together.
    """
    split = Split(4, 1, 1)
    # at the larger one of the other tests rounding grows from layer to layer
    model = tiny_model(kind_for(name), dtype=dtype, split=split, addons=True, initializer_range=0.1)
    prompt = [9, 8, 7, 6]
    tau = 3
    # caution 1: the backbone alone
    careful = (
        {"threshold": 1.0} if "threshold" in DECODERS[name].Options.__dataclass_fields__ else {}
    )
    # of the cycles of `mixed`, whose own threshold is for its MTP tokens
    model.addon_facts["adaptive"]["threshold"] = 1.0
    panel = PanelSpec(name, {"tau": tau} if name == "dmtd" else careful)
    ids = ids_of(steps_of(model, panel, prompt, 30))
    text = prompt + ids
    heads = [i < 4 or name != "dmtd" or (i - 4) % tau == 0 for i in range(len(text))]
    logits = model.backbone.module.lm_head(
        naive.hidden(model.backbone.module, text, heads, 1, 1, "replace")
    ).float()
    for i, token in enumerate(ids):
        row = logits[len(prompt) - 1 + i]
        top = float(row.max())
        unit = torch.finfo(dtype).eps * 2.0 ** torch.tensor(abs(top)).log2().floor().item()
        assert top - float(row[token]) <= unit, (i, token)


@given(
    st.lists(st.floats(0.001, 1), min_size=2, max_size=7),
    st.integers(1, 6),
    st.floats(0, 1),
    st.sampled_from(["cumulative", "argmax"]),
)
@settings(max_examples=300, deadline=None)
def test_accepted_length_is_the_definition(weights, k, threshold, rule):
    total = sum(weights)
    p = [w / total for w in weights]
    k = min(k, len(p) - 1)
    s = accepted_length(p, k, threshold, rule)
    folded = p[:k] + [sum(p[k:])]
    if rule == "argmax":
        assert folded[s] == max(folded)
    elif threshold == 1:
        assert s == 0
    else:
        fits = [i for i in range(k + 1) if i == 0 or sum(folded[i:]) >= threshold - 1e-12]
        certain = [i for i in range(k + 1) if i == 0 or sum(folded[i:]) >= threshold + 1e-12]
        assert max(certain) <= s <= max(fits)


def test_more_caution_never_accepts_more():
    p = [0.3, 0.1, 0.2, 0.15, 0.25]
    lengths = [accepted_length(p, 4, t / 20, "cumulative") for t in range(21)]
    assert lengths == sorted(lengths, reverse=True) and lengths[0] == 4 and lengths[-1] == 0
    # at 1 the backbone alone, however the probabilities round
    assert accepted_length([0.0, 0.0, 1.0], 2, 1.0, "cumulative") == 0
    assert accepted_length([0.0, 0.0, 1.0], 2, 0.99, "cumulative") == 2


def test_a_model_without_addons_says_what_clp_needs():
    with pytest.raises(UserError, match="needs MTP heads"):
        steps_of(tiny_model(), PanelSpec("clp"), [1], 2)


def test_more_heads_than_trained_is_an_error():
    with pytest.raises(UserError, match="from 1 to 4"):
        steps_of(tiny_model(addons=True), PanelSpec("clp", {"k": 5}), [1], 2)


@pytest.mark.parametrize(
    "quantization,accuracy,heads",
    [
        ("none", [0.1], 4),
        ("fast-int4", None, 3),
        ("fast-int4", [0.9, 0.8, 0.7, 0.6], 3),
        ("fast-int4", [0.4, 0.2, 0.19, 0.3], 2),
        ("fast-int4", [0.1, 0.1, 0.1, 0.1], 1),
    ],
)
def test_heads_whose_drafts_cost_more_than_they_bring_are_not_checked(
    quantization, accuracy, heads
):
    model = tiny_model(addons=True)
    model.quantization = quantization
    model.addon_facts["mtp_heads"] = {} if accuracy is None else {"accuracy": accuracy}
    assert VerifiedHeads.defaults(model).k == checked_heads(model) == heads


@pytest.mark.parametrize("split", ["E0D4", "E3D1", "E0D0", "x", "E9999D1"])
def test_a_split_that_does_not_fit_is_an_error(split):
    with pytest.raises(UserError, match="split needs"):
        steps_of(tiny_model(), PanelSpec("dmtd", {"split": split}), [1], 2)
