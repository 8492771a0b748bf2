"""Panels in text, and the options they carry."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmtd_demo.decoders import DECODERS
from dmtd_demo.errors import UserError
from dmtd_demo.race.panels import PanelSpec, make_panel, parse_panel

OPTIONS = st.one_of(
    st.builds(
        lambda tau, split: PanelSpec("dmtd", {"tau": tau, "split": split}),
        st.integers(1, 16),
        st.from_regex(r"[A-Z0-9,:. ]{1,8}", fullmatch=True).filter(lambda s: s == s.strip()),
    ),
    st.builds(
        lambda k, t, rule: PanelSpec("clp", {"k": k, "threshold": t, "rule": rule}),
        st.integers(1, 16),
        st.floats(0, 1),
        st.sampled_from(["cumulative", "argmax"]),
    ),
    st.just(PanelSpec("ar")),
)


@given(OPTIONS)
def test_text_and_back(panel):
    assert parse_panel(str(panel)) == panel


@given(st.text(max_size=40))
def test_any_text_is_a_panel_or_a_sentence(text):
    try:
        assert parse_panel(text).decoder in DECODERS
    except UserError as error:
        assert str(error)


@pytest.mark.parametrize(
    "text,word",
    [
        ("foo", "one of the decoders ar, dmtd, dmtd-spec, dmtd-adaptive, clp"),
        ("dmtd:tau", "name=value"),
        ("dmtd:tau=x", "whole number"),
        ("dmtd:tau=0", "from 1 to 16"),
        ("dmtd:tau=1e3", "whole number"),
        ("dmtd:k=3", "has the options tau, split"),
        ("ar:tau=3", "ar has no options"),
        ("clp:threshold=2", "from 0.0 to 1.0"),
        ("clp:threshold=nan", "from 0.0 to 1.0"),
        ("clp:rule=best", "one of cumulative, argmax"),
        ("dmtd:tau=2,tau=3", "given twice"),
        ("ar:model=x", "reserved"),
    ],
)
def test_what_does_not_fit_is_said(text, word):
    with pytest.raises(UserError, match=word):
        parse_panel(text)


def test_a_quoted_value_may_hold_commas_and_colons():
    assert parse_panel('dmtd:split="a,b:c",tau=3') == PanelSpec(
        "dmtd", {"split": "a,b:c", "tau": 3}
    )


def test_set_is_the_same_as_a_panel():
    assert make_panel("dmtd", [("tau", "3")]) == parse_panel("dmtd:tau=3")


@pytest.mark.parametrize("name", DECODERS)
def test_the_registry_says_what_the_page_needs(name):
    decoder = DECODERS[name]
    assert decoder.name == name and decoder.label and isinstance(decoder.needs, frozenset)
    from dataclasses import fields

    for f in fields(decoder.Options):
        assert (
            f.metadata["label"] and f.metadata["help"] and f.metadata["kind"] in (int, float, str)
        )
