"""The record's statistics, by hand."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmtd_demo.race import trace


def step(ms, passes, *tokens):
    return {
        "type": "step",
        "panel": 0,
        "step": 0,
        "ms": ms,
        "passes": passes,
        "tokens": [{"id": i, "text": str(i), "origin": o, "span": s} for i, o, s in tokens],
    }


def test_figures_leave_out_the_prefill_and_its_token():
    full, late = (
        {"kind": "full", "runs": [[0, 9, 2], [9, 12, 1]]},
        {"kind": "late", "runs": [[9, 12, 1]]},
    )
    steps = [
        step(10.0, [{"kind": "prefill", "runs": [[0, 12, 5]]}]),
        step(20.0, [{"kind": "prefill", "runs": [[0, 12, 3]]}], (1, "full", 0)),
        step(24.0, [full], (2, "full", 1)),
        step(25.0, [late], (3, "late", 1)),
        step(29.0, [full], (4, "full", 2)),
        step(30.0, [late], (5, "late", 2)),
        step(40.0, [full], (6, "full", 3)),
    ]
    figures = trace.statistics(steps, layers=12)
    assert figures["tokens"] == 6 and figures["first_token_ms"] == 20.0
    assert figures["decode_seconds"] == pytest.approx(0.020) and figures[
        "tokens_per_second"
    ] == pytest.approx(250)
    assert figures["full_passes"] == 3 and figures["tokens_per_full_pass"] == pytest.approx(
        5 / 3, abs=1e-4
    )
    assert figures["plt"] == pytest.approx((3 * 12 + 2 * 3) / (12 * 5))
    assert figures["spans"] == {"1": 1, "2": 2}
    assert figures["text"] == "123456"


def test_one_token_has_no_speed():
    figures = trace.statistics(
        [step(5.0, [{"kind": "prefill", "runs": [[0, 4, 1]]}], (1, "full", 0))], layers=4
    )
    assert (
        figures["tokens_per_second"] is None and figures["plt"] is None and figures["spans"] == {}
    )


def test_no_token_at_all():
    assert trace.statistics([], layers=4)["tokens"] == 0


def test_repetition_ratio_is_the_share_of_4_grams_seen_before():
    assert trace.repetition_ratio([1, 2, 3]) == 0
    assert trace.repetition_ratio([1, 2, 3, 4, 5]) == 0
    assert trace.repetition_ratio([1] * 8) == pytest.approx(1 - 1 / 5)


@given(st.lists(st.integers(0, 3)), st.lists(st.integers(0, 3)))
def test_agreement(a, b):
    value = trace.agreement(a, b)
    assert 0 <= value <= 1 and (value == 1) == (a == b)
    assert value == trace.agreement(b, a)


def test_audit_agreement_counts_only_what_no_full_pass_made():
    tokens = [{"origin": o} for o in ("full", "late", "mtp", "full")]
    assert trace.audit_agreement(tokens, [False, True, False, True]) == 0.5
    assert trace.audit_agreement(tokens[:1], [False]) is None


def test_a_record_is_one_line():
    line = trace.dumps({"text": "a\nb é \u2028"})
    assert "\n" not in line and json.loads(line) == {"text": "a\nb é \u2028"}
