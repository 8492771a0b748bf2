"""`train dmtd --model …`: Direct Multi-Token Decoding for any Qwen by cyclical masking.

All of its layers are trained, or LoRA adapters (DMTD paper, arXiv 2510.11958, section 3.3;
docs/methods.md, section 2).
"""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Iterator, Sequence

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from dmtd_demo.backbone.split import Split
from dmtd_demo.decoders.dmtd import MAX_TAU
from dmtd_demo.errors import UserError
from dmtd_demo.machine import free
from dmtd_demo.models import gguf
from dmtd_demo.models.memory import gib
from dmtd_demo.models.model import Model
from dmtd_demo.models.placement import FAST
from dmtd_demo.text_files import parsed, read_text
from dmtd_demo.training.data import IGNORED, Batch, Row, collate
from dmtd_demo.training.loop import Lost, Position, Progress, Recipe
from dmtd_demo.training.masking import autocast, cyclical_heads, masked_hidden

# batches whose rows are sorted by length together, so that little of a batch is padding
BLOCK = 16
RATE = 1e-4
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# bytes that a trained parameter takes beside itself: its gradient and AdamW's two means, in float32
STATE = 12


def parse_taus(text: str) -> tuple[int, ...]:
    """Read cycle lengths with commas between, such as 2,3,4. Raises UserError."""
    try:
        taus = tuple(int(part) for part in text.split(","))
    except ValueError:
        taus = ()
    if not taus or not all(1 <= tau <= MAX_TAU for tau in taus):
        raise UserError(
            f"--tau needs cycle lengths from 1 to {MAX_TAU} with commas between, such as 2,3,4; "
            f"got {text[:80]!r}"
        )
    return taus


def draws(rows: Sequence[Row], size: int, seed: int, position: Position) -> Iterator[Batch]:
    """Draw batches of `size` rows, the same at each step whether or not a run was interrupted.

    The rows come in a new order each time round, and of every BLOCK batches those of like length
    together.
    """
    known = -1
    made: list[list[Row]] = []
    while True:
        block, index = divmod(position.progress.step, BLOCK)
        if block != known:
            known, made = block, _block(rows, size, seed, block)
        chosen = made[index]
        yield collate(chosen, max(len(row.ids) for row in chosen), 0)


def _block(rows: Sequence[Row], size: int, seed: int, block: int) -> list[list[Row]]:
    """Return the batches of one block, each of rows of like length, in a random order."""
    orders: dict[int, list[int]] = {}
    chosen = []
    for number in range(block * BLOCK * size, (block + 1) * BLOCK * size):
        again, index = divmod(number, len(rows))
        if again not in orders:
            orders[again] = random.Random(f"rows:{seed}:{again}").sample(
                range(len(rows)), len(rows)
            )
        chosen.append(rows[orders[again][index]])
    chosen.sort(key=lambda row: len(row.ids))
    made = [chosen[i : i + size] for i in range(0, len(chosen), size)]
    random.Random(f"block:{seed}:{block}").shuffle(made)
    return made


def prepare(model: Model, lora: int | None, checkpointing: bool, seed: int) -> None:
    """Make the layers and the final norm trainable, or LoRA's adapters in all their linears.

    Embedding and LM head stay frozen. lora: the adapters' rank, None for the layers themselves.
    checkpointing: compute activations twice instead of keeping them. Raises UserError where a
    package, the weights' form or memory does not allow it.
    """
    module = model.backbone.module
    if lora is None:
        if model.quantization != "none":
            raise UserError(
                "train dmtd needs weights that are not quantized, or --lora RANK beside them; "
                f"got quantization {model.quantization} and no --lora"
            )
        for name, p in module.named_parameters():
            p.requires_grad_(name.startswith(("model.layers.", "model.norm.")))
    else:
        if lora < 1:
            raise UserError(f"--lora needs a rank, 1 or more; got {lora}")
        if not find_spec("peft"):
            raise UserError(
                "--lora needs the package peft, which is not installed: pip install peft"
            )
        if model.quantization in FAST:
            raise UserError(
                "--lora needs weights that are not quantized, or in nf4, nf4-single or int8; got "
                f"quantization {model.quantization}"
            )
        if (model.quantization, model.dtype) == ("int8", "float16"):
            # autocast to bfloat16 takes no float16 beside it
            raise UserError(
                "--lora with int8 needs --dtype bfloat16 or float32; got float16, in which it is "
                "not trained"
            )
        from peft import LoraConfig, inject_adapter_in_model

        torch.manual_seed(seed)
        inject_adapter_in_model(
            LoraConfig(r=lora, lora_alpha=2 * lora, target_modules=LINEARS), module
        )
        for p in module.parameters():
            if p.requires_grad:
                p.data = p.data.float()
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    room = free(model.device)
    if trained * STATE > room:
        whole = "give --lora 16, with --quantization nf4 where the weights are large too"
        raise UserError(
            f"training {trained:,} parameters needs {gib(trained * STATE)} for gradients and "
            f"optimizer; {model.device} has {gib(room)} free: "
            f"{whole if lora is None else 'take a lower --lora'}"
        )
    if checkpointing:
        module.gradient_checkpointing_enable({"use_reentrant": False})
        module.train()  # transformers' layers look at it; Qwen has no dropout


