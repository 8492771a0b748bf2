"""`models` and `push`: the catalog, and add-ons on their way to the hub."""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def models(options: argparse.Namespace) -> None:
    import torch

    from dmtd_demo.measure.availability import describe, lines
    from dmtd_demo.models.catalog import CATALOG

    device = "cuda" if torch.cuda.is_available() else "cpu"
    described = [describe(entry, device) for entry in CATALOG.values()]
    if options.json:
        print(json.dumps({"models": described}))
    else:
        print("\n\n".join("\n".join(lines(d)) for d in described))


def push(options: argparse.Namespace) -> None:
    from dmtd_demo.models.publishing import publish

    print(publish(Path(options.folder), options.to, options.license, options.private))
