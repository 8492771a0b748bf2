"""SmolLM2's shipped add-ons on the real model: found without being asked for, and lossless."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dmtd_demo.models.addons import load_layers
from dmtd_demo.models.catalog import ASSETS
from dmtd_demo.models.chat import encode_chat
from dmtd_demo.models.loading import load
from dmtd_demo.race.panels import PanelSpec, make_decoder
from dmtd_demo.sampling import Sampler

NAME = "SmolLM2-135M-Instruct"
FOLDER = ASSETS / "smollm2-135m"
SCRIPTS = Path(__file__).resolve().parents[2] / "scripts" / "smollm2"
CHAT = [{"role": "user", "content": "What is the capital of France, and what is it known for?"}]


@pytest.fixture(scope="module")
def model(smollm2):
    return load(NAME, dtype="float32", threads=1)


def text_of(model, panel: PanelSpec, ids: list[int], new: int) -> tuple[list[int], int]:
    """Token ids, and how many passes with all layers they took after the prompt's."""
    decoder = make_decoder(panel)
    decoder.options = decoder.resolve(decoder.options, model)
    text: list[int] = []
    full = 0
    for step in decoder.steps(model, ids, Sampler()):
        text += [token.id for token in step.tokens]
        full += sum(p.kind in ("full", "verify") for p in step.passes)
        if len(text) >= new:
            return text[:new], full
    raise AssertionError


def test_they_are_found_and_set_the_defaults(model):
    assert {"mtp_heads", "clp", "gate", "head0", "native_mtp"} <= model.addons.keys()
    assert str(model.split) == "E4D10" and model.tau == 2
    assert model.backbone.adapted_to == model.split
    decoder = make_decoder(PanelSpec("dmtd"))
    options = decoder.resolve(decoder.options, model)
    assert (options.tau, options.split) == (2, "E4D10")


def test_what_ships_is_small():
    sizes = [path.stat().st_size for path in FOLDER.iterdir()]
    assert max(sizes) < 10_000_000 and sum(sizes) < 40_000_000


def test_verified_text_is_ar_s_own(model):
    ids = encode_chat(model.tokenizer, CHAT)
    wanted, _ = text_of(model, PanelSpec("ar"), ids, 32)
    for panel in (
        PanelSpec("mtp-verified"),
        PanelSpec("mtp-native-verified", {"k": 4, "p_min": 0.0}),
        PanelSpec("mtp-native-verified", {"k": 4, "p_min": 0.0, "tree": 15}),
        PanelSpec("mtp-verified", {"tree": 15}),
        PanelSpec("dmtd-spec", {"tau": 3}),
    ):
        text, full = text_of(model, panel, ids, 32)
        print(f"{panel}: {31 / full:.2f} tokens per full pass")
        assert text == wanted and full < 31


def test_layers_of_another_shape_are_refused_in_a_sentence(tmp_path):
    from dmtd_demo.errors import UserError
    from tiny import tiny_model

    with pytest.raises(UserError, match="split needs early"):
        load_layers(FOLDER, tiny_model(layers=4).backbone)
    with pytest.raises(UserError, match=r"need the tensor layers.20.qkv.levels"):
        load_layers(FOLDER, tiny_model(layers=30).backbone)
    card = json.loads((FOLDER / "addons.json").read_text())
    card["addons"]["dmtd_layers"] |= {"bits": 3}
    (tmp_path / "addons.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match="bits of 4 or 8"):
        load_layers(tmp_path, tiny_model(layers=30).backbone)


@pytest.mark.slow
def test_agreement_on_held_out_texts_is_what_the_run_measured(model, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import random

    from held_out import rows
    from judge import agreement

    torch.set_num_threads(1)
    texts = random.Random(0).sample(rows(True), 40)
    found = agreement(model, texts, (2, 4))
    measured = json.loads((FOLDER / "addons.json").read_text())["addons"]["dmtd_layers"]
    for tau in ("C2", "C4"):
        assert found[tau]["late"] == pytest.approx(measured["held_out"][tau]["late"], abs=0.02)
