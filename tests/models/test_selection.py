"""What is measured and chosen as a model is loaded, for real, in every dtype and quantization.

Tiny models are too small for any of it: here the sizes are lowered from which on it is done, and
both outcomes of a measurement are taken. Every decoder then runs over what was chosen.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dmtd_demo.backbone import fbgemm, layouts, linears, onednn, reading
from dmtd_demo.backbone.onednn import BlockedLinear
from dmtd_demo.decoders import DECODERS
from dmtd_demo.models.fed_back import FedBackHead
from dmtd_demo.models.loading import load
from dmtd_demo.models.native_mtp import random_native
from dmtd_demo.models.threads import step_seconds
from dmtd_demo.race import local
from dmtd_demo.race.panels import parse_panel
from dmtd_demo.race.race import race_ids
from dmtd_demo.race.settings import RaceSettings
from tiny import tiny_model, tiny_module
from written import KIND

# groups of three query heads: of eleven positions two rows are left over, which attention fills up
SHAPE = dict(hidden_size=96, intermediate_size=128, num_attention_heads=6, initializer_range=0.15)
PROMPT = [(7 * i + 3) % 97 for i in range(12)]
NEW = 4
# quantization, dtype, and whether oneDNN's layout is found worth it; reading ahead always is
LOADED = [
    ("none", "float32", True),
    ("none", "float32", False),
    ("none", "bfloat16", True),
    ("none", "bfloat16", False),
    ("none", "float16", True),
    ("nf4", "bfloat16", True),
    ("nf4-single", "float16", True),
    ("int8", "float16", True),
    ("fast-int8", "bfloat16", True),
    ("fast-int4", "bfloat16", True),
    ("fast-int4", "float16", True),
]


@pytest.fixture(scope="module", params=("qwen2", KIND))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("selection") / request.param
    tiny_module(request.param, **SHAPE).save_pretrained(path)
    return path


@pytest.mark.parametrize("quantization,dtype,worth", LOADED)
def test_every_decoder_runs_over_what_was_chosen(
    folder: Path, quantization: str, dtype: str, worth: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name, value in (
        (layouts, "LARGE", 1),
        (layouts, "SMALL", dict.fromkeys(layouts.SMALL, 0)),
        (linears, "JOINED", 2**14),
        (layouts, "REPEATS", 1),
        (onednn, "LONG_SUM", 96),
        (layouts, "WORTH", 1e9 if worth else 0),
        (reading, "LARGE", 1),
        (reading, "SECONDS", 0),
        (reading, "WORTH", 1e9),
        (fbgemm, "HEAD_ROWS", 96),
        (local, "WARM_UP_STEPS", 1),
    ):
        monkeypatch.setattr(module, name, value)
    model = load(str(folder), quantization=quantization, dtype=dtype, threads=1)
    backbone = model.backbone
    assert (model.quantization, model.dtype) == (quantization, dtype)
    if quantization == "none" and dtype != "float16":
        blocked = any(isinstance(part, BlockedLinear) for part in backbone.module.modules())
        assert blocked == worth and any("oneDNN's layout" in each for each in model.reasons)
        read_ahead = any(" are read ahead of" in each for each in model.reasons)
        assert read_ahead == (dtype == "float32" and not worth and not backbone.hybrid)
    assert step_seconds(model, [1])[1] > 0
    donor = tiny_model(layers=2, addons=True, dtype=backbone.dtype, **SHAPE)
    head = random_native(backbone) if backbone.hybrid else FedBackHead(backbone, 128)
    model.addons = {**donor.addons, "native_mtp": head.to(backbone.dtype).eval()}
    model.addon_facts = {
        name: {**facts, "threshold": 0.0} for name, facts in donor.addon_facts.items()
    }
    texts = {}
    for name, decoder in DECODERS.items():
        assert not decoder.missing(model)
        settings = RaceSettings(max_new_tokens=NEW, ignore_eos=True)
        records = [
            record
            for batch in race_ids(model, [parse_panel(name)], [PROMPT], settings)
            for record in batch
        ]
        assert records[-1].get("message") is None, records[-1]
        texts[name] = [
            token["id"]
            for record in records
            if record["type"] == "step"
            for token in record["tokens"]
        ]
    if model.alike:
        assert {
            name for name in texts if DECODERS[name].lossless and texts[name] != texts["ar"]
        } == (set())
    assert all(len(text) == NEW for text in texts.values()) and torch.get_num_threads() == 1
