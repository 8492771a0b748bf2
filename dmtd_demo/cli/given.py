"""The options that several commands share, read: a model, the settings of a race, panels."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dmtd_demo.models.model import Model
    from dmtd_demo.race.panels import PanelSpec
    from dmtd_demo.race.settings import RaceSettings


def loaded(options: argparse.Namespace) -> Model:
    """Load the model that the options name; raises UserError."""
    from dmtd_demo.models.loading import load, load_random

    if options.random_weights:
        return load_random(
            options.random_weights,
            dtype=options.dtype,
            device=options.device,
            threads=options.threads,
            quantization=options.quantization,
        )
    return load(
        options.model,
        quantization=options.quantization,
        dtype=options.dtype,
        device=options.device,
        threads=options.threads,
        addons=options.addons,
    )


def check_whole(options: argparse.Namespace, name: str, low: int, high: int | None = None) -> None:
    """Raise UserError for an option whose whole number is below `low` or over `high`."""
    from dmtd_demo.errors import UserError

    value = getattr(options, name)
    if value < low or high is not None and value > high:
        wanted = f"{low} or more" if high is None else f"from {low} to {high:,}"
        raise UserError(f"--{name.replace('_', '-')} needs a whole number, {wanted}; got {value}")


def race_settings(options: argparse.Namespace) -> RaceSettings:
    """Build the settings of a race; raises UserError."""
    from dmtd_demo.race.settings import RaceSettings

    return RaceSettings.of(
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        seed=options.seed,
        max_new_tokens=options.max_new_tokens,
        top=options.top,
        ignore_eos=options.ignore_eos,
        thinking=options.thinking,
    )


def nothing_along(panel: str) -> str:
    """Say why a panel takes no tokens along by default (Decoder.takes_nothing)."""
    return (
        f"{panel} takes nothing along: its default threshold is 1, because no lower one was seen "
        "to keep enough tokens right as its add-on was trained; give it a threshold, or train it "
        "on more texts"
    )


def local_panels(options: argparse.Namespace, model: Model) -> list[PanelSpec]:
    """Parse the panels asked for; else the default ones that this model can run.

    Raises UserError for a panel that no decoder of this machine writes.
    """
    from dmtd_demo.decoders import DECODERS
    from dmtd_demo.errors import UserError
    from dmtd_demo.race.panels import parse_panel

    panels = [parse_panel(text) for text in options.panel or options.default_panels]
    for panel in panels:
        if panel.decoder not in DECODERS:
            raise UserError(
                f"{options.command} needs decoders of this machine, {', '.join(DECODERS)}; "
                f"got {panel}"
            )
    return (
        panels
        if options.panel
        else [panel for panel in panels if not DECODERS[panel.decoder].missing(model)]
    )
