"""`generate`, `compare` and `draw`: races whose text, figures or passes are printed."""

from __future__ import annotations

import argparse
import gc
from typing import Any

from dmtd_demo.cli.given import loaded, sampling_of


def generate(options: argparse.Namespace) -> None:
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
    for batch in _batches(options, [make_panel(options.decoder, pairs)]):
        for record in batch:
            if options.json:
                print(trace.dumps(record), flush=True)
            elif record["type"] == "step":
                print("".join(token["text"] for token in record["tokens"]), end="", flush=True)
            if record["type"] == "summary":
                summaries.append(record)
    if not options.json:
        print()
    _failed(summaries)


def compare(options: argparse.Namespace) -> None:
    from dmtd_demo.race import trace
    from dmtd_demo.race.panels import parse_panel

    panels = [parse_panel(text) for text in options.panel or options.default_panels]
    summaries = []
    for batch in _batches(options, panels):
        for record in batch:
            if options.json:
                print(trace.dumps(record), flush=True)
            if record["type"] == "summary":
                summaries.append(record)
                if not options.json:
                    speed = (
                        f"{record['tokens_per_second']:.1f} tokens/s, "
                        if record["tokens_per_second"]
                        else ""
                    )
                    print(
                        f"--- {panels[record['panel']]}: {record['tokens']} tokens, {speed}stopped by {record['stop']}\n{record['text']}\n"
                    )
    _failed(summaries)


def draw(options: argparse.Namespace) -> None:
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
    records = [record for batch in _batches(options, [panel], model) for record in batch]
    _failed([record for record in records if record["type"] == "summary"])
    print(passes_svg(records, 0, model.split, options.passes), end="")


def _batches(options: argparse.Namespace, panels: list[Any], model: Any = None) -> Any:
    from dmtd_demo.errors import UserError
    from dmtd_demo.race.race import race, race_ids

    settings = dict(
        max_new_tokens=options.max_new_tokens, top=options.top, ignore_eos=options.ignore_eos
    )
    sampling = sampling_of(options)
    ids = _prompt_ids(options.prompt_ids) if options.prompt_ids is not None else None
    if ids is not None and options.system is not None:
        raise UserError("--system needs --prompt; got --prompt-ids, which are used as they are")
    model = model or loaded(options)
    gc.collect()  # what loading left; a quarter of a second, which no panel is to pay for
    if ids is not None:
        return race_ids(model, panels, [ids] * len(panels), sampling, **settings)
    messages = [{"role": "user", "content": options.prompt}]
    if options.system is not None:
        messages.insert(0, {"role": "system", "content": options.system})
    return race(
        model, panels, [messages] * len(panels), sampling, thinking=options.thinking, **settings
    )


def _prompt_ids(text: str) -> list[int]:
    from dmtd_demo.errors import UserError

    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(
            f"--prompt-ids needs whole numbers with commas between, such as 1,2,3; got {text[:80]!r}"
        ) from None


def _failed(summaries: list[dict[str, Any]]) -> None:
    for summary in summaries:
        if summary["stop"] == "error":
            raise RuntimeError(summary["message"])
