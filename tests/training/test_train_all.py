"""`train all`: every stage of it, an estimate, cancelled and resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dmtd_demo.backbone.split import Split
from dmtd_demo.errors import Cancelled, UserError
from dmtd_demo.models.addons import methods_in
from dmtd_demo.training import all_addons, magpie
from dmtd_demo.training.all_addons import STAGES, AllSettings, Plan, Speeds, planned, train_all
from tiny import tiny_model


@pytest.fixture
def model(small_tokenizer):
    ends = frozenset(range(0, len(small_tokenizer), 25)) | {small_tokenizer.eos_token_id}
    return tiny_model(
        tokenizer=small_tokenizer,
        eos=ends,
        vocab_size=len(small_tokenizer),
        max_position_embeddings=512,
    )


def test_the_minutes_decide_how_much():
    speeds = Speeds(0.005, 0.002, 0.0005, 0.4)
    sizes = [planned(speeds, AllSettings(minutes=minutes)) for minutes in (2, 20, 200)]
    for plan, minutes in zip(sizes, (2, 20, 200)):
        assert 0.7 * minutes < plan.total / 60 < 1.15 * minutes
        assert set(plan.seconds) == set(STAGES) and "minutes" in str(plan)
    assert sizes[0].conversations < sizes[1].conversations < sizes[2].conversations
    whole = planned(speeds, AllSettings(conversations=300))
    assert whole.conversations == 300 and whole.head_steps == 2000
    # questions that are there cost no draws
    assert planned(speeds, AllSettings(300, data="x.jsonl")).total < whole.total
    for wrong in ({"minutes": 0}, {"conversations": 0}):
        with pytest.raises(UserError, match="needs"):
            AllSettings(**wrong)


def test_every_stage_runs_is_cancelled_and_goes_on(model, tmp_path, monkeypatch):
    small = Plan(24, 30, 8, 20, dict.fromkeys(STAGES, 1.0))
    monkeypatch.setattr(all_addons, "planned", lambda speeds, settings: small)
    settings = AllSettings(conversations=24, batch=16)
    shares: list[int] = []
    seen: list[str] = []
    plans: list[Plan] = []

    def tell(stage: str, done: int, total: int) -> None:
        if stage:
            seen.append(stage.partition(":")[0])
        if total:
            shares.append(done)

    def cancel(stage: str, done: int, total: int) -> None:
        if stage.startswith("clp: Training"):
            raise Cancelled

    def judge(folder: Path, held: Path, seconds: float) -> dict[str, Any]:
        assert methods_in(folder) == {"mtp_heads", "clp", "gate", "adaptive"} and held.exists()
        return {"raced": True}

    with pytest.raises(Cancelled):
        train_all(model, tmp_path, settings, tell=cancel)
    done = json.loads((tmp_path / all_addons.STATE).read_text())["done"]
    assert list(done) == ["data", "heads"]
    written = (tmp_path / "data" / magpie.CONVERSATIONS).read_text()
    found = train_all(model, tmp_path, settings, tell=tell, judge=judge, planned=plans.append)
    assert (tmp_path / "data" / magpie.CONVERSATIONS).read_text() == written
    assert list(found) == list(STAGES) and found["data"] == done["data"]
    assert set(seen) == set(STAGES[2:]) and plans == [small]
    assert shares == sorted(shares) and shares[-1] == 1000
    assert found["evaluation"]["raced"] and len(found["heads"]["accuracy"]) == 4
    card = json.loads((tmp_path / "addons" / "addons.json").read_text())["addons"]
    assert all("by_threshold" in card[name]["validation"] for name in ("clp", "gate", "adaptive"))
    assert card["adaptive"]["split"] == str(Split.default(model.layers))
    assert json.loads((tmp_path / all_addons.FIGURES).read_text()) == found
    with pytest.raises(UserError, match="give another --output"):
        train_all(model, tmp_path, AllSettings(conversations=25, batch=16))
    for damaged in ("{", '{"done": {}}'):
        (tmp_path / all_addons.STATE).write_text(damaged)
        with pytest.raises(UserError, match="interrupted run"):
            train_all(model, tmp_path, settings)


def test_it_measures_before_it_estimates(model):
    speeds = all_addons.measure(model, 4)
    # as for a real vocabulary, where heads learn on a sample of it
    assert all_addons._update(tiny_model(vocab_size=40_000)) > 0
    assert all(0 < value < 5 for value in vars(speeds).values())
    with pytest.raises(UserError, match="no chat template"):
        all_addons.measure(tiny_model(), 4)
