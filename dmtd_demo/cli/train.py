"""`train`: the embedded model and its add-ons, or add-ons and DMTD for any Qwen."""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dmtd_demo.models.model import Model


def run_train(options: argparse.Namespace) -> None:
    """Train the embedded models, add-ons, or the layers of another model."""
    _check(options)
    if options.recipe == "classroom-hybrid":
        train_hybrid(options)
        return
    if options.recipe in ("data", "all"):
        (write_data if options.recipe == "data" else train_everything)(options)
        return
    options.output = options.output or "runs/classroom"
    if options.model:
        train_any_model(options)
        return
    if options.recipe == "dmtd":
        from dmtd_demo.errors import UserError

        raise UserError(
            "train dmtd needs --model: a catalog name, a folder in Hugging Face format or a hub id "
            "(`train classroom` trains the embedded model for DMTD)"
        )
    from dmtd_demo.training import run

    training = run.Training(
        Path(options.output),
        None if options.tokens is None else int(options.tokens),
        options.seed,
        options.resume,
        options.device,
        options.threads,
        options.checkpoint_seconds,
        options.compile,
        options.start,
        options.keep,
        options.vanilla,
    )
    run.train_recipe(options.recipe, training)


def train_any_model(options: argparse.Namespace) -> None:
    """Train an add-on for --model, or its layers for DMTD. Raises UserError."""
    from dmtd_demo.models.loading import load
    from dmtd_demo.models.threads import THREADS
    from dmtd_demo.training.any_model import DMTDSettings, Settings, train_addon, train_dmtd
    from dmtd_demo.training.loop import own_device

    # dmtd without LoRA trains the weights themselves
    whole = options.recipe == "dmtd" and options.lora is None
    # what trains layers is not for int8's own float16
    own_dtype = "float32" if whole else None
    if options.recipe == "dmtd" and options.quantization == "int8":
        own_dtype = "bfloat16"
    model = load(
        options.model,
        quantization=options.quantization or ("none" if whole else None),
        fast=False,
        dtype=options.dtype or own_dtype,
        device=own_device(options.device),
        threads=options.threads or THREADS,
    )
    common: dict[str, Any] = dict(
        data=options.data,
        rows=options.max_rows,
        own_answers=options.own_answers,
        steps=options.max_steps,
        rate=options.learning_rate,
        seed=options.seed,
        resume=options.resume,
        checkpoint_seconds=options.checkpoint_seconds,
    )
    if options.recipe == "dmtd":
        settings = DMTDSettings(
            **common,
            split=options.split,
            tau=options.tau,
            lora=options.lora,
            batch=16 if options.batch is None else options.batch,
            pieces=options.gradient_accumulation,
            checkpointing=options.gradient_checkpointing,
        )
        train_dmtd(model, Path(options.output), settings)
    else:
        native = options.heads == "native"
        name = "native_clp" if native and options.recipe == "clp" else options.recipe
        train_addon(name, model, Path(options.output), Settings(**common))


def _check(options: argparse.Namespace) -> None:
    """Raise UserError for what cannot be, numbers or --output, before anything is loaded."""
    from dmtd_demo.destinations import check_folder
    from dmtd_demo.errors import UserError
    from dmtd_demo.models.threads import check
    from dmtd_demo.sampling import Sampling

    check(options.threads)
    if options.output:
        check_folder(options.output)
    Sampling(seed=options.seed)
    for name in ("tokens", "minutes", "seconds", "learning_rate", "checkpoint_seconds"):
        value = getattr(options, name)
        if value is not None and not math.isfinite(value):
            raise UserError(f"--{name.replace('_', '-')} needs a finite number; got {value}")
    if options.checkpoint_seconds < 0:
        raise UserError(
            f"--checkpoint-seconds needs a number, 0 or more; got {options.checkpoint_seconds}"
        )


def _loaded(options: argparse.Namespace, fast: bool) -> Model:
    """Load the model that is asked for; `fast` as in `models.loading.load`. Raises UserError."""
    from dmtd_demo.models.loading import load
    from dmtd_demo.models.threads import THREADS

    return load(
        options.model,
        quantization=options.quantization,
        dtype=options.dtype,
        device=options.device,
        fast=fast,
        threads=options.threads or THREADS,
    )


