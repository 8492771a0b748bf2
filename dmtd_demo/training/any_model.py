"""`train heads|head0|clp|gate|adaptive|mixed|dmtd --model …`: training for any Qwen.

Add-ons are trained on the frozen backbone, plain or quantized, and its own layers for DMTD, by the
one loop.
"""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Callable

import torch
from torch import nn

from dmtd_demo.backbone.bitsandbytes_4bit import keep_layout
from dmtd_demo.backbone.onednn import plain
from dmtd_demo.backbone.packed import dense_kept
from dmtd_demo.backbone.qwen import Backbone
from dmtd_demo.backbone.split import Split
from dmtd_demo.destinations import check_folder
from dmtd_demo.errors import UserError
from dmtd_demo.machine import free
from dmtd_demo.models.addons import (
    CYCLES,
    CollocationLengthPredictor,
    LateHeads,
    MTPHeads,
    check_folder_for,
    load_addons,
    methods_in,
    save_addon,
)
from dmtd_demo.models.attaching import keep_apart
from dmtd_demo.models.memory import gib
from dmtd_demo.models.model import Model
from dmtd_demo.models.native_mtp import NativeMTP
from dmtd_demo.progress import Progress as Told
from dmtd_demo.progress import no_progress
from dmtd_demo.training import calibrate, dmtd, features
from dmtd_demo.training.clp import OwnHead
from dmtd_demo.training.corpus import ROWS, WORLD, WORLD_NAME, read_rows
from dmtd_demo.training.cycles import LONGEST
from dmtd_demo.training.data import IGNORED, Row
from dmtd_demo.training.loop import Progress, Run, processes, train

STEPS = {
    "heads": 2000,
    "head0": 2000,
    "clp": 1000,
    "native_clp": 1000,
    "gate": 1000,
    "adaptive": 1000,
    "mixed": 1000,
    "dmtd": 1000,
}
BATCH = 16  # rows of an update of dmtd
MOST_BATCH = 65536  # each is held as it is drawn
HELD_OUT = 10  # every tenth row calibrates the threshold instead of training
APART = 5  # every fifth of the others teaches those that predict how far heads are right
ROOM = 2**32  # bytes of hidden states at most
LOOK_SECONDS = 0.5  # between two looks at the held-out rows of who watches


@dataclass(frozen=True)
class Settings:
    """How something is trained for any model.

    data: see corpus.read_rows, which reads at most `rows` texts of it; own_answers: the model's own
    in place of the data's last ones. steps, rate: updates and highest learning rate, None for the
    recipe's own.
    """

    data: str | None = None
    rows: int = ROWS
    own_answers: bool = False
    steps: int | None = None
    rate: float | None = None
    seed: int = 0
    resume: bool = False
    checkpoint_seconds: float = 300

    @property
    def source(self) -> str:
        """The data as a card names it."""
        if self.data is None:
            return "self-distillation on the shipped prompts"
        if self.data == WORLD:
            return WORLD_NAME
        prefix = "self-distillation on the prompts of " if self.own_answers else ""
        return prefix + (self.data if self.data.startswith("hf:") else Path(self.data).name)

    def updates(self, name: str) -> int:
        """Return how many updates `name` takes. Raises UserError."""
        if name not in STEPS:
            # native_clp is asked for as clp --heads native
            recipes = ", ".join(recipe for recipe in STEPS if recipe != "native_clp")
            raise UserError(
                f"train {name} is for the embedded model; with --model it needs one of {recipes}"
            )
        steps = STEPS[name] if self.steps is None else self.steps
        if steps < 1:
            raise UserError(f"--max-steps needs a whole number, 1 or more; got {steps}")
        if self.rate is not None and not self.rate > 0:
            raise UserError(f"--learning-rate needs a number over 0; got {self.rate}")
        return steps


@dataclass(frozen=True)
class DMTDSettings(Settings):
    """How layers are trained for DMTD.

    split: such as E0D8, None for the checkpoint's own or the default. tau: cycle lengths with
    commas between. lora: the rank of adapters that are trained in the layers' place. batch: rows of
    an update, over all processes; pieces: into how many each process cuts its rows of it.
    checkpointing: compute activations twice instead of keeping them.
    """

    split: str | None = None
    tau: str = "2,3,4"
    lora: int | None = None
    batch: int = BATCH
    pieces: int = 1
    checkpointing: bool = False


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


