"""The MTP head of Qwen3.5's checkpoints, against transformers' and against its formula."""

from __future__ import annotations

import math

import pytest
import torch
from test_lossless import chi_square

from dmtd_demo.backbone.split import Split
from dmtd_demo.decoders.clp import accepted_length
from dmtd_demo.decoders.drafting import Drafting
from dmtd_demo.decoders.native import WORTH, Likely, NativeText
from dmtd_demo.errors import UserError
from dmtd_demo.models import acceptance
from dmtd_demo.models.acceptance import LEVELS, AcceptancePredictor
from dmtd_demo.models.frequent import FrequentHead
from dmtd_demo.race.panels import PanelSpec
from dmtd_demo.sampling import Sampler, Sampling
from tiny import tiny_model
from written import KIND, generated, ids_of, prompts, steps_of


def states_of(model, ids: list[int]) -> torch.Tensor:
    """The backbone's states after the final norm, [n, hidden], by transformers alone."""
    with torch.no_grad():
        return model.backbone.module.model(torch.tensor([ids])).last_hidden_state[0]


@torch.no_grad()
def drafted(model, ids: list[int], k: int) -> torch.Tensor:
    """Logits [k, vocabulary] of k greedy drafts after a text, by the formula, without a cache."""
    module, head = model.backbone.module, model.addons["native_mtp"]
    states, following, rows = list(states_of(model, ids)[:-1]), list(ids[1:]), []
    for _ in range(k):
        embedded = module.model.embed_tokens(torch.tensor([following]))
        rope = module.model.rotary_emb(embedded, torch.arange(len(following)).expand(3, 1, -1))
        m = head(torch.stack(states)[None], embedded, rope)[0, -1]
        rows.append(module.lm_head(m))
        states.append(m)
        following.append(int(rows[-1].argmax()))
    return torch.stack(rows)


def test_guesses_of_all_positions_at_once_are_each_positions_drafts():
    model = tiny_model(KIND, seed=5)
    ids = prompts(2, 30, seed=2)[1]
    guesses = model.addons["native_mtp"].guesses(states_of(model, ids), torch.tensor(ids), 3)
    for t in range(len(ids) - 1):
        assert guesses[t].tolist() == drafted(model, ids[: t + 2], 3).argmax(-1).tolist()


@pytest.mark.parametrize("layers", [4, 8])
def test_drafts_are_the_formulas(layers):
    model = tiny_model(KIND, layers=layers, seed=layers)
    for ids in prompts(6, 40, seed=1):
        ids = [3, *ids]
        text = NativeText(model)
        with torch.inference_mode():
            states = states_of(model, ids)
            half = len(ids) // 2
            text.saw(states[:half])  # in two parts, as a prompt in chunks
            text.pair(ids[1 : 1 + half])
            text.saw(states[half:-1])
            m = text.pair(ids[1 + half :]) if len(ids) > 1 + half else None
            if m is None:
                continue
            choices, logits = text.drafts(m, 4, Drafting(model, Sampler()))
        wanted = drafted(model, ids, 4)
        assert torch.allclose(logits, wanted, atol=1e-4)
        assert [c.id for c in choices] == wanted.argmax(-1).tolist()
        assert text.cache.length(0) == len(ids) - 1


@torch.no_grad()
def test_its_first_draft_is_that_of_transformers_module():
    layers = pytest.importorskip("transformers.modeling_layers")
    MtpModel = getattr(layers, "MtpModel", None)
    if not hasattr(MtpModel, "forward_layer"):
        pytest.skip("this transformers has no MTP module that can be run by itself")
    model = tiny_model(KIND, seed=5)
    module, head = model.backbone.module, model.addons["native_mtp"]
    module.config.num_mtp_layers, module.config.mtp_layer_types = 1, ["full_attention"]
    other = MtpModel(module, 1)
    names = {
        "fc": "eh_proj",
        "pre_fc_norm_embedding": "enorm",
        "pre_fc_norm_hidden": "hnorm",
        "norm": "post_norm",
        "layers.0": "mtp_block",
    }
    own = {}
    for name, tensor in head.state_dict().items():
        old = next(old for old in names if name.startswith(old + "."))
        own["layers.0." + names[old] + name[len(old) :]] = tensor
    missing, unexpected = other.load_state_dict(own, strict=False)
    assert not unexpected and not [name for name in missing if name.startswith("layers.")]
    ids = prompts(2, 30)[1]
    states = states_of(model, ids)[:-1]
    from transformers import DynamicCache

    m = other.forward_layer(
        0,
        states[None],
        torch.arange(len(ids) - 1)[None],
        DynamicCache(config=other.config),
        input_ids=torch.tensor([ids[1:]]),
    )
    text = NativeText(model)
    with torch.inference_mode():
        text.saw(states)
        _, logits = text.drafts(text.pair(ids[1:]), 1, Drafting(model, Sampler()))
    assert torch.allclose(module.lm_head(m[0, -1:]), logits, atol=1e-5)


