"""The panels that the page begins with."""

from __future__ import annotations

from dmtd_demo.models.loading import load
from dmtd_demo.race.panels import parse_panel
from dmtd_demo.ui.first_panels import can_run, first_panels
from tiny import tiny_model
from written import KIND


def test_smollm2_begins_with_what_was_trained_for_it(smollm2):
    shown = [str(spec) for spec in first_panels(load(str(smollm2)))]
    assert shown == ["ar", "mtp-verified", "clp", "dmtd:tau=2"]


def test_a_plain_model_begins_with_what_needs_no_training(model_folder):
    shown = [str(spec) for spec in first_panels(load(str(model_folder)))]
    assert shown == ["ar", "prompt-lookup", "dmtd-spec", "dmtd:tau=2"]


def test_a_preset_is_offered_where_the_model_takes_its_options():
    tree = [parse_panel("ar"), parse_panel("mtp-verified:tree=7")]
    for family in ("qwen3", KIND):
        model = tiny_model(family, addons=True)
        assert can_run(model, [parse_panel("ar"), parse_panel("mtp-verified")])
        # recurrent layers read no tree
        assert can_run(model, tree) == (family != KIND)
    assert not can_run(tiny_model("qwen3"), tree)
