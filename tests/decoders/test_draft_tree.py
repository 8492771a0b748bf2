"""Trees of drafts: which drafts they hold, and what verified decoders write with them."""

from __future__ import annotations

import itertools

import pytest
import torch

from dmtd_demo.backbone.split import Split
from dmtd_demo.decoders.draft_tree import FOLLOWERS, WIDE, tree_of_drafts, tree_of_heads
from dmtd_demo.decoders.drafting import Drafting
from dmtd_demo.decoders.native import NativeText
from dmtd_demo.errors import ModelError, UserError
from dmtd_demo.models.fed_back import FedBackHead
from dmtd_demo.race.panels import PanelSpec, make_decoder
from dmtd_demo.race.race import race_ids
from dmtd_demo.race.settings import RaceSettings
from dmtd_demo.sampling import Sampler, Sampling
from tiny import ATTENTION, tiny_model
from written import KIND, ids_of, prompts, steps_of

FEW = 12  # tokens of the vocabulary
PANELS = [
    PanelSpec("mtp-verified", {"k": 4, "tree": 15}),
    PanelSpec("mtp-verified", {"k": 2, "tree": 3}),
    PanelSpec("mtp-native-verified", {"k": 4, "p_min": 0.0, "tree": 15}),
    PanelSpec("mtp-native-verified", {"k": 3, "p_min": 0.05, "tree": 7}),
    PanelSpec("mtp-native-verified", {"k": 1, "p_min": 0.0, "tree": 2}),
]


@torch.no_grad()
def model_with_heads(family: str = "qwen3", **changes):
    """With heads of both kinds, of so few tokens that drafts are right now and then."""
    model = tiny_model(family, addons=True, **{"vocab_size": FEW, **changes})
    torch.manual_seed(3)
    head = FedBackHead(model.backbone, model.backbone.config.intermediate_size)
    for p in head.parameters():
        p.normal_(std=0.2)
    head.norms["after"] *= 8
    model.addons["native_mtp"] = head.eval().requires_grad_(False)
    return model


def asked(count: int, longest: int) -> list[list[int]]:
    return [[i % FEW for i in ids] for ids in prompts(count, longest)]


def probabilities(model, states: torch.Tensor) -> torch.Tensor:
    return model.backbone.logits(states).softmax(-1)


@torch.inference_mode()
@pytest.mark.parametrize("size", [1, 2, 7, 15])
@pytest.mark.parametrize("k", [1, 3])
def test_a_tree_of_heads_holds_the_likeliest_branches(k, size):
    model = model_with_heads()
    states = model.addons["mtp_heads"](torch.randn(1, 32), k)[0]
    tree = tree_of_heads(states, size, Drafting(model, Sampler()))
    best = probabilities(model, states).topk(FOLLOWERS)
    wanted = {}
    for depth in range(1, k + 1):
        for ranks in itertools.product(range(FOLLOWERS), repeat=depth):
            chance = 1.0
            for i, rank in enumerate(ranks):
                chance *= best.values[i, rank].item()
            wanted[ranks] = chance
    kept = sorted(wanted, key=wanted.__getitem__, reverse=True)[:size]
    assert {node.ranks for node in tree.nodes} == set(kept)
    for node, parent in zip(tree.nodes, tree.parents):
        assert node.chance == pytest.approx(wanted[node.ranks], rel=1e-4)
        assert node.id == best.indices[len(node.ranks) - 1, node.ranks[-1]]
        before = None if parent < 0 else tree.nodes[parent]
        assert (before.ranks if before else ()) == node.ranks[:-1] and node.parent is before


@torch.inference_mode()
@pytest.mark.parametrize("p_min,size", [(0.0, 15), (0.0, 4), (0.1, 15)])
def test_a_tree_of_drafts_is_what_the_head_drafts_on_each_branch(p_min, size):
    model = model_with_heads()
    drafting, text = Drafting(model, Sampler()), NativeText(model)
    ids = [(5 * i) % FEW for i in range(12)]
    text.saw(torch.randn(11, 32))
    m = text.pair(ids[:11])
    tree = tree_of_drafts(text, m, 3, size, p_min, drafting)
    assert 0 < len(tree.nodes) <= size and text.cache.length(0) == 11
    if not p_min:
        assert len(tree.nodes) == size
    for node in tree.nodes:
        branch, chance, state = [], 1.0, m
        at = node
        while at is not None:
            branch.insert(0, at)
            at = at.parent
        for i, draft in enumerate(branch):
            best = probabilities(model, state)[0].topk(FOLLOWERS)
            assert draft.id == best.indices[draft.ranks[-1]]
            chance *= best.values[draft.ranks[-1]].item()
            assert draft.chance == pytest.approx(chance, rel=1e-3) and draft.chance >= p_min
            if i + 1 < len(branch):
                embedded = model.backbone.embed([draft.id])[0]
                state = text.head.run(state, embedded, text.cache)
        text.cache.crop(11)
        row = tree.logits[node.row].softmax(-1)
        assert row[node.entry].item() == pytest.approx(
            node.chance / (node.parent.chance if node.parent else 1), rel=1e-3
        )
    deep = [len(node.ranks) for node in tree.nodes]
    assert max(deep) <= 3 and deep.count(2) <= WIDE * FOLLOWERS


