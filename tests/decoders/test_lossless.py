"""Decoders that verify their drafts: greedy they are the oracle's text, token for token; sampled
they have its distribution.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmtd_demo.backbone.split import Split
from dmtd_demo.decoders.prompt_lookup import Lookup
from dmtd_demo.race.panels import PanelSpec
from dmtd_demo.sampling import Sampler, Sampling
from tiny import tiny_model
from written import ids_of, prompts, steps_of, tokens_of

SPEC = [PanelSpec("dmtd-spec", {"tau": tau}) for tau in range(1, 7)]
OTHERS = (
    [PanelSpec("mtp-verified", {"k": k}) for k in (1, 2, 4)]
    + [PanelSpec("prompt-lookup", {"ngram": n, "k": k}) for n, k in ((1, 1), (3, 4), (2, 16))]
    + [PanelSpec("mtp-lookup", {"ngram": n, "k": k}) for n, k in ((1, 2), (2, 6), (8, 4))]
)
DRAWS = 20_000


@pytest.mark.parametrize("panel", SPEC + OTHERS, ids=str)
@pytest.mark.parametrize("head_input", ["replace", "sum"])
def test_greedy_is_the_checkpoints_own_text(panel, head_input):
    model = tiny_model("qwen3", addons=True, split=Split(4, 1, 1, head_input))
    for prompt in prompts(6, 30):
        assert (
            ids_of(steps_of(model, panel, prompt, 60))[:60]
            == ids_of(steps_of(model, PanelSpec("ar"), prompt, 60))[:60]
        )


def easy_model(**changes):
    """Late layers alone say what all layers say: every draft of dmtd-spec is accepted.

    Repeats itself, so n-grams come again.
    """
    model = tiny_model("qwen3", addons=True, split=Split(4, 0, 1, "replace"), **changes)
    with torch.no_grad():
        for layer in model.backbone.module.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.addons["mtp_heads"].weight.zero_()
        model.addons["mtp_heads"].bias.zero_()
    return model


def test_what_always_agrees_is_always_accepted():
    model = easy_model()
    for panel, length in (
        (PanelSpec("dmtd-spec", {"tau": 4}), 4),
        (PanelSpec("mtp-verified", {"k": 3}), 4),
        (PanelSpec("prompt-lookup", {"k": 3}), 4),
        (PanelSpec("mtp-lookup", {"k": 3}), 4),
    ):
        steps = [step for step in steps_of(model, panel, [5, 6, 7], 60) if step.tokens]
        assert ids_of(steps)[:60] == ids_of(steps_of(model, PanelSpec("ar"), [5, 6, 7], 60))[:60]
        # tied embeddings and no layers: the text repeats one token
        assert {len(step.tokens) for step in steps[4:]} == {length}, panel
        origin = {"dmtd-spec": "late", "mtp-verified": "mtp"}.get(panel.decoder, "draft")
        assert [t.origin for t in steps[-1].tokens] == [origin] * (length - 1) + ["full"]
        assert [p.kind for step in steps[1:] for p in step.passes] == ["verify"] * (len(steps) - 1)


def test_heads_draft_where_the_text_does_not_repeat():
    """Heads that are right draft until the ending is known from earlier; then the text does."""
    steps = list(steps_of(easy_model(), PanelSpec("mtp-lookup", {"ngram": 6, "k": 5}), [5], 60))
    origins = [[t.origin for t in step.tokens] for step in steps if step.tokens]
    # nothing to go on from after the prefill, then the four heads
    assert origins[:3] == [["full"], ["full"], ["mtp"] * 4 + ["full"]]
    assert origins[-1] == ["draft"] * 5 + ["full"]


def test_the_cache_is_rolled_back_exactly(monkeypatch):
    """After each verified step the KV cache holds what a fresh reading of the same text puts there,
    and nothing more.
    """
    from dmtd_demo.decoders import stack as module

    model = tiny_model("qwen3", addons=True, split=Split(4, 1, 1, "sum"))
    made: list[module.Stack] = []
    original = module.Stack.__init__
    monkeypatch.setattr(
        module.Stack, "__init__", lambda self, *a: (original(self, *a), made.append(self))[0]
    )
    for panel in (
        PanelSpec("dmtd-spec", {"tau": 3}),
        PanelSpec("mtp-verified"),
        PanelSpec("prompt-lookup"),
        PanelSpec("mtp-lookup", {"ngram": 2}),
    ):
        made.clear()
        text = [3, 1, 4, 1, 5] + ids_of(steps_of(model, panel, [3, 1, 4, 1, 5], 20))
        used = made[0]
        fresh = module.Stack(model.backbone, model.split)
        fresh.full(text[:-1])  # the last token is emitted and not read yet
        for layer in range(4):
            assert used.cache.length(layer) == fresh.cache.length(layer) == len(text) - 1
            assert torch.allclose(
                used.cache._entries[layer][:, : len(text) - 1],
                fresh.cache._entries[layer][:, : len(text) - 1],
                atol=1e-4,
            )
        assert not used.skipped


def test_logprobs_are_those_of_the_computation_that_made_the_token():
    model = easy_model()
    tokens = tokens_of(steps_of(model, PanelSpec("prompt-lookup"), [5, 6, 7], 20))
    with torch.no_grad():
        expected = (
            model.backbone.module(torch.tensor([[5, 6, 7] + [t.id for t in tokens]]))
            .logits[0, 2:]
            .log_softmax(-1)
        )
    for row, token in zip(expected, tokens):
        assert token.logprob == pytest.approx(float(row[token.id]), abs=1e-4)


def chi_square(counts: torch.Tensor, wanted: torch.Tensor) -> float:
    """Pearson's statistic; every cell is expected to be large enough."""
    expected = wanted * counts.sum()
    return float(((counts - expected) ** 2 / expected).sum())