@pytest.fixture(scope="module")
def generated_texts():
    """Two models and, for each of 20 prompts, the 64 tokens that `generate` writes."""
    models = [
        tiny_model(KIND, tied=tied, layers=4 + 4 * seed, seed=seed)
        for seed, tied in ((0, True), (1, False))
    ]
    asked = prompts(20, 40)
    return [(model, [(ids, generated(model, ids, 64)) for ids in asked]) for model in models]


@pytest.mark.parametrize("k,p_min", [(1, 0.0), (2, 0.0), (4, 0.0), (6, 0.0), (6, 0.005)])
def test_verified_is_generate(generated_texts, k, p_min):
    panel = PanelSpec("mtp-native-verified", {"k": k, "p_min": p_min})
    for model, texts in generated_texts:
        for prompt, wanted in texts:
            assert ids_of(steps_of(model, panel, prompt, 64))[:64] == wanted


@pytest.mark.parametrize("head_input", ["replace", "sum"])
def test_verified_is_ar_on_a_split_of_its_own(head_input):
    model = tiny_model(KIND, split=Split(4, 1, 1, head_input))
    for prompt in prompts(4, 20):
        wanted = ids_of(steps_of(model, PanelSpec("ar"), prompt, 40))
        fast = ids_of(
            steps_of(model, PanelSpec("mtp-native-verified", {"k": 3, "p_min": 0.0}), prompt, 40)
        )
        assert fast[:40] == wanted


@pytest.mark.parametrize(
    "rule,threshold",
    [
        ("cumulative", 0.3),
        ("cumulative", 0.0),
        ("argmax", 0.5),
        ("probability", 0.2),
        ("probability", 0.0),
    ],
)
def test_unverified_is_the_formula(rule, threshold):
    """The backbone's token first, then as many drafts as the rule keeps, text for text."""
    model = tiny_model(KIND, addons=True, layers=8, seed=4)
    panel = PanelSpec("mtp-native", {"k": 3, "threshold": threshold, "rule": rule})
    kept = set()
    for prompt in prompts(5, 12):
        steps = steps_of(model, panel, prompt, 30)
        text = [*prompt, steps[0].tokens[0].id]
        for step in steps[1:]:
            state = states_of(model, text)[-1:]
            first = int(model.backbone.module.lm_head(state).argmax())
            logits = drafted(model, [*text, first], 3)
            if rule == "probability":
                likely = [float(row.softmax(-1).max()) >= threshold for row in logits]
                s = (likely + [False]).index(False)
            else:
                p = model.addons["native_clp"](state).softmax(-1)[0].tolist()
                s = accepted_length(p, 3, threshold, rule)
            kept.add(s)
            wanted = [first, *logits.argmax(-1).tolist()[:s]]
            assert [t.id for t in step.tokens] == wanted
            assert [t.origin for t in step.tokens] == ["full", *["mtp"] * s]
            text += wanted
    assert len(kept) > 1 or threshold == 0.0


def test_nothing_is_drafted_where_a_draft_would_hardly_be_kept(monkeypatch):
    """Pairs wait meanwhile: the next drafts are those of the formula."""
    # the drafts of random weights reach no other level
    monkeypatch.setattr(acceptance, "LEVELS", (0.0, *LEVELS[1:]))
    model = tiny_model(KIND, addons=True, layers=8, seed=4)
    torch.manual_seed(1)
    predictor = AcceptancePredictor(model.backbone.hidden_size).requires_grad_(False)
    predictor.outer.weight *= 100
    model.addons["acceptance"] = predictor
    panel = PanelSpec("mtp-native", {"k": 2, "threshold": 0.0, "rule": "probability"})
    embedding = model.backbone.module.get_input_embeddings().weight
    made = []
    for prompt in prompts(5, 12):
        steps = steps_of(model, panel, prompt, 30)
        text = [*prompt, steps[0].tokens[0].id]
        for step in steps[1:]:
            state = states_of(model, text)[-1]
            first = int(model.backbone.module.lm_head(state).argmax())
            chance = torch.sigmoid(predictor(torch.cat((state, embedding[first])))[0]).item()
            made.append(chance >= WORTH)
            drafts = drafted(model, [*text, first], 2).argmax(-1).tolist() if made[-1] else []
            assert [t.id for t in step.tokens] == [first, *drafts]
            text += [first, *drafts]
    assert 0.1 < sum(made) / len(made) < 0.9


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.94, 1.0])
def test_a_chance_is_the_networks_own(threshold):
    predictor = AcceptancePredictor(8).requires_grad_(False)
    state, embedded = torch.randn(2, 8)
    logits = predictor(torch.cat((state, embedded)))
    at = [level for level in LEVELS if level <= threshold]
    wanted = torch.sigmoid(logits[len(at) - 1]).item() if at else 1.0
    assert predictor.chance(state, embedded, threshold) == pytest.approx(wanted, abs=1e-6)


