"""`bench` where it is asked for few tokens."""

from __future__ import annotations

import pytest
import torch

from dmtd_demo.backbone.qwen import Backbone
from dmtd_demo.decoders import DECODERS
from dmtd_demo.errors import UserError
from dmtd_demo.measure.bench import Timed
from dmtd_demo.measure.limits import PassCosts
from tiny import tiny_model


def test_fewer_new_tokens_than_a_cycle_has_are_timed_all_the_same() -> None:
    model = tiny_model()
    costs = PassCosts(model, [5, 6, 7], 2)
    options = DECODERS["dmtd"].defaults(model)
    assert options.tau > 2
    costs.walk("ar", None, {})
    costs.walk("dmtd", options, {})
    limit = costs.limit("dmtd", options, {})
    assert limit is not None and limit > 0


def test_steps_near_the_end_of_the_context_are_timed_anew_after_the_prompt() -> None:
    model = tiny_model(addons=True)
    costs = PassCosts(model, [5] * (model.context - 6), 6)
    options = DECODERS["clp"].defaults(model)
    costs.walk("ar", None, {})
    costs.walk("clp", options, {"1": 1, "4": 2})
    limit = costs.limit("clp", options, {"1": 1, "4": 2})
    assert limit is not None and limit > 0
    # a step that no room was for has no time, and so the decoder no limit
    assert costs.limit("clp", options, {"5": 1}) is None


def test_cycles_are_timed_within_the_context_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(max_position_embeddings=64)
    options = DECODERS["dmtd"].Options(tau=4, split="E0D1")
    read: list[int] = []
    run = Backbone.run_layers

    def noted(self, h, start, stop, cache, **more):
        read.append(cache.length(start) + h.shape[1])
        return run(self, h, start, stop, cache, **more)

    monkeypatch.setattr(Backbone, "run_layers", noted)
    for new, limited in ((9, True), (7, False)):
        costs = PassCosts(model, [5] * (64 - new), new)
        costs.walk("ar", None, {})
        costs.walk("dmtd", options, {})
        assert (costs.limit("dmtd", options, {}) is not None) == limited
    assert max(read) == 64


def test_tokens_that_all_come_at_once_have_no_speed() -> None:
    timed = Timed()
    for ids in ([5, 6], [1, 2, 3]):
        timed.put(torch.tensor(ids))
    with pytest.raises(UserError, match="more --new tokens than may come at once; all 3 of them"):
        timed.end()
