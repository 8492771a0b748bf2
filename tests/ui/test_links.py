"""A comparison as a URL: what is written opens again; what cannot be opened is said in words."""

import re

import pytest

from dmtd_demo.decoders import DECODERS
from dmtd_demo.errors import UserError
from dmtd_demo.models.loading import load
from dmtd_demo.race.panels import parse_panel
from dmtd_demo.sampling import Sampling
from dmtd_demo.shipped import ASSETS
from dmtd_demo.ui.examples import PRESETS
from dmtd_demo.ui.links import PARTS, SPEEDS, comparison, query, unknown
from written import ANYWHERE


@pytest.fixture(scope="module")
def classroom():
    return load("classroom")


def test_what_is_written_opens_again(classroom):
    panels = [
        parse_panel(text) for text in ("ar", "dmtd:tau=2", "clp:k=3,threshold=0.5,rule=argmax")
    ]
    sampling = Sampling(temperature=0.7, top_k=5, top_p=0.9, seed=3)
    prompt = "a&b=c? #1 é\n<b>"
    opened = comparison(query(prompt, panels, 80, sampling, "Be & brief"), classroom)
    assert (
        opened.prompt,
        list(opened.panels),
        opened.max_new_tokens,
        opened.sampling,
        opened.system,
    ) == (prompt, panels, 80, sampling, "Be & brief")
    plain = comparison(query(prompt, panels, 80, sampling), classroom)
    assert plain.system is None and plain.thinking is None


def test_a_page_without_a_query_stays_as_it_is(classroom):
    assert comparison("", classroom) is None and comparison("__theme=dark", classroom) is None


def test_what_nothing_reads_is_named_but_not_what_others_add_to_links():
    mistyped = "pannel=ar&seed=1&Temperature=1&pannel=clp"
    assert unknown(mistyped) == ["pannel", "Temperature"]
    others = "__theme=dark&utm_source=x&fbclid=y&view=api&speed=1"
    assert not unknown("&".join([others, *(f"{part}=1" for part in PARTS)])) and not unknown("")


def test_the_speeds_of_a_link_are_those_of_the_page():
    player = (ASSETS / "race" / "player.js").read_text(encoding="utf-8")
    offered = re.search(r"const SPEEDS = \{(.*?)\n\};", player, re.DOTALL)[1]
    # a script's object has its numbers first
    assert set(re.findall(r"^  ([\w.]+):", offered, re.MULTILINE)) == set(SPEEDS)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("panel=ar", "2 to 4 panels; got 1"),
        ("panel=ar&panel=warp", "one of the decoders ar"),
        ("panel=ar&panel=dmtd:tau=99", "from 1 to 16; got 99"),
        ("seed=one", "whole number for seed; got 'one'"),
        ("max-tokens=0", "1 or more; got 0"),
        ("prompt=", "got an empty one"),
        ("prompt=a&prompt=b", "prompt once; got it 2 times"),
        ("panel=ar&panel=clp:k=16", "the heads that"),
        ("temperature=nan", "got nan"),
        ("system=%07", "the system prompt needs to be plain text"),
        ("thinking=1", "thinking switch; classroom has none"),
        ("thinking=2", "0 or 1; got 2"),
        ("speed=fast", "one of watch, pass, 0.02, 0.1, 1; got 'fast'"),
    ],
)
def test_what_cannot_be_opened_is_said(classroom, text, words):
    with pytest.raises(UserError, match=words):
        comparison(text, classroom)


def test_every_preset_runs_on_classroom(classroom):
    for name, panels, prompt, _ in PRESETS:
        if any(parse_panel(panel).decoder not in ANYWHERE for panel in panels):
            continue  # not offered there
        assert (
            comparison(
                query(prompt, [parse_panel(panel) for panel in panels], 8, Sampling()), classroom
            ).prompt
            == prompt
        ), name
        assert all(not DECODERS[parse_panel(panel).decoder].missing(classroom) for panel in panels)