def train_dmtd(model: Model, output: Path, settings: DMTDSettings) -> None:
    """Train the layers for DMTD, or LoRA adapters, which are then merged.

    The result lies in `output`/model, a folder in Hugging Face format. Raises UserError.
    """
    check_folder(output)
    steps, taus = settings.updates("dmtd"), dmtd.parse_taus(settings.tau)
    own = model.split or Split.default(model.layers)
    split = Split.parse(settings.split, model.layers, own.head_input) if settings.split else own
    least = processes(model.backbone.device).num_processes * settings.pieces
    if settings.pieces < 1 or settings.batch < least:
        raise UserError(
            "--batch needs a row for every process and every --gradient-accumulation (1 or more); "
            f"got {settings.batch} rows for {least} pieces"
        )
    if settings.batch > MOST_BATCH:
        raise UserError(f"--batch needs at most {MOST_BATCH:,} rows; got {settings.batch}")
    keep_layout(model.backbone.module)
    model.backbone = Backbone(plain(model.backbone.module))
    rows = _rows(model, output, settings)
    dmtd.prepare(model, settings.lora, settings.checkpointing, settings.seed)
    rate = settings.rate or dmtd.RATE
    said = (
        f"split {split}, tau {settings.tau}, LoRA {settings.lora}, "
        f"quantization {model.quantization}, batch {settings.batch}, seed {settings.seed}, "
        f"{len(rows)} rows of {settings.source}"
    )
    print(f"dmtd: {said}, learning rate {rate}")
    longest = max(len(row.ids) for row in rows)
    train(
        dmtd.recipe(model, dmtd.Cycles(split, taus, rate, longest, settings.seed), said),
        lambda position: dmtd.draws(rows, settings.batch, settings.seed, position),
        Run(
            output,
            steps=steps,
            resume=settings.resume,
            device=model.backbone.device,
            checkpoint_seconds=settings.checkpoint_seconds,
            log=output / "log.jsonl",
            pieces=settings.pieces,
        ),
    )


