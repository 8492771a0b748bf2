"""What the documents say is what the code has and what was measured."""
from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from dmtd_demo.catalog import ASSETS
from dmtd_demo.decoders import DECODERS
from dmtd_demo.report import curve_tables, family_table, summary_table

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ASSETS / "classroom" / "results.json"


@pytest.mark.parametrize("name", DECODERS)
def test_every_decoder_has_a_section_and_a_picture(name):
    text = (ROOT / "docs" / "decoders.md").read_text(encoding="utf-8")
    section = text.split(f"## `{name}`:")[1].split("\n## ")[0]
    assert f"![]({name}.svg)" in section and "**Costs**" in section and "**Risks**" in section
    ElementTree.parse(ROOT / "docs" / f"{name}.svg")


def test_the_tables_are_those_of_the_stored_result():
    result = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert {row["decoder"] for row in result["rows"]} == set(DECODERS) and result["prompts"] >= 190
    assert summary_table(result) in (ROOT / "README.md").read_text(encoding="utf-8")
    card = (ASSETS / "classroom" / "README.md").read_text(encoding="utf-8")
    assert summary_table(result) in card and family_table(result) in card


def test_the_curves_are_the_stored_ones():
    result = json.loads((ASSETS / "classroom" / "curves.json").read_text(encoding="utf-8"))
    assert result["over_training"] and curve_tables(result) in (ROOT / "docs" / "decoders.md").read_text(encoding="utf-8")


def test_clp_and_the_gate_are_compared_at_many_thresholds():
    result = json.loads((ASSETS / "classroom" / "clp_and_gate.json").read_text(encoding="utf-8"))
    assert {row["decoder"] for row in result["rows"]} == {"ar", "clp", "mtp-gate"} and len(result["rows"]) >= 10
    assert summary_table(result) in (ROOT / "docs" / "decoders.md").read_text(encoding="utf-8")
