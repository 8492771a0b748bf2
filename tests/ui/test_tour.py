"""What the guided tour claims, seen with the shipped weights: every step's race, with its outcome."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from dmtd_demo.models.loading import load
from dmtd_demo.race.panels import parse_panel
from dmtd_demo.race.race import race
from dmtd_demo.race.settings import RaceSettings
from dmtd_demo.sampling import Sampling
from dmtd_demo.ui.links import comparison, query
from dmtd_demo.ui.model_line import tour_facts
from dmtd_demo.web.texts import ENGLISH, LANGUAGES

RACE = Path(__file__).resolve().parents[2] / "assets" / "race"
STEPS, OPEN_STEPS = (
    json.loads(
        (RACE / "tour_steps.js")
        .read_text(encoding="utf-8")
        .split(f"const {name} = ")[1]
        .split(";")[0]
    )
    for name in ("TOUR", "OPEN_TOUR")
)
for key, steps in (("tour", STEPS), ("tour.open", OPEN_STEPS)):
    for number, step in enumerate(steps, 1):
        step |= {part: ENGLISH[f"{key}.{number}.{part}"] for part in ("title", "text", "then")}
        step["key"] = f"{key}.{number}"
# what a step's text says of its panels' summaries
CLAIMS = {
    "Why decoding is slow": lambda p: p[1]["full_passes"] * 4 < p[0]["full_passes"],
    "What late layers still know": lambda p: (
        p[1]["agreement"] == p[2]["agreement"] == 1
        and p[2]["full_passes"] * 4 < p[0]["full_passes"]
    ),
    "When DMTD breaks": lambda p: (
        p[2]["audit_agreement"] < p[1]["audit_agreement"] < 1
        and p[2]["agreement"] < p[1]["agreement"] < 1
    ),
    "Checked before it is written": lambda p: p[2]["agreement"] == 1 and p[1]["agreement"] < 0.7,
    "Why heads alone repeat themselves": lambda p: (
        p[0]["stop"] == "eos" and p[1]["stop"] == "length" and p[1]["repetition_ratio"] > 0.5
    ),
    "What CLP decides": lambda p: (
        len(p[2]["spans"]) >= 3
        and p[2]["audit_agreement"] > p[1]["audit_agreement"]
        and p[2]["tokens_per_full_pass"] < p[1]["tokens_per_full_pass"]
    ),
    "CLP can be wrong, a check cannot": lambda p: (
        p[1]["audit_agreement"] < 1 and p[1]["agreement"] < 1 and p[2]["agreement"] == 1
    ),
    "Drafts from the text itself": lambda p: (
        p[1]["full_passes"] * 2 < p[0]["full_passes"]
        and p[1]["agreement"] == 1
        and p[1]["extra_parameters"] == 0
    ),
    "Cycles as long as predicted": lambda p: (
        p[2]["tokens_per_full_pass"] > p[1]["tokens_per_full_pass"]
        and p[2]["audit_agreement"] < p[1]["audit_agreement"]
    ),
    "What it costs": lambda p: p[1]["extra_parameters"] == 0 < p[2]["extra_parameters"],
}


@pytest.fixture(scope="module")
def classroom():
    return load("classroom")


def test_there_are_ten_steps_and_each_has_its_claim():
    assert [step["title"] for step in STEPS] == list(CLAIMS) and len(STEPS) == 10


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step["title"])
def test_what_a_step_says_is_what_comes_out(classroom, step):
    panels = [parse_panel(panel) for panel in step["panels"]]
    assert comparison(
        query(step["prompt"], panels, step["tokens"], Sampling()), classroom
    ).panels == tuple(panels)
    records = [
        record
        for batch in race(
            classroom,
            panels,
            [[{"role": "user", "content": step["prompt"]}]] * len(panels),
            RaceSettings(max_new_tokens=step["tokens"]),
        )
        for record in batch
    ]
    summaries = sorted(
        (record for record in records if record["type"] == "summary"),
        key=lambda summary: summary["panel"],
    )
    assert CLAIMS[step["title"]](summaries), [
        (s["text"], s["agreement"], s["audit_agreement"], s["repetition_ratio"], s["full_passes"])
        for s in summaries
    ]


def test_a_plain_model_has_a_tour_of_what_it_can_do(model_folder):
    model = load(str(model_folder))
    facts = tour_facts(model)
    able = re.search('data-able="(.*)"', facts)[1].split()
    assert 'data-kind="open"' in facts and "clp" not in able
    shown = []
    for step in OPEN_STEPS:
        panels = [parse_panel(panel) for panel in step["panels"]]
        if not {panel.decoder for panel in panels} <= set(able):
            continue
        # as the page's script asks for it
        asked = comparison(query(step["prompt"], panels, step["tokens"], Sampling()), model)
        assert asked and asked.panels == tuple(panels)
        shown.append(step["title"])
    assert shown == [
        "Drafts from the text itself",
        "Late layers guess, all layers check",
        "Late layers alone, unchecked",
    ]


@pytest.mark.parametrize("language", LANGUAGES)
def test_figures_come_from_the_race(language):
    values = (
        (RACE / "tour.js").read_text(encoding="utf-8").split("const TOUR_VALUES")[1].split("};")[0]
    )
    for step in STEPS + OPEN_STEPS:
        text, then = (LANGUAGES[language][f"{step['key']}.{part}"] for part in ("text", "then"))
        assert not re.search(r"\d ?(×|%|tokens/s)", text + then), step["title"]  # none is typed in
        for name, panel in re.findall(r"\{([\w-]+) (\d)\}", then):
            assert int(panel) <= len(step["panels"]) and re.search(rf'"?\b{name}"?: \(s', values), (
                name,
                panel,
            )