@dataclass(frozen=True)
class Cycles:
    """What layers are trained for. trained_length: tokens of the longest row, for the config."""

    split: Split
    taus: tuple[int, ...]
    rate: float
    trained_length: int
    seed: int = 0


def recipe(model: Model, cycles: Cycles, settings: str) -> Recipe[Batch]:
    """Return the recipe: the loss of one cycle length for each batch, drawn from the taus.

    Learning rate, cosine, warm-up, AdamW's means and clip are the paper's; no weight decay
    *(ours)*. settings: what a resumed run must have in common with this one.
    """
    backbone = model.backbone

    def loss(batch: Batch, progress: Progress) -> Lost:
        tau = random.Random(f"tau:{cycles.seed}:{progress.step}").choice(cycles.taus)
        read = batch.targets != IGNORED
        with autocast(batch.ids.device):
            hidden = masked_hidden(
                backbone, cycles.split, batch.ids, cyclical_heads(batch.phase, tau)
            )
            logits = backbone.logits(hidden[read])
        return F.cross_entropy(logits.float(), batch.targets[read]), {"tau": tau}

    return Recipe(
        "dmtd",
        backbone.module,
        loss,
        lambda output: save_model(model, cycles, output / "model"),
        counts=lambda batch: (batch.targets != IGNORED).sum(),
        settings=settings,
        learning_rate=cycles.rate,
        warm_up=0.1,
        cosine=True,
        weight_decay=0.0,
    )


@torch.no_grad()
def merged(module: PreTrainedModel) -> dict[str, Tensor]:
    """Return the weights by their names in a checkpoint, LoRA's products added to them.

    Those that are quantized are as they are read.
    """
    adapted = {
        name: part
        for name, part in module.named_modules()
        if hasattr(part, "get_delta_weight") and hasattr(part, "base_layer")
    }
    state: dict[str, Tensor] = {
        name: p
        for name, p in module.named_parameters()
        if name.split(".base_layer.")[0].split(".lora_")[0] not in adapted
    }
    if adapted:
        from peft.utils.integrations import dequantize_module_weight

        for name, part in adapted.items():
            state[f"{name}.weight"] = (
                dequantize_module_weight(part.base_layer).float()
                + part.get_delta_weight("default").float()
            )
            if part.base_layer.bias is not None:
                state[f"{name}.bias"] = part.base_layer.bias
    if module.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    return state


def _alone(tensor: Tensor) -> Tensor:
    """Return a tensor that is no part of another, which files do not take."""
    tensor = tensor.contiguous()
    return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor


def _config_of(model: Model, source: Path) -> dict[str, Any]:
    """Return the config.json of a folder; of a GGUF file the one that it stands for."""
    if source.is_dir():
        return parsed(read_text(source / "config.json"))
    raw = gguf.config_of(gguf.read(source))
    return {**raw, "eos_token_id": sorted(model.eos_ids) or None}


def save_model(model: Model, cycles: Cycles, folder: Path) -> None:
    """Write a folder in Hugging Face format, the split in its config.json, aside and then moved.

    It has the dtype of the checkpoint that training began with. Raises UserError where the model
    came from no folder, OSError where the disk is full.
    """
    source, split = model.folder, cycles.split
    if source is None:
        raise UserError("train dmtd needs a model from a folder or the hub; this one has neither")
    raw = _config_of(model, source)
    dtype = str(raw.pop("torch_dtype", None) or raw.get("dtype") or "bfloat16")
    raw.update(
        dtype=dtype,
        num_encoding_layers=split.early,
        num_thinking_layers=split.middle,
        num_decoding_layers=split.late,
        mtp_horizon=max(cycles.taus),
        dmtd_head_input=split.head_input,
        trained_length=cycles.trained_length,
    )
    raw.pop("auto_map", None)  # the authors' own code, which is not in this folder
    aside = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        state = {
            name: _alone(t.detach().to("cpu", getattr(torch, dtype)))
            for name, t in merged(model.backbone.module).items()
        }
        save_torch_state_dict(state, aside)
        (aside / "config.json").write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")
        if (source / "generation_config.json").exists():
            shutil.copyfile(source / "generation_config.json", aside / "generation_config.json")
        if model.tokenizer is not None:
            model.tokenizer.save_pretrained(aside)
        before = folder.with_name(f"{folder.name}.before")
        if folder.exists():
            # of a run that was killed before it was taken away
            shutil.rmtree(before, ignore_errors=True)
            folder.rename(before)
        aside.rename(folder)
        shutil.rmtree(before, ignore_errors=True)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
