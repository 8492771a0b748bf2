"""`train …` without --model: `classroom` and its add-ons.

Recipe, data and loop are put together, and exact match by family is told while it runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from dmtd_demo.backbone.split import Split
from dmtd_demo.destinations import check_folder
from dmtd_demo.errors import UserError
from dmtd_demo.models.addons import (
    Base,
    CollocationLengthPredictor,
    LateHeads,
    MTPHeads,
    save_addon,
)
from dmtd_demo.models.loading import load
from dmtd_demo.models.model import Model
from dmtd_demo.training import calibrate, classroom, clp, cycles, heads
from dmtd_demo.training.corpus import WORLD_NAME
from dmtd_demo.training.data import Batch, batches, encode
from dmtd_demo.training.features import METHODS
from dmtd_demo.training.loop import Position, Recipe, Run, target_of, train
from dmtd_demo.training.tokenizer import train_tokenizer
from dmtd_demo.training.world.mix import COMPOSITIONAL, held_out_examples, training_examples

TOKENIZER_CONVERSATIONS = 40_000
PROMPTS_PER_FAMILY = 6  # asked at every checkpoint


def classroom_tokenizer(folder: Path, seed: int) -> PreTrainedTokenizerBase:
    """Return the tokenizer in the folder, or a new one trained on the world."""
    if not (folder / "tokenizer.json").exists():
        stream = training_examples(f"tokenizer:{seed}")
        texts = (
            text for _ in range(TOKENIZER_CONVERSATIONS) for _, text in next(stream)[1].messages
        )
        train_tokenizer(texts, classroom.VOCABULARY).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


DEFAULT_TOKENS = {
    "classroom": 14_000_000,
    "heads": 1_500_000,
    "clp": 600_000,
    "gate": 600_000,
    "head0": 600_000,
    "adaptive": 500_000,
    "mixed": 800_000,
}


@dataclass(frozen=True)
class Training:
    """How `classroom`, or one of its add-ons, is trained.

    output: its folder; the result lies in `output`/model, a folder in Hugging Face format. tokens:
    to see in all, None for the recipe's own. device: None for CUDA where there is one. Only of the
    model itself: compiled: by torch.compile; start: a folder with weights to begin from, in the
    schedule's later part; keep: the model of every checkpoint; vanilla: no cycles.
    """

    output: Path
    tokens: int | None = None
    seed: int = 0
    resume: bool = False
    device: str | None = None
    threads: int | None = None
    checkpoint_seconds: float = 300
    compiled: bool = False
    start: str | None = None
    keep: bool = False
    vanilla: bool = False

    @property
    def model(self) -> Path:
        """The folder of the result."""
        return self.output / "model"

    @property
    def target(self) -> torch.device:
        """The device. Raises UserError where it is not there."""
        return target_of(self.device)

    def run(self, tokens: int, log: Path | None = None) -> Run:
        """Return the loop's part of it."""
        return Run(
            self.output,
            tokens,
            resume=self.resume,
            device=self.target,
            checkpoint_seconds=self.checkpoint_seconds,
            keep=self.keep,
            log=log,
        )


def train_recipe(name: str, training: Training) -> None:
    """Train `classroom`, from nothing or from given weights, or one of its add-ons.

    name: as on the command line. Raises UserError.
    """
    tokens = DEFAULT_TOKENS[name] if training.tokens is None else training.tokens
    if tokens < 1:
        raise UserError(f"--tokens needs a number, 1 or more; got {tokens}")
    check_folder(training.output)
    target = training.target
    if training.threads:
        torch.set_num_threads(training.threads)
    if training.start and name != "classroom":
        raise UserError(
            f"--start is for the recipe classroom; {name} starts from the model in {training.model}"
        )
    if training.vanilla and name != "classroom":
        raise UserError(
            f"--vanilla is for the recipe classroom; {name} takes the backbone as it is"
        )
    if name == "classroom":
        train_classroom(training, tokens, target)
    else:
        train_on_classroom(name, training, tokens)


def _loaded(folder: str, device: torch.device, trainable: bool = False) -> Model:
    """Load the model in a folder, in float32."""
    return load(
        folder,
        dtype="float32",
        device=str(device),
        threads=torch.get_num_threads(),
        trainable=trainable,
    )


def _tokenizer(model: Model) -> PreTrainedTokenizerBase:
    """Return the model's tokenizer. Raises UserError where it has none."""
    if model.tokenizer is None:
        raise UserError(f"training needs a model with a tokenizer; {model.name} has none")
    return model.tokenizer


def train_on_classroom(name: str, training: Training, tokens: int) -> None:
    """Train one add-on for the model in the output, whose backbone stays frozen.

    Those with a threshold are calibrated after it. Raises UserError.
    """
    folder = training.model
    if not folder.is_dir():
        raise UserError(
            f"training {name} needs a model in {folder}, which is no folder: run `train classroom "
            f"--output {training.output}` first"
        )
    model = _loaded(str(folder), training.target, trainable=True)
    tokenizer = _tokenizer(model)

    def stream(position: Position) -> Iterator[Batch]:
        return batches(
            tokenizer,
            training_examples(f"{name}:{training.seed}:{position.progress.tokens}"),
            lambda: classroom.CURRICULUM[-1][1],
            tokenizer.pad_token_id,
        )

    train(addon_recipe(name, model, folder, training.seed), stream, training.run(tokens))
    # as it is stored, and so as it will run
    stored = _loaded(str(folder), training.target)
    method = METHODS.get(name, name)
    facts = _calibrated(name, stored)
    save_addon(
        folder / "addons",
        method,
        stored.addons[method],
        Base(classroom.NAME, None, stored.base.fingerprint),
        stored.backbone.hidden_size,
        data=WORLD_NAME,
        **facts,
    )
    if facts:
        print(f"{name}: default threshold {facts['threshold']}, {facts['validation']}")


