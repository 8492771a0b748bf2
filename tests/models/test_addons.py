"""Add-ons: sizes of the papers, strict save and load."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from dmtd_demo.backbone.packed import parameters
from dmtd_demo.backbone.split import Split
from dmtd_demo.errors import UserError
from dmtd_demo.models import attaching, dmtd_layers
from dmtd_demo.models.addons import (
    Base,
    CollocationLengthPredictor,
    MTPHeads,
    SpanGate,
    load_addons,
    save_addon,
)
from dmtd_demo.models.publishing import publish
from tiny import tiny_model

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "module,size",
    [
        (CollocationLengthPredictor(1536, 2), 4611),
        (CollocationLengthPredictor(1536, 4), 7685),
        (SpanGate(1536, 4), 986244),
    ],
)
def test_sizes_are_the_papers(module, size):
    assert parameters(module) == size


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    heads = MTPHeads(16, 3)
    with torch.no_grad():
        heads.weight.normal_()
    save_addon(tmp_path, "mtp_heads", heads, "base", 16)
    save_addon(tmp_path, "clp", CollocationLengthPredictor(16, 3), "base", 16, threshold=0.7)
    return tmp_path


def test_what_is_saved_is_loaded(folder):
    modules, facts = load_addons(folder, 16, torch.float32, CPU)
    again, _ = load_addons(folder, 16, torch.float32, CPU)
    assert facts["clp"] == {"k": 3, "threshold": 0.7}
    h = torch.randn(2, 16)
    assert modules["mtp_heads"](h).shape == (2, 3, 16) and modules["clp"](h).shape == (2, 4)
    assert torch.equal(modules["mtp_heads"](h), again["mtp_heads"](h))
    assert torch.equal(modules["mtp_heads"](h, 2), modules["mtp_heads"](h)[:, :2])
    assert not list(folder.glob("*.part"))


def edit(folder, change):
    card = json.loads((folder / "addons.json").read_text())
    change(card)
    (folder / "addons.json").write_text(json.dumps(card))


def drop_tensor(folder):
    tensors = load_file(folder / "clp.safetensors")
    save_file({"linear.weight": tensors["linear.weight"]}, folder / "clp.safetensors")


def cut(folder):
    path = folder / "mtp_heads.safetensors"
    path.write_bytes(path.read_bytes()[:-50])


def not_finite(folder):
    tensors = load_file(folder / "clp.safetensors")
    tensors["linear.bias"][0] = float("nan")
    save_file(tensors, folder / "clp.safetensors")


@pytest.mark.parametrize(
    "damage,word",
    [
        (lambda f: edit(f, lambda c: c.update(hidden_size=32)), "hidden size 32"),
        (lambda f: (f / "addons.json").unlink(), "addons.json"),
        (lambda f: (f / "addons.json").write_text("{"), "JSON"),
        (
            lambda f: edit(f, lambda c: c["addons"]["clp"].update(k=4)),
            r"shape \[5, 16\]; got \[4, 16\]",
        ),
        (lambda f: edit(f, lambda c: c["addons"]["clp"].pop("k")), "needs k"),
        (
            lambda f: edit(f, lambda c: c["addons"]["clp"].pop("threshold")),
            "clp needs threshold, a number from 0 to 1; got None",
        ),
        (lambda f: edit(f, lambda c: c["addons"]["clp"].update(threshold="much")), "got 'much'"),
        (
            lambda f: edit(f, lambda c: c["addons"]["clp"].update(accuracy=[0.5, None])),
            r"accuracy\[1\] is 'None', no float",
        ),
        (lambda f: edit(f, lambda c: c["addons"].update(magic={"k": 1})), "magic"),
        (lambda f: (f / "clp.safetensors").unlink(), "not there"),
        (drop_tensor, "needs the tensor linear.bias"),
        (cut, "whole safetensors file"),
        (not_finite, "not finite"),
    ],
)
def test_what_does_not_fit_is_named(folder, damage, word):
    damage(folder)
    with pytest.raises(UserError, match=word):
        load_addons(folder, 16, torch.float32, CPU)


def test_what_is_no_folder_of_addons_says_so(folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="needs addons.json; .*file has none"):
        load_addons(tmp_path / "file", 16, torch.float32, CPU)
    (folder / "addons.json").unlink()
    (folder / "addons.json").mkdir()
    with pytest.raises(UserError, match="reading it gave: .*Is a directory"):
        load_addons(folder, 16, torch.float32, CPU)


def test_the_wrong_base_is_an_error_that_names_it(folder):
    for base in (Base("base"), Base("someone/base")):
        load_addons(folder, 16, torch.float32, CPU, base)
    with pytest.raises(UserError, match="made for the base base .*; this model is other"):
        load_addons(folder, 16, torch.float32, CPU, Base("other", None, "beef"))
    save_addon(
        folder,
        "clp",
        CollocationLengthPredictor(16, 3),
        Base("owner/base", "c0ffee", "cafe"),
        16,
        threshold=0.7,
    )
    card = json.loads((folder / "addons.json").read_text())
    assert card["base_revision"] == "c0ffee" and card["base_fingerprint"] == "cafe"
    # the weights count, not the name
    load_addons(folder, 16, torch.float32, CPU, Base("a-local-copy", None, "cafe"))
    with pytest.raises(UserError, match=r"weights cafe\); this model is base \(weights beef\)"):
        load_addons(folder, 16, torch.float32, CPU, Base("base", None, "beef"))


def test_push_writes_a_card_and_says_what_it_lacks(folder):
    with pytest.raises(UserError, match="needs --license"):
        publish(folder, "me/addons", None)
    with pytest.raises(UserError, match="owner/name"):
        publish(folder, "addons", "mit")
    # tests run offline: everything before the upload is done
    with pytest.raises(UserError, match="cannot be reached"):
        publish(folder, "me/addons", "apache-2.0")
    text = (folder / "README.md").read_text()
    for word in (
        "license: apache-2.0",
        "base_model: base",
        "`clp`: Collocation-Length Predictor, for `clp` | 3 | 0.7 |",
        "--addons me/addons",
    ):
        assert word in text
    assert json.loads((folder / "addons.json").read_text())["license"] == "apache-2.0"
    cut(folder)
    with pytest.raises(UserError, match="whole safetensors file"):
        publish(folder, "me/addons", "mit")


def test_what_reads_cycles_goes_with_their_layers_or_stays_away(tmp_path):
    """An adaptive of another split would be asked about hidden states that it never saw."""
    split = Split(4, 1, 1, "replace")
    shape = {"intermediate_size": 64, "head_dim": 16}
    published, trained, nowhere = (tmp_path / name for name in ("published", "trained", "none"))
    torch.manual_seed(0)
    predictor = CollocationLengthPredictor(32, 5)
    for folder, trained_on in ((published, "E1D1"), (trained, "E1D1")):
        save_addon(folder, "adaptive", predictor, Base("tiny"), 32, threshold=0.5, split=trained_on)
    sizes = tiny_model(**shape).backbone.linear_shapes()
    differences = [{name: 0.1 * torch.randn(size) for name, size in sizes.items()}]
    dmtd_layers.save(published, split, differences, 8, files=2)
    card = json.loads((published / "addons.json").read_text())
    card["addons"]["dmtd_layers"] = {"split": "E1D1", "tau": 2, "bits": 8, "files": 2}
    (published / "addons.json").write_text(json.dumps(card))

    def loaded(addons):
        model = tiny_model(**shape)
        model.base = Base("tiny")
        attaching.take_all(model, nowhere, str(addons), None)
        return model

    model = loaded(published)
    assert model.split == split and model.has("adaptive")
    without = loaded(trained)
    assert without.split is None and not without.has("adaptive") and not without.addon_facts
    assert "trained on cycles of E1D1; this model runs those of " in without.reasons[-1]
    attaching.keep_apart(model, trained)
    again = loaded(trained)
    assert again.split == split and again.tau == 2 and again.has("adaptive")
    for mine, its in zip(again.backbone.adapted.parameters(), model.backbone.adapted.parameters()):
        assert torch.equal(mine, its)
    # as training goes on in the folder that they came from
    attaching.keep_apart(again, trained)
