"""python -m dmtd_demo generate | compare | bench | eval | curves | project | draw | report | results | models | push | train"""
from __future__ import annotations

import argparse
import gc
import json
import sys
from pathlib import Path
from typing import Any

from dmtd_demo.options import build_parser


def main(arguments: list[str] | None = None) -> int:
    options = build_parser().parse_args(arguments)
    from dmtd_demo.errors import Interrupted, TrainingError, UserError  # after --help, which needs no PyTorch
    try:
        COMMANDS[options.command](options)
    except UserError as error:
        print(f"dmtd_demo: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except TrainingError as error:
        print(f"dmtd_demo: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except Interrupted as stop:
        print(f"dmtd_demo: {stop}", file=sys.stderr)
        return 128 + stop.signal
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:   # the reader of our output has gone
        sys.stderr.close()
        return 1
    except Exception as error:
        print(f"dmtd_demo: {type(error).__name__}: {' '.join(str(error).split())[:500]}", file=sys.stderr)
        return 1
    return 0


def _load(options: argparse.Namespace) -> Any:
    from dmtd_demo.loading import load, load_random
    if options.random_weights:
        return load_random(options.random_weights, dtype=options.dtype, device=options.device, threads=options.threads, quantization=options.quantization)
    return load(options.model, quantization=options.quantization, dtype=options.dtype, device=options.device, threads=options.threads, addons=options.addons)


def _sampling(options: argparse.Namespace) -> Any:
    from dmtd_demo.sampling import Sampling
    return Sampling(options.temperature, options.top_k, options.top_p, options.seed)


def _prompt_ids(text: str) -> list[int]:
    from dmtd_demo.errors import UserError
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--prompt-ids needs whole numbers with commas between, such as 1,2,3; got {text[:80]!r}") from None


def _batches(options: argparse.Namespace, panels: list[Any], model: Any = None) -> Any:
    from dmtd_demo.errors import UserError
    from dmtd_demo.race import race, race_ids
    settings = dict(max_new_tokens=options.max_new_tokens, top=options.top, ignore_eos=options.ignore_eos)
    sampling = _sampling(options)
    ids = _prompt_ids(options.prompt_ids) if options.prompt_ids is not None else None
    if ids is not None and options.system is not None:
        raise UserError("--system needs --prompt; got --prompt-ids, which are used as they are")
    model = model or _load(options)
    gc.collect()   # what loading left; a quarter of a second, which no panel is to pay for
    if ids is not None:
        return race_ids(model, panels, [ids] * len(panels), sampling, **settings)
    messages = [{"role": "user", "content": options.prompt}]
    if options.system is not None:
        messages.insert(0, {"role": "system", "content": options.system})
    return race(model, panels, [messages] * len(panels), sampling, thinking=options.thinking, **settings)


def _failed(summaries: list[dict[str, Any]]) -> None:
    for summary in summaries:
        if summary["stop"] == "error":
            raise RuntimeError(summary["message"])


def generate(options: argparse.Namespace) -> None:
    from dmtd_demo import trace
    from dmtd_demo.decoders import make_panel
    from dmtd_demo.errors import UserError
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
    from dmtd_demo import trace
    from dmtd_demo.decoders import parse_panel
    panels = [parse_panel(text) for text in options.panel or options.default_panels]
    summaries = []
    for batch in _batches(options, panels):
        for record in batch:
            if options.json:
                print(trace.dumps(record), flush=True)
            if record["type"] == "summary":
                summaries.append(record)
                if not options.json:
                    speed = f"{record['tokens_per_second']:.1f} tokens/s, " if record["tokens_per_second"] else ""
                    print(f"--- {panels[record['panel']]}: {record['tokens']} tokens, {speed}stopped by {record['stop']}\n{record['text']}\n")
    _failed(summaries)


def draw(options: argparse.Namespace) -> None:
    from dmtd_demo.decoders import DECODERS, parse_panel
    from dmtd_demo.drawing import passes_svg
    from dmtd_demo.errors import UserError
    if options.passes < 1:
        raise UserError(f"--passes needs a whole number, 1 or more; got {options.passes}")
    panel = parse_panel(options.panel)
    if panel.decoder not in DECODERS:
        raise UserError(f"draw needs a decoder of this machine, {', '.join(DECODERS)}; got {panel}")
    model = _load(options)
    records = [record for batch in _batches(options, [panel], model) for record in batch]
    _failed([record for record in records if record["type"] == "summary"])
    print(passes_svg(records, 0, model.split, options.passes), end="")


def evaluate(options: argparse.Namespace) -> None:
    from dmtd_demo import evaluation
    from dmtd_demo.decoders import DECODERS, parse_panel
    from dmtd_demo.errors import UserError
    if options.prompts < 1:
        raise UserError(f"--prompts needs a whole number, 1 or more; got {options.prompts}")
    sampling = _sampling(options)
    tasks = evaluation.read_tasks(options.data, options.prompts) if options.data else evaluation.held_out_tasks(options.seed, options.prompts)
    model = _load(options)
    panels = _panels(options, model)
    if not options.panel:   # every other decoder as well, at its defaults
        panels += [parse_panel(name) for name in DECODERS if name not in {panel.decoder for panel in panels} and not DECODERS[name].missing(model)]
    _print_rows(evaluation.evaluate(model, panels, tasks, sampling, options.max_new_tokens, options.thinking), options.json,
                ("exact_match", "relative", "repetition_ratio", "audit_agreement", "mean_span", "tokens_per_full_pass", "plt", "tokens_per_second", "over_ar"))


def curves(options: argparse.Namespace) -> None:
    from dmtd_demo.errors import UserError
    from dmtd_demo.report import curve_tables
    from dmtd_demo.training.curves import curves as measure
    if options.prompts < 1:
        raise UserError(f"--prompts needs a whole number, 1 or more; got {options.prompts}")
    result = measure(_load(options), options.kept, options.seed, options.prompts)
    print(json.dumps(result) if options.json else curve_tables(result))


def report(options: argparse.Namespace) -> None:
    from dmtd_demo.errors import UserError
    from dmtd_demo.report import family_table, summary_table
    try:
        result = json.loads(Path(options.file).read_text(encoding="utf-8"))
        print(summary_table(result), family_table(result), sep="\n", end="")
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(f"report needs a file that `eval --json` printed; reading {options.file} gave: {' '.join(str(error).split())[:200]}") from None


def results(options: argparse.Namespace) -> None:
    from dmtd_demo.catalog import CATALOG
    from dmtd_demo.results import page
    print(page(Path(options.folder or CATALOG["classroom"].source)), end="")


def bench(options: argparse.Namespace) -> None:
    from dmtd_demo.bench import bench as run
    from dmtd_demo.errors import UserError
    from dmtd_demo.loading import load
    for name, low in (("context", 1), ("new", 2), ("rounds", 1)):
        if getattr(options, name) < low:
            raise UserError(f"--{name} needs a whole number, {low} or more; got {getattr(options, name)}")
    model = _load(options)
    assistant = load(options.assistant, dtype=model.dtype, device=model.device, threads=model.threads) if options.assistant else None
    result = run(model, _panels(options, model), options.context, options.new, options.rounds, assistant)
    _print_rows(result, options.json, ("tokens_per_second", "over_generate", "over_ar", "limit", "share_of_limit", "bytes_per_token", "share_of_memory"))
    if not options.json:
        if result["generate"]:
            print(f"\ngenerate, tokens/s: {', '.join(f'{way} {speed:.4g}' for way, speed in result['generate']['all'].items())}")
        print(f"passes, ms: {', '.join(f'{name} {ms:.4g}' for name, ms in result['pass_ms'].items())}")
        print(f"memory, read: {result['memory_bandwidth'] / 1e9:.3g} GB/s")


def _panels(options: argparse.Namespace, model: Any) -> list[Any]:
    """Those asked for; else the default set, without what this model cannot run."""
    from dmtd_demo.decoders import DECODERS, parse_panel
    from dmtd_demo.errors import UserError
    panels = [parse_panel(text) for text in options.panel or options.default_panels]
    for panel in panels:
        if panel.decoder not in DECODERS:
            raise UserError(f"{options.command} needs decoders of this machine, {', '.join(DECODERS)}; got {panel}")
    return panels if options.panel else [panel for panel in panels if not DECODERS[panel.decoder].missing(model)]


def _print_rows(result: dict[str, Any], as_json: bool, columns: tuple[str, ...]) -> None:
    if as_json:
        print(json.dumps(result))
        return
    table = [("panel", *columns), *((row["panel"], *("–" if row[c] is None else f"{row[c]:.4g}" for c in columns)) for row in result["rows"])]
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())


def project(options: argparse.Namespace) -> None:
    from dmtd_demo.projection import project as estimate
    result = estimate(options.model, options.device, quantization=options.quantization, batch=options.batch, context=options.context, split=options.split, k=options.k,
                      span=options.span, reached=options.reached)
    if not options.json:
        print(f"An estimate, nothing here was measured: {result['model']} {result['split']} on {result['device_label']}, {result['quantization']}, batch {result['batch']}, context {result['context']}\n")
    _print_rows(result, options.json, ("tokens_per_second", "over_ar"))
    if not options.json:
        print("\nThe same estimate in published settings:")
        for row in result["published"]:
            print(f"  {row['what']}: {row['predicted']:.4g} estimated, {row['published']:.4g} published ({row['error']:+.0%})")
        print("The same estimate where this code was measured:")
        for row in result["measured"]:
            print(f"  {row['what']}: {row['predicted']:.4g} estimated, {row['measured']:.4g} measured ({row['error']:+.0%})")
        print("Published without device and mean span; the tokens per full pass that the estimate needs for it:")
        for row in result["implied"]:
            print(f"  {row['what']}: {' to '.join(f'{each:.2f}' for each in row['published'])} published, {' to '.join(f'{each:.2f}' for each in row['span'])} tokens per full pass")


def models(options: argparse.Namespace) -> None:
    import torch

    from dmtd_demo.availability import describe, lines
    from dmtd_demo.catalog import CATALOG
    device = "cuda" if torch.cuda.is_available() else "cpu"
    described = [describe(entry, device) for entry in CATALOG.values()]
    if options.json:
        print(json.dumps({"models": described}))
    else:
        print("\n\n".join("\n".join(lines(d)) for d in described))


def push(options: argparse.Namespace) -> None:
    from dmtd_demo.publishing import publish
    print(publish(Path(options.folder), options.to, options.license, options.private))


def train(options: argparse.Namespace) -> None:
    if options.model:
        from dmtd_demo.loading import THREADS, load
        from dmtd_demo.training.any_model import train_addon, train_dmtd
        from dmtd_demo.training.loop import own_device
        whole = options.recipe == "dmtd" and options.lora is None   # its weights are trained themselves
        model = load(options.model, quantization=options.quantization or ("none" if whole else None), dtype=options.dtype or ("float32" if whole else None),
                     device=own_device(options.device), threads=options.threads or THREADS)
        common = dict(data=options.data, steps=options.max_steps, seed=options.seed, resume=options.resume, checkpoint_seconds=options.checkpoint_seconds,
                      rate=options.learning_rate, most=options.max_rows, distill=options.own_answers)
        if options.recipe == "dmtd":
            train_dmtd(model, Path(options.output), **common, split=options.split, taus=options.tau, lora=options.lora, batch=options.batch,
                       pieces=options.gradient_accumulation, checkpointing=options.gradient_checkpointing)
        else:
            train_addon(options.recipe, model, Path(options.output), **common)
        return
    if options.recipe == "dmtd":
        from dmtd_demo.errors import UserError
        raise UserError("train dmtd needs --model: a catalog name, a folder in Hugging Face format or a hub id (`train classroom` trains the embedded model for DMTD)")
    from dmtd_demo.training import run
    run.train_recipe(options.recipe, Path(options.output), int(options.tokens) if options.tokens else None, options.seed, options.resume, options.device, options.threads,
                     options.checkpoint_seconds, options.compile, options.start, options.keep, options.vanilla)


COMMANDS = {"generate": generate, "compare": compare, "eval": evaluate, "bench": bench, "curves": curves, "project": project, "draw": draw, "report": report, "results": results, "models": models,
            "push": push, "train": train}

if __name__ == "__main__":
    raise SystemExit(main())