CRITICAL = 29.88  # chi-square, 7 degrees of freedom, p = 0.0001


def draw_next(rule, sampled_drafts: bool, never: tuple[int, ...] = ()) -> torch.Tensor:
    """Counts of the token after a fixed text, over DRAWS drafts of one token, by an acceptance
    rule. never: tokens that are not drafted.
    """
    torch.manual_seed(3)
    logits, draft_logits = torch.randn(2, 8), torch.randn(1, 8)
    draft_logits[:, never] = -torch.inf
    sampler = Sampler(Sampling(temperature=1.0, seed=11))
    counts = torch.zeros(8)
    fixed = int(draft_logits.argmax())
    for _ in range(DRAWS):
        draft = sampler.choose(draft_logits)[0].id if sampled_drafts else fixed
        stand, following = rule(sampler, [draft], draft_logits if sampled_drafts else None, logits)
        counts[draft if stand else following.id] += 1
    return counts


@pytest.mark.parametrize(
    "sampled_drafts,never",
    [(True, ()), (True, (0, 2, 5, 6)), (False, ())],
    ids=["drawn", "drawn from some tokens", "given"],
)
def test_the_acceptance_rule_keeps_the_verifiers_distribution(sampled_drafts, never):
    torch.manual_seed(3)
    wanted = torch.randn(2, 8)[0].softmax(-1)
    assert chi_square(draw_next(Sampler.verify, sampled_drafts, never), wanted) < CRITICAL

    # accepts by the verifier's probability alone, and draws the rest from all of it
    def wrong(sampler, drafts, draft_logits, logits):
        keep = float(torch.rand((), generator=sampler.generator)) < float(
            logits[0].softmax(-1)[drafts[0]]
        )
        return (1, sampler.choose(logits[1:])[0]) if keep else (0, sampler.choose(logits[:1])[0])

    # the same test sees a rule that is wrong
    assert chi_square(draw_next(wrong, sampled_drafts, never), wanted) > CRITICAL


@pytest.mark.slow
@pytest.mark.parametrize(
    "panel",
    [
        PanelSpec("dmtd-spec", {"tau": 3}),
        PanelSpec("mtp-verified", {"k": 2}),
        PanelSpec("prompt-lookup", {"ngram": 1, "k": 2}),
        PanelSpec("mtp-lookup", {"ngram": 1, "k": 2}),
    ],
    ids=str,
)
def test_sampled_text_has_the_checkpoints_own_distribution(panel):
    """End to end: the third token of many runs, against its exact marginal."""
    model = tiny_model(
        "qwen3", addons=True, split=Split(4, 0, 1), vocab_size=8, initializer_range=0.15
    )
    prompt = [1, 2, 1, 2]
    with torch.no_grad():
        first = model.backbone.module(torch.tensor([prompt])).logits[0, -1].softmax(-1)
        marginal = torch.zeros(8)
        for a in range(8):
            second = model.backbone.module(torch.tensor([[*prompt, a]])).logits[0, -1].softmax(-1)
            third = (
                model.backbone.module(torch.tensor([[*prompt, a, b] for b in range(8)]))
                .logits[:, -1]
                .softmax(-1)
            )
            marginal += first[a] * (second[:, None] * third).sum(0)
    counts = torch.zeros(8)
    for seed in range(DRAWS // 10):
        counts[
            ids_of(steps_of(model, panel, prompt, 3, Sampling(temperature=1.0, seed=seed)))[2]
        ] += 1
    assert chi_square(counts, marginal) < CRITICAL


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(1, 4), st.integers(1, 6))
@settings(max_examples=200, deadline=None)
def test_lookup_finds_the_latest_place_of_the_longest_known_ending(ids, longest, k):
    lookup = Lookup(longest)
    lookup.extend(ids)
    wanted: list[int] = []
    for n in range(min(longest, len(ids)), 0, -1):
        places = [i for i in range(len(ids) - n) if ids[i : i + n] == ids[-n:]]
        if places:
            wanted = list(ids)
            for i in range(k):
                wanted.append(wanted[places[-1] + n + i])
            wanted = wanted[len(ids) :]
            break
    assert lookup.draft(k) == wanted
