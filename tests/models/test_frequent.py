"""Drafts from the most frequent tokens alone: the list, the small LM head, and the same texts."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dmtd_demo.decoders.drafting import Drafting
from dmtd_demo.decoders.native import usual_k
from dmtd_demo.errors import UserError
from dmtd_demo.models import frequent
from dmtd_demo.models.addons import load_frequent
from dmtd_demo.models.frequent import FrequentHead
from dmtd_demo.race.panels import PanelSpec
from dmtd_demo.sampling import Sampler, Sampling
from tiny import tiny_model
from written import KIND, ids_of, prompts, steps_of, tokens_of


def with_list(model, entries: int = 40, seed: int = 4):
    """Give a model a list of some of its tokens; returns their ids."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randperm(model.backbone.vocab_size, generator=generator)[:entries]
    model.addons["frequent"] = FrequentHead(ids, model.backbone.head_of(ids))
    return ids


VERIFIED = [
    (KIND, PanelSpec("mtp-native-verified", {"k": 3})),
    ("qwen3", PanelSpec("mtp-verified", {"k": 3})),
    ("qwen3", PanelSpec("mtp-lookup", {"ngram": 2, "k": 3})),
]


@pytest.mark.parametrize("family,panel", VERIFIED, ids=str)
def test_verified_text_is_ar_s_and_its_drafts_are_listed(family, panel):
    model = tiny_model(family, addons=True, seed=7)
    wanted = [
        ids_of(steps_of(model, PanelSpec("ar"), prompt, 60))[:60] for prompt in prompts(6, 30)
    ]
    listed = set(with_list(model).tolist())
    drafted = 0
    for prompt, text in zip(prompts(6, 30), wanted):
        tokens = tokens_of(steps_of(model, panel, prompt, 60))
        assert [token.id for token in tokens][:60] == text
        accepted = {token.id for token in tokens if token.origin == "mtp"}
        assert accepted <= listed
        drafted += len(accepted)
    assert drafted
    # every token counts: some of those written are not listed
    assert not {i for text in wanted for i in text} <= listed


def test_probabilities_are_over_the_listed_tokens():
    model = tiny_model(KIND)
    ids = with_list(model)
    states = torch.randn(3, 32, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        whole = model.backbone.logits(states)
        greedy = Drafting(model, Sampler(top=3))
        choices, logits = greedy.choose(states)
        torch.testing.assert_close(logits, whole[:, ids])
        for choice, row in zip(choices, whole[:, ids]):
            assert choice.id == ids[row.argmax()]
            assert choice.logprob == pytest.approx(float(row.log_softmax(-1).max()), abs=1e-5)
            best = row.topk(3)
            assert [i for i, _ in choice.top] == ids[best.indices].tolist()
            assert choice.top[0][1] == pytest.approx(math.exp(choice.logprob), abs=1e-5)
        # at a temperature in the places of the whole vocabulary, as the rejection rule reads them
        drawn, logits = Drafting(model, Sampler(Sampling(temperature=1.0))).choose(states)
        assert logits.shape == whole.shape
        torch.testing.assert_close(logits[:, ids], whole[:, ids])
        assert (logits.isfinite().sum(-1) == len(ids)).all()
        assert {choice.id for choice in drawn} <= set(ids.tolist())


def test_without_a_list_the_whole_vocabulary_drafts():
    model = tiny_model(KIND)
    states = torch.randn(2, 32)
    with torch.inference_mode():
        choices, logits = Drafting(model, Sampler()).choose(states)
        assert torch.equal(logits, model.backbone.logits(states))
        assert choices == Sampler().choose(logits)


def test_cheaper_drafts_are_worth_more_of_them():
    model = tiny_model(KIND, vocab_size=4096, layers=8)
    assert usual_k(model) == 1
    with_list(model, 64)
    assert usual_k(model) == 3


def test_a_list_is_read_strictly(tmp_path: Path, monkeypatch):
    model = tiny_model("qwen3")
    good = torch.arange(96, 16, -1, dtype=torch.int32)
    card = {"schema": 1, "base_model": "tiny", "hidden_size": 32, "addons": {"frequent": {}}}

    def listed(entries, **tensors) -> FrequentHead | None:
        card["addons"]["frequent"] = {"entries": entries}
        (tmp_path / "addons.json").write_text(json.dumps(card))
        save_file(tensors, tmp_path / "frequent.safetensors")
        return load_frequent(tmp_path, model.backbone)

    (tmp_path / "addons.json").write_text(json.dumps(card | {"addons": {}}))
    assert load_frequent(tmp_path, model.backbone) is None
    for entries in (None, 10, 98, True, 64.0):
        with pytest.raises(UserError, match="needs entries, a whole number from 64 to 97"):
            listed(entries, ids=good)
    with pytest.raises(UserError, match=r"needs ids, \[79\], int32, and nothing else"):
        listed(79, ids=good)
    with pytest.raises(UserError, match="int64"):
        listed(80, ids=good.long())
    with pytest.raises(UserError, match="beside more"):
        listed(80, ids=good, more=good.clone())
    with pytest.raises(UserError, match="80 different ids from 0 to 96; it has 80 from 18 to 97"):
        listed(80, ids=good + 1)
    with pytest.raises(UserError, match="it has 79 from 18 to 96"):
        listed(80, ids=good.clamp(min=18))
    # the first of them, in whole blocks
    head = listed(80, ids=good)
    assert head.names == good[:64].tolist()
    monkeypatch.setattr(frequent, "ENTRIES", 65)
    assert listed(80, ids=good).names == good[:64].tolist()
    (tmp_path / "frequent.safetensors").unlink()
    with pytest.raises(UserError, match="needs frequent.safetensors"):
        load_frequent(tmp_path, model.backbone)
