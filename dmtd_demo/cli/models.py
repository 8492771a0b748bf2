"""`models`, `get` and `push`: the catalog, what is fetched, and add-ons on their way to the hub."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path


def run_models(options: argparse.Namespace) -> None:
    """Print the catalog."""
    import torch

    from dmtd_demo.measure.availability import describe_model, lines
    from dmtd_demo.models.catalog import CATALOG

    device = "cuda" if torch.cuda.is_available() else "cpu"
    described = [describe_model(entry, device) for entry in CATALOG.values()]
    if options.json:
        print(json.dumps({"models": described}))
    else:
        print("\n\n".join("\n".join(lines(d)) for d in described))


def run_get(options: argparse.Namespace) -> None:
    """Fetch a model and say where it lies."""
    from dmtd_demo.models.fetch import get as fetch

    print(fetch(options.name, _Bar()))


class _Bar:
    """The progress of a download, in a line of its own on a terminal's standard error."""

    def __init__(self) -> None:
        self._shown = ""

    def __call__(self, stage: str, done: int, total: int) -> None:
        from dmtd_demo.models.memory import amount

        share = f" {100 * done // total:3d} % of {amount(total)}" if total else ""
        line = f"{stage}{share}"
        if line == self._shown or not sys.stderr.isatty():
            return
        self._shown = line
        last = "\n" if total and done >= total else ""
        print(f"\r{line:<60}", end=last, file=sys.stderr, flush=True)


def run_push(options: argparse.Namespace) -> None:
    """Publish a folder of add-ons and print its address."""
    from dmtd_demo.models.publishing import publish

    print(publish(Path(options.folder), options.to, options.license, options.private))
