"""The picture of a decoder's passes says what its record says."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from dmtd_demo.backbone.split import Split
from dmtd_demo.race.drawing import CELL, LAYER, ORIGIN_COLOURS, passes_svg
from dmtd_demo.race.panels import PanelSpec
from dmtd_demo.race.race import race_ids
from dmtd_demo.race.settings import RaceSettings
from tiny import tiny_model
from written import KIND

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize(
    "panel",
    ["ar", "dmtd", "dmtd-spec", "dmtd-adaptive", "clp", "mtp-heads", "mtp-verified", "mixed"],
)
def test_every_layer_that_ran_is_drawn(panel, small_tokenizer):
    model = tiny_model(
        "qwen3",
        addons=True,
        split=Split(4, 1, 1),
        tokenizer=small_tokenizer,
        vocab_size=len(small_tokenizer),
    )
    records = [
        r
        for batch in race_ids(
            model,
            [PanelSpec("ar"), PanelSpec(panel)],
            [[1, 2, 3]] * 2,
            RaceSettings(max_new_tokens=12),
        )
        for r in batch
    ]
    picture = ElementTree.fromstring(passes_svg(records, 1, model.split, passes=6))
    blocks = [r for r in picture.iter(f"{SVG}rect") if r.get("fill-opacity")]
    passes = [
        p
        for r in records
        if r["type"] == "step" and r["panel"] == 1
        for p in r["passes"]
        if p["kind"] != "prefill"
    ][:6]
    ran = sum((stop - start) * positions for p in passes for start, stop, positions in p["runs"])
    assert sum((float(b.get("height")) + 1) / LAYER for b in blocks) == ran
    assert len([b for b in blocks if b.get("fill-opacity") == "1"]) == sum(
        len(p["runs"]) for p in passes
    )
    assert all(float(b.get("width")) == CELL - 2 for b in blocks)


def test_recurrent_layers_are_narrower_and_the_own_head_is_a_layer_above(small_tokenizer):
    model = tiny_model(KIND, tokenizer=small_tokenizer, vocab_size=len(small_tokenizer))
    panel = PanelSpec("mtp-native", {"k": 2, "threshold": 0.0, "rule": "probability"})
    records = [
        r
        for batch in race_ids(model, [panel], [[1, 2, 3]], RaceSettings(max_new_tokens=12))
        for r in batch
    ]
    assert records[0]["panels"][0]["recurrent"] == [0, 1, 2]
    picture = ElementTree.fromstring(passes_svg(records, 0, None, passes=3))
    blocks = [r for r in picture.iter(f"{SVG}rect") if r.get("fill-opacity")]
    drafts = [b for b in blocks if b.get("fill") == ORIGIN_COLOURS["mtp"]]
    widths = [float(b.get("width")) for b in blocks if b not in drafts]
    assert len(drafts) == 6 and widths.count(CELL - 2) * 3 == widths.count(CELL - 8)


def test_text_is_escaped(small_tokenizer):
    model = tiny_model("qwen3", tokenizer=small_tokenizer, vocab_size=len(small_tokenizer))
    records = [
        r
        for batch in race_ids(model, [PanelSpec("ar")], [[1, 2, 3]], RaceSettings(max_new_tokens=4))
        for r in batch
    ]
    for record in records:
        for token in record.get("tokens", []) if record["type"] == "step" else []:
            token["text"] = "<b>&"
    text = passes_svg(records, 0, None)
    assert "&lt;b&gt;&amp;" in text and not re.search("<b>", text)