def _calibrated(name: str, model: Model) -> dict[str, Any]:
    """Return an add-on's threshold and how it was found; nothing for those that have none."""
    if name in ("adaptive", "mixed"):
        return calibrate.cycles(model, {"adaptive": "dmtd-adaptive"}.get(name, name))
    heads = model.addons.get("mtp_heads")
    if name not in ("clp", "gate") or not isinstance(heads, MTPHeads):
        return {}
    return calibrate.spans(
        model.backbone,
        model.split or Split.default(model.layers),
        heads,
        calibrate.validation_rows(model.tokenizer, calibrate.PROMPTS),
        calibrate.Acceptance.of(name, model.addons[name]),
    )


def addon_recipe(name: str, model: Model, folder: Path, seed: int) -> Recipe[Batch]:
    """Return an add-on's recipe. Raises UserError where the model lacks what it builds on."""
    backbone, split = model.backbone, model.split or Split.default(model.layers)
    for need in {"clp": ("mtp_heads",), "gate": ("mtp_heads",), "mixed": ("adaptive",)}.get(
        name, ()
    ):
        if not model.has(need):
            raise UserError(
                f"training {name} needs {need} in {folder / 'addons'}: run `train "
                f"{'heads' if need == 'mtp_heads' else need}` first"
            )
    if name == "heads":
        given = model.addons.get("mtp_heads")  # those that the backbone was trained with
        module = (
            (given or MTPHeads(backbone.hidden_size, heads.K))
            .to(backbone.device)
            .requires_grad_(True)
        )
        return heads.recipe(backbone, split, module, classroom.NAME, trained=given is not None)
    if name == "head0":
        return heads.head0_recipe(backbone, split, classroom.NAME)
    if name == "adaptive":
        return cycles.adaptive_recipe(backbone, split, classroom.NAME, seed)
    if name == "mixed":
        given = model.addons.get("mixed")
        module = (given or LateHeads(backbone.hidden_size, cycles.LATE_K)).requires_grad_(True)
        return cycles.mixed_recipe(
            backbone, split, module, classroom.NAME, seed, trained=given is not None
        )
    mtp_heads = model.addons["mtp_heads"]
    if name == "gate":
        return clp.gate_recipe(backbone, split, mtp_heads, classroom.NAME)
    predictor = (
        (model.addons.get("clp") or CollocationLengthPredictor(backbone.hidden_size, mtp_heads.k))
        .to(backbone.device)
        .requires_grad_(True)
    )
    return clp.recipe(backbone, split, mtp_heads, predictor, classroom.NAME)


def train_classroom(training: Training, tokens: int, device: torch.device) -> None:
    """Train `classroom`; the model lies in the output. Raises UserError."""
    seed, start = training.seed, training.start
    ahead: list[Any] = []
    if start:
        given = _loaded(start, device, trainable=True)
        if given.split != classroom.SPLIT:
            raise UserError(
                f"--start needs a model with the split {classroom.SPLIT} of "
                f"{classroom.SPLIT.layers} layers; {start} has {given.split}"
            )
        tokenizer, model = _tokenizer(given), given.backbone.module
        ahead = [given.addons.get(addon) for addon in classroom.Joint.ADDONS]
    else:
        tokenizer = classroom_tokenizer(training.output / "tokenizer", seed)
        model = classroom.new_model(tokenizer, seed)
    joint = classroom.Joint(model, *ahead).to(device).train().requires_grad_(True)
    recipe = classroom.recipe(
        joint,
        tokenizer,
        seed,
        training.compiled,
        begin=classroom.BEGIN if start else 0.0,
        vanilla=training.vanilla,
    )
    name = f"{seed}:{start}" if start else f"{seed}"

    def stream(position: Position) -> Iterator[Batch]:
        return batches(
            tokenizer,
            training_examples(f"{name}:{position.progress.tokens}"),
            lambda: classroom.longest_row(position.progress.share),
            tokenizer.pad_token_id,
        )

    train(
        recipe,
        stream,
        training.run(tokens, log=training.output / "log.jsonl"),
        on_checkpoint=lambda _: exact_match(model, tokenizer),
    )


@torch.no_grad()
@torch.compiler.set_stance("force_eager")  # every prompt has its own length
def exact_match(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return teacher-forced exact match on held-out prompts, in all and by family.

    It says whether every answer token is the argmax, with every position a head. For greedy `ar`
    the two are the same, and this is one pass a prompt.
    """
    right: dict[str, list[bool]] = {}
    for family, example in held_out_examples(0, PROMPTS_PER_FAMILY * len(COMPOSITIONAL)):
        row = encode(tokenizer, example)
        ids = torch.tensor([row.ids], device=model.device)
        predicted = model(ids).logits[0, row.answer - 1 : -1].argmax(-1)
        right.setdefault(family, []).append(bool((predicted == ids[0, row.answer :]).all()))
    by_family = {family: round(sum(values) / len(values), 2) for family, values in right.items()}
    return {
        "exact_match": round(sum(by_family.values()) / len(by_family), 3),
        "by_family": by_family,
    }
