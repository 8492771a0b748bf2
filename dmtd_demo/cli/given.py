"""What several commands are given: a model, how to sample, panels."""

from __future__ import annotations

import argparse
from typing import Any


def loaded(options: argparse.Namespace) -> Any:
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


def sampling_of(options: argparse.Namespace) -> Any:
    from dmtd_demo.sampling import Sampling

    return Sampling(options.temperature, options.top_k, options.top_p, options.seed)


def local_panels(options: argparse.Namespace, model: Any) -> list[Any]:
    """Those asked for; else the default set, without what this model cannot run."""
    from dmtd_demo.decoders import DECODERS
    from dmtd_demo.errors import UserError
    from dmtd_demo.race.panels import parse_panel

    panels = [parse_panel(text) for text in options.panel or options.default_panels]
    for panel in panels:
        if panel.decoder not in DECODERS:
            raise UserError(
                f"{options.command} needs decoders of this machine, {', '.join(DECODERS)}; got {panel}"
            )
    return (
        panels
        if options.panel
        else [panel for panel in panels if not DECODERS[panel.decoder].missing(model)]
    )
