"""`eval`, `curves`, `bench`, `project`, `report` and `results`: figures and their tables."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from dmtd_demo.cli.given import check_whole, loaded, local_panels, nothing_along, race_settings
from dmtd_demo.race.table import aligned

# all are drawn, and asked by every panel, before there is a figure
MOST_PROMPTS = 100_000


def run_evaluate(options: argparse.Namespace) -> None:
    """Print exact match and the other figures of held-out prompts."""
    from dmtd_demo.decoders import DECODERS
    from dmtd_demo.measure import evaluation
    from dmtd_demo.race.panels import parse_panel

    check_whole(options, "prompts", 1, MOST_PROMPTS)
    # neither alternatives nor a text after its end mark are looked at
    settings = replace(race_settings(options), top=0, ignore_eos=False)
    tasks = (
        evaluation.read_tasks(options.data, options.prompts)
        if options.data
        else evaluation.held_out_tasks(options.seed, options.prompts)
    )
    model = loaded(options)
    panels = local_panels(options, model)
    # every other decoder as well, at its defaults
    if not options.panel:
        panels += [
            parse_panel(name)
            for name in DECODERS
            if name not in {panel.decoder for panel in panels} and not DECODERS[name].missing(model)
        ]
    _print_rows(
        evaluation.evaluate(model, panels, tasks, settings),
        options.json,
        (
            "exact_match",
            "relative",
            "repetition_ratio",
            "audit_agreement",
            "nats",
            "mean_span",
            "tokens_per_full_pass",
            "plt",
            "tokens_per_second",
            "over_ar",
        ),
    )


def run_curves(options: argparse.Namespace) -> None:
    """Print the accuracy of MTP heads and of cycle lengths over training."""
    from dmtd_demo.measure.curves import curves
    from dmtd_demo.measure.report import curve_tables

    check_whole(options, "prompts", 1, MOST_PROMPTS)
    check_whole(options, "seed", 0)
    result = curves(loaded(options), options.kept, options.seed, options.prompts)
    print(json.dumps(result) if options.json else curve_tables(result))


def run_bench(options: argparse.Namespace) -> None:
    """Print tokens per second beside those of `generate`."""
    from dmtd_demo.measure.bench import bench
    from dmtd_demo.models.loading import load

    for name, low in (("context", 1), ("new", 2), ("rounds", 1)):
        check_whole(options, name, low)
    model = loaded(options)
    assistant = (
        load(options.assistant, dtype=model.dtype, device=model.device, threads=model.threads)
        if options.assistant
        else None
    )
    result = bench(
        model, local_panels(options, model), options.context, options.new, options.rounds, assistant
    )
    _print_rows(
        result,
        options.json,
        (
            "tokens_per_second",
            "over_generate",
            "over_ar",
            "limit",
            "share_of_limit",
            "bytes_per_token",
            "share_of_memory",
        ),
    )
    if not options.json:
        if result["generate"]:
            print(f"\ngenerate, tokens/s: {_listed(result['generate']['all'])}")
        print(f"passes, ms: {_listed(result['pass_ms'])}")
        print(f"memory, read: {result['memory_bandwidth'] / 1e9:.3g} GB/s")


def run_project(options: argparse.Namespace) -> None:
    """Print an estimate for a machine that is not here."""
    from dmtd_demo.measure.projection import Projection, project

    result = project(
        Projection(
            options.model,
            options.device,
            quantization=options.quantization,
            batch=options.batch,
            context=options.context,
            split=options.split,
            k=options.k,
            span=options.span,
            reached=options.reached,
        )
    )
    if not options.json:
        print(
            f"An estimate, nothing here was measured: {result['model']} {result['split']} on "
            f"{result['device_label']}, {result['quantization']}, batch {result['batch']}, "
            f"context {result['context']}\n"
        )
    _print_rows(result, options.json, ("tokens_per_second", "over_ar"))
    if not options.json:
        print("\nThe same estimate in published settings:")
        for row in result["published"]:
            print(_beside(row, "published"))
        print("The same estimate where this code was measured:")
        for row in result["measured"]:
            print(_beside(row, "measured"))
        print(
            "Published without device and mean span; the tokens per full pass that the estimate "
            "needs for it:"
        )
        for row in result["implied"]:
            published, span = (
                " to ".join(f"{each:.2f}" for each in row[name]) for name in ("published", "span")
            )
            print(f"  {row['what']}: {published} published, {span} tokens per full pass")


def run_report(options: argparse.Namespace) -> None:
    """Print the results of `eval` as Markdown tables."""
    from dmtd_demo.errors import UserError
    from dmtd_demo.measure.report import family_table, summary_table
    from dmtd_demo.text_files import parsed, read_text

    try:
        result = parsed(read_text(options.file))
        tables = summary_table(result), family_table(result)
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise UserError(
            f"report needs a file that `eval --json` printed; reading {options.file} gave: "
            f"{' '.join(str(error).split())[:200]}"
        ) from None
    # not among what is caught: whoever reads them may have closed the pipe
    print(*tables, sep="\n", end="")


def run_results(options: argparse.Namespace) -> None:
    """Print docs/results.md."""
    from dmtd_demo.errors import UserError
    from dmtd_demo.measure.results import page
    from dmtd_demo.models.catalog import CATALOG

    folder = Path(options.folder or CATALOG["classroom"].source)
    try:
        text = page(folder)
    except (KeyError, TypeError, IndexError, AttributeError, ZeroDivisionError) as error:
        raise UserError(
            f"results needs files as `eval --json` and `curves --json` print them in {folder}; "
            f"reading them gave: {error!r:.200}"
        ) from None
    print(text, end="")


def _listed(figures: dict[str, float]) -> str:
    return ", ".join(f"{name} {figure:.4g}" for name, figure in figures.items())


def _beside(row: dict[str, Any], found: str) -> str:
    """Put an estimate beside a figure that was published or measured."""
    return (
        f"  {row['what']}: {row['predicted']:.4g} estimated, {row[found]:.4g} {found} "
        f"({row['error']:+.0%})"
    )


def _print_rows(result: dict[str, Any], as_json: bool, columns: tuple[str, ...]) -> None:
    if as_json:
        print(json.dumps(result))
        return
    print(aligned(result["rows"], ("panel", *columns), "{:.4g}".format))
    for row in result["rows"]:
        if row.get("takes_nothing"):
            print(f"\n{nothing_along(row['panel'])}")
