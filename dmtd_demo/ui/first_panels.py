"""The panels that a page begins with."""

from __future__ import annotations

from collections.abc import Sequence

from dmtd_demo.decoders import DECODERS
from dmtd_demo.errors import UserError
from dmtd_demo.models.fed_back import FedBackHead
from dmtd_demo.models.model import Model
from dmtd_demo.race.panels import PANELS, PanelSpec, make_decoder, make_writer, parse_panel
from dmtd_demo.server.allowance import MOST_PANELS

# the first four that the model can run; the fourth is hidden at first
DEFAULT_PANELS = (
    "ar",
    "mtp-native-verified",
    "dmtd:tau=4",
    "clp",
    "mtp-native",
    "dmtd:tau=2",
    "dmtd:tau=6",
)
# where all of it was trained for a language model as it is, SmolLM2: what checks comes first
TRAINED_PANELS = ("ar", "mtp-verified", "clp", "dmtd:tau=2")
# for a language model as it is: add-ons where there are any, else what needs none and writes what
# `ar` writes
PLAIN_PANELS = (
    "ar",
    "mtp-native-verified",
    "mtp-verified",
    "clp",
    "mtp-native",
    "prompt-lookup",
    "dmtd-spec",
    "dmtd:tau=2",
)


def first_panels(model: Model, given: Sequence[PanelSpec] = ()) -> list[PanelSpec]:
    """Return four panels to begin with: those given, then the default ones.

    Raises UserError where the model cannot run one that was given.
    """
    if len(given) > MOST_PANELS:
        raise UserError(f"a page has at most {MOST_PANELS} panels; got {len(given)}")
    for spec in given:
        PANELS[spec.decoder].resolve(make_writer(spec).options, model)
    # a head that was trained beside a model is not the model's own
    trained = isinstance(model.addons.get("native_mtp"), FedBackHead)
    names = DEFAULT_PANELS if model.split else PLAIN_PANELS
    specs = [*given] + [
        spec
        for spec in map(parse_panel, TRAINED_PANELS if trained else names)
        if not DECODERS[spec.decoder].missing(model) and spec not in given
    ]
    return [*specs, *[parse_panel("ar")] * MOST_PANELS][:MOST_PANELS]


def can_run(model: Model, panels: Sequence[PanelSpec]) -> bool:
    """Say whether a model has what all of these panels need, and takes their options."""
    try:
        for decoder in map(make_decoder, panels):
            decoder.resolve(decoder.options, model)
    except UserError:
        return False
    return True
