"""The panels that the page begins with."""

from __future__ import annotations

from dmtd_demo.models.loading import load
from dmtd_demo.ui.first_panels import first_panels


def test_smollm2_begins_with_what_was_trained_for_it(smollm2):
    shown = [str(spec) for spec in first_panels(load(str(smollm2)))]
    assert shown == ["ar", "mtp-verified", "clp", "dmtd:tau=2"]


def test_a_plain_model_begins_with_what_needs_no_training(model_folder):
    shown = [str(spec) for spec in first_panels(load(str(model_folder)))]
    assert shown == ["ar", "prompt-lookup", "dmtd-spec", "dmtd:tau=2"]