def write_data(options: argparse.Namespace) -> None:
    """Let a chat model write conversations, and say what came of them."""
    from dmtd_demo.errors import UserError
    from dmtd_demo.training.magpie import CARD, DataSettings, read_openings, write_conversations

    if not options.model:
        raise UserError("train data needs --model: a chat model, which writes the conversations")
    settings = DataSettings(
        options.conversations,
        64 if options.batch is None else options.batch,
        options.turns,
        options.temperature,
        options.answer_temperature,
        options.seed,
        openings=read_openings(options.openings),
    )
    model = _loaded(options, fast=True)
    folder = Path(options.output or "runs/data")
    write_conversations(model, folder, settings)
    print((folder / CARD).read_text(encoding="utf-8"))


def train_everything(options: argparse.Namespace) -> None:
    """Train every add-on of a model under one bar, and say what came of it."""
    from tqdm import tqdm

    from dmtd_demo.errors import UserError
    from dmtd_demo.training.all_addons import FIGURES, AllSettings, Plan, train_all

    if not options.model:
        raise UserError("train all needs --model: a chat model")
    settings = AllSettings(
        options.conversations,
        options.minutes,
        options.data,
        64 if options.batch is None else options.batch,
        options.seed,
        options.checkpoint_seconds,
    )
    model = _loaded(options, fast=False)
    output = Path(options.output or f"runs/{model.name.rpartition('/')[2]}")
    # a thousandth of the estimate each
    form = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
    with tqdm(total=1000, bar_format=form, dynamic_ncols=True) as bar:

        def tell(stage: str, done: int, total: int) -> None:
            bar.set_description_str(stage, refresh=False)
            bar.update(max(done - bar.n, 0))

        def announce(plan: Plan) -> None:
            bar.write(f"{model.name}: {plan}; {output} goes on where it was if it is run again")

        def judge(folder: Path, held: Path, seconds: float) -> dict[str, Any]:
            return judged(model, folder, held, seconds)

        found = train_all(model, output, settings, tell=tell, judge=judge, planned=announce)
    for stage, facts in found.items():
        print(f"{stage}: {facts}")
    print(f"The add-ons lie in {output / 'addons'}, their figures in {output / FIGURES}.")


def judged(model: Model, folder: Path, held: Path, seconds: float) -> dict[str, Any]:
    """Race new add-ons on as many held-out conversations as fit into the seconds, one at least."""
    from dmtd_demo.decoders import DECODERS
    from dmtd_demo.measure.evaluation import evaluate, read_tasks
    from dmtd_demo.models.addons import load_addons
    from dmtd_demo.race.panels import parse_panel
    from dmtd_demo.race.settings import RaceSettings

    backbone = model.backbone
    modules, facts = load_addons(
        folder, backbone.hidden_size, backbone.dtype, backbone.device, model.base
    )
    model.addons.update(modules)
    model.addon_facts.update({method: facts[method] for method in modules})
    names = ("ar", "mtp-verified", "clp", "mtp-gate", "dmtd-adaptive")
    panels = [parse_panel(name) for name in names if not DECODERS[name].missing(model)]
    tasks = read_tasks(str(held), 100)
    settings = RaceSettings.of(max_new_tokens=64)
    began = time.monotonic()
    result = evaluate(model, panels, tasks[:1], settings)
    fit = int(seconds / (time.monotonic() - began)) - 1
    if fit > 1:
        result = evaluate(model, panels, tasks[:fit], settings)
    shown = ("audit_agreement", "tokens_per_full_pass", "over_ar", "repetition_ratio")
    rows = {row["panel"]: {name: row[name] for name in shown} for row in result["rows"]}
    return {"prompts": result["prompts"], "panels": rows}


def train_hybrid(options: argparse.Namespace) -> None:
    """Train `classroom-hybrid`. Raises UserError."""
    from dmtd_demo.errors import UserError
    from dmtd_demo.training.hybrid.run import Settings, train

    given = [
        name for name in ("model", "tokens", "resume", "vanilla", "keep") if getattr(options, name)
    ]
    if given:
        raise UserError(
            f"classroom-hybrid is trained from nothing or from --start FOLDER, for --seconds; it "
            f"takes no --{given[0]}"
        )
    train(
        Settings(
            Path(options.output or "runs/classroom-hybrid"),
            seconds=options.seconds,
            rows=options.rows,
            updates=options.max_steps,
            seed=options.seed,
            device=options.device,
            threads=options.threads,
            compile=options.compile,
            start=Path(options.start) if options.start else None,
            save_seconds=options.checkpoint_seconds,
        )
    )