def train_addon(
    name: str,
    model: Model,
    output: Path,
    settings: Settings,
    *,
    tell: Told = no_progress,
    watch: Callable[[Moment], None] | None = None,
) -> None:
    """Train one add-on in `output`; the result lies in `output`/addons, a folder of add-ons.

    tell: hears what is being done, and may raise Cancelled. watch: sees every update. Raises
    UserError.
    """
    check_folder(output)
    steps = settings.updates(name)
    backbone, split = model.backbone, model.split or Split.default(model.layers)
    check_folder_for(output / "addons", model.base, backbone.hidden_size)
    heads = _heads(name, model, output) if name in ("clp", "native_clp", "gate") else None
    rows = _rows(model, output, settings, tell)
    kept = rows[::HELD_OUT] if len(rows) > HELD_OUT else rows
    learned = [row for i, row in enumerate(rows) if i % HELD_OUT] if len(rows) > HELD_OUT else rows
    if name in ("heads", "clp", "gate"):
        learned = apart(learned)[name != "heads"]
    source = features.Source(backbone, split, heads, settings.seed)
    seen = features.collect(name, source, learned, min(ROOM, free("cpu") // 4), tell)
    if name in ("heads", "head0") and not (seen.labels != IGNORED).any():
        raise UserError(
            f"training {name} needs texts with tokens to foresee; those of {settings.source} are "
            "too short, with none after a position that is read"
        )
    held = (
        features.collect(name, source, kept, ROOM, tell)
        if name in CYCLES or (watch and name in ("clp", "native_clp"))
        else None
    )
    print(
        f"{name}: {len(seen.h):,} positions of {len(learned)} rows, "
        f"{gib(seen.h.numel() * seen.h.element_size())}"
    )
    facts: dict[str, Any] = {
        "data": settings.source,
        "positions": len(seen.h),
        "steps": steps,
        "seed": settings.seed,
        **({"split": str(split)} if name in CYCLES else {}),
    }
    lesson = Lesson(name, output, seen, heads.k if heads else 0, facts, held)
    module = learn(model, settings, lesson, tell, watch)
    if name in ("heads", "head0") or not processes(backbone.device).is_main_process:
        return
    folder, method = output / "addons", features.METHODS[name]
    if isinstance(heads, MTPHeads) and "mtp_heads" not in methods_in(folder):
        # the model's own, without which what learned on them could not run from there
        known = model.addon_facts.get("mtp_heads", {})
        save_addon(folder, "mtp_heads", heads, model.base, backbone.hidden_size, **known)
    found: dict[str, Any] = {}
    try:
        if heads:
            acceptance = calibrate.Acceptance.of(name, module)
            found = calibrate.spans(backbone, split, heads, kept, acceptance, tell)
        elif held:
            found = _cycles(name, backbone, module, held)
    except calibrate.NothingExact as error:  # texts that the model would not have written itself
        print(f"{name}: {error}")
        return
    save_addon(folder, method, module, model.base, backbone.hidden_size, **{**facts, **found})
    if name in CYCLES:
        keep_apart(model, folder)
    print(f"{name}: default threshold {found['threshold']}, {found['validation']}")
    if found["threshold"] >= 1:
        print(
            f"{name}: so it takes nothing along; no lower threshold was seen to keep enough tokens "
            "right: train it on more texts"
        )


@dataclass(frozen=True)
class Lesson:
    """What one add-on is trained on, and the folder in whose `addons` it is to lie.

    seen: hidden states. k: of the MTP heads that clp and gate choose from. facts: for the card.
    held: what the confusion matrix is drawn from.
    """

    name: str
    output: Path
    seen: features.Features
    k: int
    facts: dict[str, Any]
    held: features.Features | None = None


def learn(
    model: Model,
    settings: Settings,
    lesson: Lesson,
    tell: Told = no_progress,
    watch: Callable[[Moment], None] | None = None,
) -> nn.Module:
    """Train one add-on on hidden states that are there, and return it. Raises UserError."""
    name, output, seen = lesson.name, lesson.output, lesson.seen
    backbone, steps = model.backbone, settings.updates(name)
    recipe = features.recipe(name, model, settings.seed, lesson.k, lesson.facts, seen.labels)
    said = (
        f"{model.name} (weights {model.base.fingerprint or 'unknown'}), {lesson.facts['data']}, "
        f"seed {settings.seed}"
    )
    rate = settings.rate or recipe.learning_rate
    recipe = replace(recipe, learning_rate=rate, settings=said)
    module = recipe.trainable
    looked = 0.0

    def after(progress: Progress, loss: float, figures: dict[str, Any]) -> None:
        nonlocal looked
        tell("Training", progress.step, steps)
        if not watch:
            return
        confusion = None
        if lesson.held and isinstance(module, CollocationLengthPredictor):
            if time.monotonic() - looked > LOOK_SECONDS or progress.step == steps:
                looked = time.monotonic()
                confusion = features.confusion(module, lesson.held)
        watch(Moment(progress.step, loss, figures, confusion))

    with dense_kept(backbone.module.get_output_embeddings()):
        train(
            recipe,
            lambda position: seen.draws(name, settings.seed, position),
            Run(
                output,
                tokens=steps * features.DRAWN[name],
                resume=settings.resume,
                device=backbone.device,
                checkpoint_seconds=settings.checkpoint_seconds,
                log=output / "log.jsonl",
                bar=tell is no_progress,
            ),
            watch=after,
        )
    return module


def apart(rows: list[Row]) -> tuple[list[Row], list[Row]]:
    """Part texts: those that MTP heads learn from, and those that CLP and gate learn from.

    What heads know by heart says nothing of what they know elsewhere. Where there is one text it is
    both.
    """
    fewer = rows[::APART]
    return [row for i, row in enumerate(rows) if i % APART] or fewer, fewer


def _cycles(
    name: str, backbone: Backbone, module: nn.Module, held: features.Features
) -> dict[str, Any]:
    """Find the threshold of an add-on of CYCLES on held-out positions."""
    if isinstance(module, LateHeads):
        lengths, k = features.late_lengths(backbone, module, held), module.k
    else:
        lengths, k = held, LONGEST - 1
    return calibrate.on_held_out(name, module, lengths.h, lengths.labels, k)


def _rows(model: Model, output: Path, settings: Settings, tell: Told = no_progress) -> list[Row]:
    """Read the rows; of several processes the first one reads, and answers, before the others."""
    with processes(model.backbone.device).main_process_first():
        return read_rows(
            model,
            settings.data,
            output / "answers.jsonl",
            settings.rows,
            settings.own_answers,
            tell,
        )


def _heads(name: str, model: Model, output: Path) -> MTPHeads | OwnHead:
    """Return the heads that were trained in `output`, else the model's own. Raises UserError."""
    if name == "native_clp":
        own = model.addons.get("native_mtp")
        if not isinstance(own, NativeMTP):
            raise UserError(
                "train clp --heads native needs a model with an MTP head of its own (Qwen3.5 and "
                f"later); {model.name} has none"
            )
        return OwnHead(own)
    folder, backbone = output / "addons", model.backbone
    trained = model.addons
    if folder.exists():
        trained, _ = load_addons(
            folder, backbone.hidden_size, torch.float32, backbone.device, model.base
        )
    heads = trained.get("mtp_heads") or model.addons.get("mtp_heads")
    if not isinstance(heads, MTPHeads):
        raise UserError(
            f"training {name} needs MTP heads in {folder}: run `train heads --model … --output "
            f"{output}` first"
        )
    # a copy: those of the model go on in its dtype
    return copy.deepcopy(heads).float()
