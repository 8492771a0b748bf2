"""`classroom-hybrid` as it ships: an ordinary Qwen3.5 whose own MTP head drafts."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from dmtd_demo.measure.evaluation import evaluate, held_out_tasks
from dmtd_demo.models.catalog import ASSETS, CATALOG
from dmtd_demo.models.chat import encode_chat
from dmtd_demo.models.loading import load
from dmtd_demo.race.panels import parse_panel
from dmtd_demo.race.settings import RaceSettings

FOLDER = ASSETS / "classroom-hybrid"


@pytest.fixture(scope="module")
def hybrid():
    return load("classroom-hybrid", dtype="float32", device="cpu", threads=1)


def test_what_it_brings(hybrid):
    assert hybrid.has("native_mtp") and hybrid.has("native_clp") and hybrid.has("split")
    assert str(hybrid.split) == "E0D4" and hybrid.context == 8192
    sizes = [file.stat().st_size for file in FOLDER.rglob("*") if file.is_file()]
    assert max(sizes) < 10_000_000 and sum(sizes) < 20_000_000
    index = json.loads((FOLDER / "model.safetensors.index.json").read_text())["weight_map"]
    assert sum(name.startswith("mtp.") for name in index) == 15
    assert CATALOG["classroom-hybrid"].sizes.mtp


def test_transformers_loads_it_and_computes_the_same(hybrid):
    theirs, facts = AutoModelForCausalLM.from_pretrained(
        FOLDER, dtype=torch.float32, output_loading_info=True
    )
    assert type(theirs).__name__ == "Qwen3_5ForCausalLM"
    assert not facts["missing_keys"]
    assert all(name.startswith("mtp.") for name in facts["unexpected_keys"])
    for _, conversation, _ in held_out_tasks(11, 3):
        ids = encode_chat(hybrid.tokenizer, conversation)
        with torch.inference_mode():
            wanted = theirs(torch.tensor([ids])).logits[0]
            backbone = hybrid.backbone
            h = backbone.run_layers(backbone.embed(ids), 0, backbone.layers, backbone.new_cache())
            got = backbone.logits(backbone.final_norm(h))[0]
        assert (got - wanted).abs().max() < 1e-4 * wanted.abs().max()


def test_drafts_are_right_and_the_text_is_that_of_ar(hybrid):
    names = ("ar", "dmtd:tau=2", "mtp-native-verified:k=3", "mtp-native")
    panels = [parse_panel(name) for name in names]
    result = evaluate(hybrid, panels, held_out_tasks(11, 8), RaceSettings())
    ar, dmtd, verified, native = result["rows"]
    assert min(ar["exact_match"], dmtd["exact_match"]) >= 7 / 8
    assert verified["same_as_ar"] == 8 and native["same_as_ar"] >= 7
    assert verified["mean_span"] >= 3 and native["mean_span"] >= 2.5


def test_the_stored_results_are_good_enough():
    result = json.loads((FOLDER / "results.json").read_text(encoding="utf-8"))
    rows = {row["panel"]: row for row in result["rows"]}
    assert rows["ar"]["exact_match"] >= 0.95 and rows["dmtd:tau=2"]["relative"] >= 0.98
    verified, native = rows["mtp-native-verified:k=3"], rows["mtp-native"]
    assert verified["same_as_ar"] == result["prompts"] and verified["mean_span"] >= 3
    assert native["relative"] >= 0.99 and native["mean_span"] >= 2.5
