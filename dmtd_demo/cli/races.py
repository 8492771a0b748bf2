"""`generate`, `compare` and `draw`: races whose text, figures or passes are printed."""

from __future__ import annotations

import argparse
import contextlib
import gc
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from dmtd_demo.cli.given import loaded, nothing_along, race_settings

if TYPE_CHECKING:
    from dmtd_demo.models.model import Model
    from dmtd_demo.race.panels import PanelSpec
    from dmtd_demo.race.trace import Record


def run_generate(options: argparse.Namespace) -> None:
    """Print one decoder's text as it comes, or the record."""
    from dmtd_demo.errors import UserError
    from dmtd_demo.race import trace
    from dmtd_demo.race.panels import make_panel

    pairs = []
    for item in options.set:
        name, equals, value = item.partition("=")
        if not equals:
            raise UserError(f"--set needs the form name=value; got {item!r}")
        pairs.append((name, value))
    summaries = []
    for record in _raced(options, [make_panel(options.decoder, pairs)]):
        if options.json:
            print(trace.dumps(record), flush=True)
        elif record["type"] == "step":
            print("".join(token["text"] for token in record["tokens"]), end="", flush=True)
        if record["type"] == "summary":
            summaries.append(record)
    if not options.json:
        print()
    _failed(summaries)


def run_compare(options: argparse.Namespace) -> None:
    """Print every panel's text and speed, or the record."""
    from dmtd_demo.race import trace
    from dmtd_demo.race.panels import parse_panel

    panels = [parse_panel(text) for text in options.panel or options.default_panels]
    summaries = []
    for record in _raced(options, panels):
        if options.json:
            print(trace.dumps(record), flush=True)
        elif record["type"] == "header":
            for panel in record["panels"]:
                if panel.get("takes_nothing"):
                    print(f"{nothing_along(panel['spec'])}\n")
        if record["type"] == "summary":
            summaries.append(record)
            if not options.json:
                print(_described(panels[record["panel"]], record))
    _failed(summaries)


def run_draw(options: argparse.Namespace) -> None:
    """Print a decoder's first passes as SVG."""
    from dmtd_demo.decoders import DECODERS
    from dmtd_demo.errors import UserError
    from dmtd_demo.race.drawing import passes_svg
    from dmtd_demo.race.panels import parse_panel

    if options.passes < 1:
        raise UserError(f"--passes needs a whole number, 1 or more; got {options.passes}")
    panel = parse_panel(options.panel)
    if panel.decoder not in DECODERS:
        raise UserError(f"draw needs a decoder of this machine, {', '.join(DECODERS)}; got {panel}")
    model = loaded(options)
    records = list(_raced(options, [panel], model))
    _failed([record for record in records if record["type"] == "summary"])
    print(passes_svg(records, 0, model.split, options.passes), end="")


def _raced(
    options: argparse.Namespace, panels: Sequence[PanelSpec], model: Model | None = None
) -> Iterator[Record]:
    """Race the panels on the model and the prompt of the options; yield the records."""
    from dmtd_demo.errors import UserError
    from dmtd_demo.race.race import race, race_ids
    from dmtd_demo.race.request import messages_of

    settings = race_settings(options)
    ids = _prompt_ids(options.prompt_ids) if options.prompt_ids is not None else None
    if ids is not None and options.system is not None:
        raise UserError("--system needs --prompt; got --prompt-ids, which are used as they are")
    model = model or loaded(options)
    # the garbage of loading takes a quarter of a second, which no panel is to pay for
    gc.collect()
    if ids is not None:
        batches = race_ids(model, panels, [ids] * len(panels), settings)
    else:
        messages = messages_of(options.prompt, options.system)
        batches = race(model, panels, [messages] * len(panels), settings)
    with contextlib.closing(batches):
        for batch in batches:
            yield from batch


def _described(panel: PanelSpec, summary: Record) -> str:
    speed = summary["tokens_per_second"]
    words = f"{speed:.1f} tokens/s, " if speed else ""
    return (
        f"--- {panel}: {summary['tokens']} tokens, {words}stopped by {summary['stop']}\n"
        f"{summary['text']}\n"
    )


def _prompt_ids(text: str) -> list[int]:
    from dmtd_demo.errors import UserError

    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(
            "--prompt-ids needs whole numbers with commas between, such as 1,2,3; "
            f"got {text[:80]!r}"
        ) from None


def _failed(summaries: list[Record]) -> None:
    """Raise RuntimeError where a panel failed."""
    for summary in summaries:
        if summary["stop"] == "error":
            raise RuntimeError(summary["message"])