@pytest.mark.parametrize("panel", PANELS, ids=str)
@pytest.mark.parametrize("family", ATTENTION)
@pytest.mark.parametrize("head_input", ["replace", "sum"])
@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(temperature=0.8, top_p=0.9, seed=3)], ids=["greedy", "drawn"]
)
def test_the_text_is_ar_s(panel, family, head_input, sampling):
    """Drawn text too: the backbone draws each token, and drafts only spare it passes."""
    model = model_with_heads(family, split=Split(4, 1, 1, head_input))
    most = 0
    for prompt in asked(4, 30):
        steps = steps_of(model, panel, prompt, 60, sampling)
        wanted = ids_of(steps_of(model, PanelSpec("ar"), prompt, 60, sampling))[:60]
        assert ids_of(steps)[:60] == wanted
        most = max([most, *(len(step.tokens) for step in steps)])
        for step in steps:
            origins = [token.origin for token in step.tokens]
            assert origins == ["mtp"] * (len(origins) - 1) + ["full"] * bool(origins)
            assert len(step.stood) == max(len(origins) - 1, 0) and len(step.tree) <= 15
            assert [step.tree[i] for i in step.stood] == [-1, *step.stood][: len(step.stood)]
    assert most > 1


def test_records_are_the_heads_own(panel=PANELS[0]):
    """As without a tree: a draft's log-probability is its head's."""
    model = model_with_heads()
    kept = 0
    for prompt in asked(4, 30):
        steps = [step for step in steps_of(model, panel, prompt, 40) if step.tokens]
        text = list(prompt)
        for step in steps:
            if len(step.tokens) > 1:
                with torch.inference_mode():
                    ids = torch.tensor([text[:-1]])
                    hidden = model.backbone.module.model(ids).last_hidden_state[0, -1:]
                    states = model.addons["mtp_heads"](hidden, 4)[0]
                    rows = probabilities(model, states).log()
                for row, token in zip(rows, step.tokens[:-1]):
                    assert token.logprob == pytest.approx(row[token.id].item(), abs=1e-3)
                    kept += 1
            text += [token.id for token in step.tokens]
    assert kept


def test_the_context_ends_where_it_ends():
    model = model_with_heads(max_position_embeddings=24)
    for panel in PANELS[::2]:
        prompt = asked(2, 12)[1]
        wanted = ids_of(steps_of(model, PanelSpec("ar"), prompt, 12))
        assert ids_of(steps_of(model, panel, prompt, 12))[:12] == wanted[:12]


@pytest.mark.parametrize("panel", PANELS, ids=str)
@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(temperature=0.8)], ids=["greedy", "drawn"]
)
def test_heads_that_are_damaged_are_told(panel, sampling):
    """Whether or not a draft would have stood."""
    model = model_with_heads()
    with torch.no_grad():
        for name in ("mtp_heads", "native_mtp"):
            for p in model.addons[name].parameters():
                p.fill_(torch.nan)
    with pytest.raises(ModelError, match="finite numbers"):
        steps_of(model, panel, asked(4, 30)[1], 12, sampling)


def test_a_step_that_is_cut_shows_what_it_emitted():
    model = model_with_heads()
    for new in range(2, 14):
        records = [
            record
            for batch in race_ids(
                model, [PANELS[0]], [asked(4, 30)[3]], RaceSettings(max_new_tokens=new)
            )
            for record in batch
            if record["type"] == "step" and "tree" in record
        ]
        for record in records:
            kept = [token["origin"] for token in record["tokens"]].count("mtp")
            assert len(record["stood"]) == kept and len(record["tree"]) == 15


def test_recurrent_layers_take_no_tree():
    model = tiny_model(KIND)
    panel = PanelSpec("mtp-native-verified", {"tree": 4})
    with pytest.raises(UserError, match="the option tree needs layers of attention alone"):
        steps_of(model, panel, [1, 2, 3], 8)


def test_layers_that_are_not_the_apps_own_take_no_tree(monkeypatch):
    model = model_with_heads()
    decoder = make_decoder(PANELS[0])
    decoder.resolve(decoder.options, model)
    # nothing is computed before a race: a fork may still come (server/zero.py)
    assert "_fused" not in vars(model.backbone)
    monkeypatch.setattr("dmtd_demo.backbone.qwen.can_fuse", lambda parts: False)
    with pytest.raises(UserError, match="needs layers that the app runs by itself"):
        steps_of(model, PANELS[0], [1, 2, 3], 8)
