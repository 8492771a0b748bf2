"""What `python -m dmtd_demo train …` does: recipe, data and loop put together, and exact match by
family while it runs.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoTokenizer, Qwen3ForCausalLM

from dmtd_demo.backbone.split import Split
from dmtd_demo.decoders.clp import accepted_length
from dmtd_demo.decoders.mtp_gate import open_gates
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
from dmtd_demo.training.data import batches, encode
from dmtd_demo.training.features import METHODS
from dmtd_demo.training.loop import Position, Recipe, train
from dmtd_demo.training.tokenizer import train_tokenizer
from dmtd_demo.training.world.mix import COMPOSITIONAL, held_out_examples, training_examples

TOKENIZER_CONVERSATIONS = 40_000
PROMPTS_PER_FAMILY = 6  # asked at every checkpoint


def classroom_tokenizer(folder: Path, seed: int):
    """The tokenizer in the folder, or a new one trained on the world."""
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


def train_recipe(
    name: str,
    output: Path,
    tokens: int | None,
    seed: int,
    resume: bool,
    device: str | None,
    threads: int | None,
    checkpoint_seconds: float,
    compiled: bool = False,
    start: str | None = None,
    keep: bool = False,
    vanilla: bool = False,
) -> None:
    """Train `classroom` (from nothing, or from the weights in the folder `start`), or one of its
    add-ons, in `output`; the result lies in `output`/model, a folder in Hugging Face format.
    """
    tokens = DEFAULT_TOKENS[name] if tokens is None else tokens
    if tokens < 1:
        raise UserError(f"--tokens needs a number, 1 or more; got {tokens}")
    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if target.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {device} needs a CUDA device; PyTorch finds none")
    if threads:
        torch.set_num_threads(threads)
    if start and name != "classroom":
        raise UserError(
            f"--start is for the recipe classroom; {name} starts from the model in "
            f"{output / 'model'}"
        )
    if vanilla and name != "classroom":
        raise UserError(
            f"--vanilla is for the recipe classroom; {name} takes the backbone as it is"
        )
    if name == "classroom":
        train_classroom(
            output, tokens, seed, resume, target, checkpoint_seconds, compiled, start, keep, vanilla
        )
    else:
        train_addon(name, output, tokens, seed, resume, target, checkpoint_seconds)


def train_addon(
    name: str,
    output: Path,
    tokens: int,
    seed: int,
    resume: bool,
    device: torch.device,
    checkpoint_seconds: float,
) -> None:
    """Train one add-on for the model in `output`/model, whose backbone stays frozen; those with a
    threshold are calibrated after it.
    """
    folder = output / "model"
    if not folder.is_dir():
        raise UserError(
            f"training {name} needs a model in {folder}, which is no folder: run `train classroom "
            f"--output {output}` first"
        )
    model = load(
        str(folder),
        dtype="float32",
        device=str(device),
        threads=torch.get_num_threads(),
        trainable=True,
    )

    def stream(position: Position):
        return batches(
            model.tokenizer,
            training_examples(f"{name}:{seed}:{position.progress.tokens}"),
            lambda: classroom.CURRICULUM[-1][1],
            model.tokenizer.pad_token_id,
        )

    train(
        addon_recipe(name, model, folder, seed),
        stream,
        tokens,
        output,
        resume=resume,
        device=device,
        checkpoint_seconds=checkpoint_seconds,
    )
    # as it is stored, and so as it will run
    stored = load(str(folder), dtype="float32", device=str(device), threads=torch.get_num_threads())
    split, addons = stored.split or Split.default(stored.layers), stored.addons
    facts: dict[str, object] = {}
    if name in ("clp", "gate"):
        rows = calibrate.validation_rows(stored.tokenizer, calibrate.PROMPTS)
    if name == "clp":
        facts = calibrate.spans(
            stored.backbone,
            split,
            addons["mtp_heads"],
            rows,
            lambda h: addons["clp"](h).softmax(-1),
            lambda p, k, t: accepted_length(p, k, t, "cumulative"),
        )
    elif name == "gate":
        facts = calibrate.spans(
            stored.backbone,
            split,
            addons["mtp_heads"],
            rows,
            lambda h: addons["gate"](h).sigmoid(),
            open_gates,
        )
    elif name in ("adaptive", "mixed"):
        facts = calibrate.cycles(stored, {"adaptive": "dmtd-adaptive"}.get(name, name))
    method = METHODS.get(name, name)
    save_addon(
        folder / "addons",
        method,
        addons[method],
        Base(classroom.NAME, None, stored.base.fingerprint),
        stored.backbone.hidden_size,
        data=WORLD_NAME,
        **facts,
    )
    if facts:
        print(f"{name}: default threshold {facts['threshold']}, {facts['validation']}")


def addon_recipe(name: str, model: Model, folder: Path, seed: int) -> Recipe:
    """The recipe of an add-on; raises UserError where the model lacks what it builds on."""
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


def train_classroom(
    output: Path,
    tokens: int,
    seed: int,
    resume: bool,
    device: torch.device,
    checkpoint_seconds: float,
    compiled: bool,
    start: str | None,
    keep: bool,
    vanilla: bool,
) -> None:
    """Train `classroom`; the model lies in `output`/model, a folder in Hugging Face format.

    start: a folder with weights to begin from, in the schedule's later part.
    """
    if start:
        given = load(
            start,
            dtype="float32",
            device=str(device),
            threads=torch.get_num_threads(),
            trainable=True,
        )
        if given.split != classroom.SPLIT:
            raise UserError(
                f"--start needs a model with the split {classroom.SPLIT} of "
                f"{classroom.SPLIT.layers} layers; {start} has {given.split}"
            )
        tokenizer, model = given.tokenizer, given.backbone.module
        ahead = [given.addons.get(addon) for addon in classroom.Joint.ADDONS]
    else:
        tokenizer = classroom_tokenizer(output / "tokenizer", seed)
        model = classroom.new_model(tokenizer, seed)
        ahead = []
    joint = classroom.Joint(model, *ahead).to(device).train().requires_grad_(True)
    recipe = classroom.recipe(
        joint, tokenizer, seed, compiled, begin=classroom.BEGIN if start else 0.0, vanilla=vanilla
    )
    name = f"{seed}:{start}" if start else f"{seed}"

    def stream(position: Position):
        return batches(
            tokenizer,
            training_examples(f"{name}:{position.progress.tokens}"),
            lambda: classroom.longest_row(position.progress.share),
            tokenizer.pad_token_id,
        )

    train(
        recipe,
        stream,
        tokens,
        output,
        resume=resume,
        device=device,
        checkpoint_seconds=checkpoint_seconds,
        keep=keep,
        log=output / "log.jsonl",
        on_checkpoint=lambda _: exact_match(model, tokenizer),
    )


@torch.no_grad()
@torch.compiler.set_stance("force_eager")  # every prompt has its own length
def exact_match(model: Qwen3ForCausalLM, tokenizer) -> dict:
    """Teacher-forced exact match by family on held-out prompts, every position a head: whether
    every answer token is the argmax. For greedy `ar` the two are the same, and this is one pass
    a prompt.
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
