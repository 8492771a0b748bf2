"""`train heads|head0|clp|gate|adaptive|dmtd --model …`: add-ons for any Qwen, plain or quantized,
and its own layers for DMTD, by the one loop.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Callable

import torch

from dmtd_demo.backbone.bitsandbytes_4bit import keep_layout
from dmtd_demo.backbone.cpu_packed import dense_kept
from dmtd_demo.backbone.onednn import plain
from dmtd_demo.backbone.qwen import Backbone
from dmtd_demo.backbone.split import Split
from dmtd_demo.decoders.clp import accepted_length
from dmtd_demo.decoders.mtp_gate import open_gates
from dmtd_demo.errors import UserError
from dmtd_demo.machine import free
from dmtd_demo.models.addons import load_addons, save_addon
from dmtd_demo.models.memory import gib
from dmtd_demo.models.model import Model
from dmtd_demo.progress import Progress as Told
from dmtd_demo.progress import no_progress
from dmtd_demo.training import calibrate, dmtd, features
from dmtd_demo.training.clp import OwnHead
from dmtd_demo.training.corpus import ROWS, WORLD, WORLD_NAME, read_rows
from dmtd_demo.training.data import Row
from dmtd_demo.training.loop import Progress, processes, train

STEPS = {
    "heads": 2000,
    "head0": 2000,
    "clp": 1000,
    "native_clp": 1000,
    "gate": 1000,
    "adaptive": 1000,
    "dmtd": 1000,
}
BATCH = 16  # rows of an update of dmtd
HELD_OUT = 10  # every tenth row calibrates the threshold instead of training
ROOM = 2**32  # bytes of hidden states at most
LOOK_SECONDS = 0.5  # between two looks at the held-out rows of who watches


@dataclass(frozen=True)
class Moment:
    """What somebody who watches sees after an update.

    figures: of its batch, accuracies among them. confusion: of clp and adaptive over held-out rows,
    [true][predicted]; None between two looks.
    """

    step: int
    loss: float
    figures: dict[str, Any]
    confusion: list[list[int]] | None = None


def _checked(name: str, steps: int | None, rate: float | None) -> int:
    """How many updates. Raises UserError."""
    if name not in STEPS:
        raise UserError(
            f"train {name} is for the embedded model; with --model it needs one of "
            f"{', '.join(STEPS)}"
        )
    steps = STEPS[name] if steps is None else steps
    if steps < 1:
        raise UserError(f"--max-steps needs a whole number, 1 or more; got {steps}")
    if rate is not None and not rate > 0:
        raise UserError(f"--learning-rate needs a number over 0; got {rate}")
    return steps


def _rows(
    model: Model, data: str | None, output: Path, most: int, distill: bool, tell: Told = no_progress
) -> list[Row]:
    """Of several processes the first one reads, and lets the model answer, before the others."""
    with processes(model.backbone.device).main_process_first():
        return read_rows(model, data, output / "answers.jsonl", most, distill, tell)


def _source(data: str | None, distill: bool) -> str:
    """The data as a card names it."""
    if data is None:
        return "self-distillation on the shipped prompts"
    if data == WORLD:
        return WORLD_NAME
    return ("self-distillation on the prompts of " if distill else "") + (
        data if data.startswith("hf:") else Path(data).name
    )


def train_dmtd(
    model: Model,
    output: Path,
    *,
    data: str | None,
    steps: int | None,
    seed: int,
    resume: bool,
    checkpoint_seconds: float,
    split: str | None = None,
    taus: str = "2,3,4",
    lora: int | None = None,
    batch: int = BATCH,
    pieces: int = 1,
    checkpointing: bool = False,
    rate: float | None = None,
    most: int = ROWS,
    distill: bool = False,
) -> None:
    """Train the layers for DMTD, or LoRA adapters, which are then merged; the result lies in
    `output`/model, a folder in Hugging Face format.

    batch: rows of an update, over all processes; pieces: into how many each process cuts its rows
    of it. Raises UserError.
    """
    steps, cycles = _checked("dmtd", steps, rate), dmtd.parse_taus(taus)
    own = model.split or Split.default(model.layers)
    chosen = Split.parse(split, model.layers, own.head_input) if split else own
    least = processes(model.backbone.device).num_processes * pieces
    if pieces < 1 or batch < least:
        raise UserError(
            "--batch needs a row for every process and every --gradient-accumulation (1 or "
            f"more); got {batch} rows for {least} pieces"
        )
    keep_layout(model.backbone.module)
    model.backbone = Backbone(plain(model.backbone.module))
    rows = _rows(model, data, output, most, distill)
    dmtd.prepare(model, lora, checkpointing, seed)
    rate = rate or dmtd.RATE
    settings = (
        f"split {chosen}, tau {taus}, LoRA {lora}, quantization {model.quantization}, batch "
        f"{batch}, seed {seed}, {len(rows)} rows of {_source(data, distill)}"
    )
    print(f"dmtd: {settings}, learning rate {rate}")
    recipe = dmtd.recipe(
        model, chosen, cycles, seed, rate, max(len(row.ids) for row in rows), settings
    )
    train(
        recipe,
        lambda position: dmtd.draws(rows, batch, seed, position),
        None,
        output,
        steps=steps,
        resume=resume,
        device=model.backbone.device,
        checkpoint_seconds=checkpoint_seconds,
        log=output / "log.jsonl",
        pieces=pieces,
    )


def train_addon(
    name: str,
    model: Model,
    output: Path,
    *,
    data: str | None,
    steps: int | None,
    seed: int,
    resume: bool,
    checkpoint_seconds: float,
    rate: float | None = None,
    most: int = ROWS,
    distill: bool = False,
    tell: Told = no_progress,
    watch: Callable[[Moment], None] | None = None,
) -> None:
    """Train one add-on in `output`; the result lies in `output`/addons, a folder of add-ons.

    tell: hears what is being done, and may raise Cancelled. watch: sees every update. Raises
    UserError.
    """
    steps = _checked(name, steps, rate)
    backbone, split, folder = (
        model.backbone,
        model.split or Split.default(model.layers),
        output / "addons",
    )
    heads: Any = None
    if name == "native_clp":
        if not model.has("native_mtp"):
            raise UserError(
                "train clp --heads native needs a model with an MTP head of its own (Qwen3.5 and "
                f"later); {model.name} has none"
            )
        heads = OwnHead(model.addons["native_mtp"])
    elif name in ("clp", "gate"):
        trained, _ = (
            load_addons(folder, backbone.hidden_size, torch.float32, backbone.device, model.base)
            if folder.exists()
            else (model.addons, {})
        )
        heads = trained.get("mtp_heads") or model.addons.get("mtp_heads")
        if heads is None:
            raise UserError(
                f"training {name} needs MTP heads in {folder}: run `train heads --model … "
                f"--output {output}` first"
            )
        heads = heads.float()
    rows = _rows(model, data, output, most, distill, tell)
    kept = rows[::HELD_OUT] if len(rows) > HELD_OUT else rows
    learned = [row for i, row in enumerate(rows) if i % HELD_OUT] if len(rows) > HELD_OUT else rows
    seen = features.collect(
        name, backbone, split, heads, learned, min(ROOM, free("cpu") // 4), seed, tell
    )
    held = (
        features.collect(name, backbone, split, heads, kept, ROOM, seed, tell)
        if watch and name in ("clp", "native_clp", "adaptive")
        else None
    )
    print(
        f"{name}: {len(seen.h):,} positions of {len(learned)} rows, "
        f"{gib(seen.h.numel() * seen.h.element_size())}"
    )
    facts = {"data": _source(data, distill), "positions": len(seen.h), "steps": steps, "seed": seed}
    recipe = features.recipe(name, backbone, model.base, seed, heads.k if heads else 0, facts)
    recipe = replace(recipe, learning_rate=rate or recipe.learning_rate)
    looked = 0.0

    def after(progress: Progress, loss: float, figures: dict[str, Any]) -> None:
        nonlocal looked
        tell("Training", progress.step, steps)
        if watch:
            due = held is not None and (
                time.monotonic() - looked > LOOK_SECONDS or progress.step == steps
            )
            looked = time.monotonic() if due else looked
            watch(
                Moment(
                    progress.step,
                    loss,
                    figures,
                    features.confusion(recipe.trainable, held) if due else None,
                )
            )

    with dense_kept(backbone.module.get_output_embeddings()):
        train(
            recipe,
            lambda position: seen.draws(name, seed, position),
            steps * features.DRAWN[name],
            output,
            resume=resume,
            device=backbone.device,
            checkpoint_seconds=checkpoint_seconds,
            log=output / "log.jsonl",
            watch=after,
        )
    if not heads or not processes(backbone.device).is_main_process:
        return
    module = recipe.trainable
    gate = name == "gate"
    accept = open_gates if gate else partial(accepted_length, rule="cumulative")

    def read(h: torch.Tensor) -> torch.Tensor:
        logits = module(h)
        return logits.sigmoid() if gate else logits.softmax(-1)

    try:
        found = calibrate.spans(backbone, split, heads, kept, read, accept, tell)
    except RuntimeError as error:  # texts that the model would not have written itself
        print(f"{name}: {error}")
        return
    save_addon(
        folder,
        features.METHODS[name],
        module,
        model.base,
        backbone.hidden_size,
        **{**facts, **found},
    )
    print(f"{name}: default threshold {found['threshold']}, {found['validation']}")
