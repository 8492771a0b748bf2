"""Decoders that accept without verifying, against their formulas recomputed over the whole text
with no cache.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import naive
from dmtd_demo.backbone.split import Split
from dmtd_demo.decoders import DECODERS
from dmtd_demo.decoders.clp import accepted_length
from dmtd_demo.decoders.mtp_gate import open_gates
from dmtd_demo.errors import UserError
from dmtd_demo.models.addons import ADDONS
from dmtd_demo.race.panels import PanelSpec
from dmtd_demo.race.race import race_ids
from dmtd_demo.race.settings import RaceSettings
from tiny import tiny_model
from written import kind_for, prompts, steps_of, tokens_of

NEW = 40


def hidden(model, text: list[int], heads: list[bool]) -> torch.Tensor:
    """The last position's hidden state, [1, hidden]; heads: m of each position."""
    split = model.split
    return naive.hidden(
        model.backbone.module, text, heads, split.early, split.late, split.head_input
    )[-1:]


def argmax(model, states: torch.Tensor) -> list[int]:
    return model.backbone.module.lm_head(states).argmax(-1).tolist()


def pairs(steps) -> list[tuple[int, str]]:
    return [(t.id, t.origin) for t in tokens_of(steps)][:NEW]


@pytest.mark.parametrize("k", [1, 3, 4])
@pytest.mark.parametrize("name", ["mtp-heads", "mtp-gate"])
@torch.inference_mode()
def test_mtp_baselines_equal_their_formulas(name, k):
    model = tiny_model("qwen3", addons=True, split=Split(4, 1, 2))
    lengths = set()
    for prompt in prompts(4, 20):
        text = prompt + argmax(model, hidden(model, prompt, [True] * len(prompt)))
        wanted = [(text[-1], "full")]
        while len(wanted) < NEW:
            h = hidden(model, text, [True] * len(text))
            guesses = argmax(model, model.addons["mtp_heads"](h)[0])
            if name == "mtp-heads":
                new = [(argmax(model, model.addons["head0"](h)[0])[0], "mtp")] + [
                    (i, "mtp") for i in guesses[:k]
                ]
            else:
                chances = torch.sigmoid(model.addons["gate"](h))[0, :k].tolist()
                accepted = 0
                while accepted < k and chances[accepted] >= 0.5:
                    accepted += 1
                new = [(argmax(model, h)[0], "full")] + [(i, "mtp") for i in guesses[:accepted]]
                lengths.add(accepted)
            wanted += new
            text += [i for i, _ in new]
        assert pairs(steps_of(model, PanelSpec(name, {"k": k}), prompt, NEW)) == wanted[:NEW]
    assert name == "mtp-heads" or len(lengths) > 1  # the gate decides, and not always alike


@pytest.mark.parametrize("head_input", ["replace", "sum"])
@pytest.mark.parametrize("early", [0, 1])
@pytest.mark.parametrize("name", ["dmtd-adaptive", "mixed"])
@torch.inference_mode()
def test_predicted_cycles_equal_the_formula(name, early, head_input):
    model = tiny_model("qwen3", addons=True, split=Split(4, early, 1, head_input), seed=early)
    cycles = set()
    for prompt in prompts(4, 20):
        text, heads = list(prompt), [True] * len(prompt)
        text += argmax(model, hidden(model, text, heads))
        wanted = [(text[-1], "full")]
        while len(wanted) < NEW:
            # MTP tokens that no pass has read, and the cycle's head
            heads += [True] * (len(text) - len(heads))
            h = hidden(model, text, heads)
            late = accepted_length(
                model.addons["adaptive"](h).softmax(-1)[0].tolist(), 5, 0.5, "cumulative"
            )
            new = [(argmax(model, h)[0], "full")]
            for _ in range(late):
                heads.append(False)
                h = hidden(model, text + [t for t, _ in new], heads)
                new.append((argmax(model, h)[0], "late"))
            if late and name == "mixed":
                s = accepted_length(
                    model.addons["mixed"].lengths(h).softmax(-1)[0].tolist(), 2, 0.3, "cumulative"
                )
                new += [(t, "mtp") for t in argmax(model, model.addons["mixed"].heads(h)[0])[:s]]
            cycles.add(len(new))
            wanted += new
            text += [t for t, _ in new]
        options = {"threshold": 0.3} if name == "mixed" else {}  # of its MTP tokens alone
        assert pairs(steps_of(model, PanelSpec(name, options), prompt, NEW)) == wanted[:NEW]
    assert len(cycles) > 2  # the predictor decides, and not always alike


def test_sizes_are_the_papers():
    """At hidden size 1536 (Qwen2.5-1.5B): CLP and the gate of the CLP paper."""
    sizes = {
        (method, k): sum(p.numel() for p in ADDONS[method](1536, k).parameters())
        for method, k in (("clp", 2), ("clp", 4), ("gate", 4))
    }
    assert sizes == {("clp", 2): 4_611, ("clp", 4): 7_685, ("gate", 4): 986_244}


@given(st.lists(st.floats(0, 1), max_size=6), st.integers(1, 6), st.floats(0, 1))
@settings(max_examples=200, deadline=None)
def test_gates_are_open_up_to_the_first_closed_one(probabilities, k, threshold):
    s = open_gates(probabilities, k, threshold)
    if threshold == 1:
        assert s == 0
        return
    assert s <= min(k, len(probabilities)) and all(p >= threshold for p in probabilities[:s])
    assert s == min(k, len(probabilities)) or probabilities[s] < threshold


def test_a_longer_cycle_than_the_predictor_knows_is_an_error():
    with pytest.raises(UserError, match="from 1 to 6"):
        steps_of(
            tiny_model(addons=True, split=Split(4, 0, 1)),
            PanelSpec("dmtd-adaptive", {"max": 7}),
            [1],
            2,
        )


@pytest.mark.parametrize("name", DECODERS)
def test_no_position_is_read_past_the_context(name, monkeypatch):
    """A request that fills the context to its last token, with a text that invites long drafts."""
    model = tiny_model(
        kind_for(name), addons=True, split=Split(4, 0, 1), max_position_embeddings=48
    )
    furthest = []
    append = type(model.backbone.new_cache()).append
    monkeypatch.setattr(
        "dmtd_demo.backbone.cache.KVCache.append",
        lambda self, new, layer: (
            furthest.append(self.length(layer) + new.shape[0]),
            append(self, new, layer),
        )[1],
    )
    records = [
        r
        for batch in race_ids(
            model, [PanelSpec(name)], [[1, 2, 3] * 3], RaceSettings(max_new_tokens=39, audit=False)
        )
        for r in batch
    ]
    assert records[-1]["tokens"] == 39 and records[-1]["stop"] == "length"
    assert max(furthest) <= 48