def test_drafting_ends_where_the_drafts_together_get_unlikely():
    model = tiny_model(KIND, layers=8, seed=4)
    text = [3, 1, 4, 1, 5, 9, 2, 6]
    likely = drafted(model, text, 5).softmax(-1).max(-1).values.cumprod(0).tolist()
    counts = []
    for p_min in (0.0, *(x * 0.999 for x in likely), likely[0] * 1.001):
        states = states_of(model, text[:-1])
        reading = NativeText(model)
        reading.saw(states)
        choices, logits = reading.drafts(
            reading.pair(text[1:]), 5, Drafting(model, Sampler()), Likely(p_min)
        )
        assert (logits is None and not choices) or len(logits) == len(choices)
        counts.append(len(choices))
    assert counts == [5, 1, 2, 3, 4, 5, 0]


def test_a_draft_says_how_probable_it_was():
    model = tiny_model(KIND, seed=6)
    panel = PanelSpec("mtp-native", {"k": 1, "threshold": 0.0, "rule": "probability"})
    step = steps_of(model, panel, [5, 6, 7], 4)[1]
    text = [5, 6, 7, steps_of(model, panel, [5, 6, 7], 1)[0].tokens[0].id, step.tokens[0].id]
    row = drafted(model, text, 1)[0].log_softmax(-1)
    assert step.tokens[1].logprob == pytest.approx(float(row[step.tokens[1].id]), abs=1e-4)


def test_what_it_needs_is_said():
    with pytest.raises(UserError, match="MTP head that reads its own drafts"):
        steps_of(tiny_model("qwen3"), PanelSpec("mtp-native-verified"), [1], 2)
    model = tiny_model(KIND)
    with pytest.raises(UserError, match="needs a length predictor"):
        steps_of(model, PanelSpec("mtp-native", {"rule": "argmax"}), [1], 2)
    assert PanelSpec("mtp-native").decoder == "mtp-native"


def test_a_prompt_in_chunks_gives_the_same_text(monkeypatch):
    model = tiny_model(KIND, layers=8)
    prompt = prompts(2, 50)[1]
    panels = [
        PanelSpec("mtp-native-verified", {"k": 2, "p_min": 0.0}),
        PanelSpec("mtp-native", {"k": 2, "threshold": 0.1, "rule": "probability"}),
    ]
    whole = [ids_of(steps_of(model, panel, prompt, 30)) for panel in panels]
    monkeypatch.setattr("dmtd_demo.decoders.stack.PREFILL_CHUNK", 16)
    assert [ids_of(steps_of(model, panel, prompt, 30)) for panel in panels] == whole


@pytest.mark.slow
def test_sampled_text_has_the_models_own_distribution():
    """End to end: the third token of many runs against its exact marginal; and a rule that keeps
    every draft fails the same test."""
    model = tiny_model(KIND, vocab_size=8, initializer_range=0.15)
    prompt, runs = [1, 2, 1, 2], 3000
    module = model.backbone.module
    with torch.no_grad():
        first = module(torch.tensor([prompt])).logits[0, -1].softmax(-1)
        marginal = torch.zeros(8)
        for a in range(8):
            second = module(torch.tensor([[*prompt, a]])).logits[0, -1].softmax(-1)
            texts = torch.tensor([[*prompt, a, b] for b in range(8)])
            third = module(texts).logits[:, -1].softmax(-1)
            marginal += first[a] * (second[:, None] * third).sum(0)

    def statistic(panel: PanelSpec) -> float:
        counts = torch.zeros(8)
        for seed in range(runs):
            sampling = Sampling(temperature=1.0, seed=seed)
            counts[ids_of(steps_of(model, panel, prompt, 3, sampling))[2]] += 1
        return chi_square(counts, marginal)

    # p = 0.0001; the second p_min stops about half of the drafts
    for p_min in (0.0, 0.2):
        assert statistic(PanelSpec("mtp-native-verified", {"k": 2, "p_min": p_min})) < 29.88
    ids = torch.tensor([1, 3, 4, 6])
    model.addons["frequent"] = FrequentHead(ids, model.backbone.head_of(ids))
    assert statistic(PanelSpec("mtp-native-verified", {"k": 2, "p_min": 0.2})) < 29.88
    del model.addons["frequent"]
    wrong = {"k": 1, "threshold": 0.0, "rule": "probability"}
    assert statistic(PanelSpec("mtp-native", wrong)) > 29.88
    assert math.isfinite(float(marginal.sum()))
