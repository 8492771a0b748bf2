"""Sampling: functions of logits with an explicit generator."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import TopKLogitsWarper, TopPLogitsWarper

from dmtd_demo.errors import ModelError, UserError
from dmtd_demo.sampling import Sampler, Sampling, truncated

# no ties: either of two equals may stay
LOGITS = st.lists(st.integers(-80, 80).map(lambda n: n / 10), min_size=3, max_size=12, unique=True)


@given(LOGITS, st.floats(0.1, 3), st.integers(0, 14), st.floats(0.05, 1))
@settings(max_examples=200, deadline=None)
def test_truncation_keeps_what_transformers_keeps(values, temperature, k, p):
    logits = torch.tensor([values], dtype=torch.float32)
    wanted = logits / temperature
    if k:
        wanted = TopKLogitsWarper(k)(None, wanted)
    cumulative = wanted.sort(descending=True).values.softmax(-1).cumsum(-1)
    if (cumulative - p).abs().min() < 1e-5:
        return  # on the edge rounding decides
    if p < 1:
        wanted = TopPLogitsWarper(p)(None, wanted)
    ours = truncated(logits, Sampling(temperature, k, p))
    assert torch.equal(torch.isinf(ours), torch.isinf(wanted))
    kept = ~torch.isinf(ours)
    assert torch.allclose(ours[kept], wanted[kept], atol=1e-5)


def test_draws_follow_the_truncated_distribution():
    """Chi-square of 20,000 draws; the same draws fail against a planted wrong temperature."""
    logits = torch.tensor([0.5, 2.0, -1.0, 1.0, 0.0])
    sampler = Sampler(Sampling(temperature=1.5, top_k=4, seed=11))
    n = 20_000
    counts = torch.bincount(
        torch.tensor([c.id for c in sampler.choose(logits.expand(n, -1))]), minlength=5
    ).float()

    def chi_square(temperature: float) -> float:
        expected = truncated(logits, Sampling(temperature, 4)).softmax(-1) * n
        kept = expected > 0
        assert counts[~kept].sum() == 0
        return float(((counts - expected)[kept] ** 2 / expected[kept]).sum())

    assert chi_square(1.5) < 16.27  # 3 degrees of freedom, p = 0.001
    assert chi_square(1.4) > 16.27


def test_greedy_takes_the_first_of_the_largest_and_reports_the_plain_logprob():
    (choice,) = Sampler().choose(torch.tensor([[1.0, 3.0, 2.0]]))
    assert choice.id == 1
    assert choice.logprob == pytest.approx(3 - math.log(math.e + math.e**3 + math.e**2), abs=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", [0, 2])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_logits_that_are_not_finite_are_an_error_with_a_name(bad, place, temperature):
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    logits[0, place] = bad
    with pytest.raises(ModelError, match="finite"):
        Sampler(Sampling(temperature)).choose(logits)
    with pytest.raises(ModelError, match="finite"):
        Sampler(Sampling(temperature)).verify([1], None, logits.repeat(2, 1))


def test_a_token_that_is_ruled_out_is_no_error():
    (choice,) = Sampler().choose(torch.tensor([[1.0, -math.inf, 2.0]]))
    assert choice.id == 2


@pytest.mark.parametrize(
    "settings_",
    [
        dict(temperature=-1),
        dict(temperature=float("nan")),
        dict(temperature=101),
        dict(top_k=-1),
        dict(top_p=0),
        dict(top_p=1.1),
        dict(seed=-1),
        dict(seed=2**63),
    ],
)
def test_a_setting_out_of_range_says_what_was_needed(settings_):
    with pytest.raises(UserError, match="needs to be .*got"):
        Sampling(**settings_)


def test_a_temperature_is_none_or_one_that_logits_can_be_divided_by():
    logits = torch.tensor([[300.0, -300.0, 299.0]])
    assert Sampler(Sampling(temperature=1e-6)).choose(logits)[0].id == 0
    for wrong in (1e-300, -1.0, 101):
        with pytest.raises(UserError, match="needs to be 0 .* or a number from 1e-06 to 100; got"):
            Sampling(temperature=wrong)
