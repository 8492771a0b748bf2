"""`train dmtd --model …`: Direct Multi-Token Decoding for any Qwen by cyclical masking (DMTD paper,
section 3.3; docs/methods.md, section 2), all of its layers or by LoRA.
"""

from __future__ import annotations

import json
import random
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Iterator, Sequence

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor, nn
from torch.nn import functional as F

from dmtd_demo.backbone.split import Split
from dmtd_demo.decoders.dmtd import MAX_TAU
from dmtd_demo.errors import UserError
from dmtd_demo.machine import free
from dmtd_demo.models.memory import gib
from dmtd_demo.models.model import Model
from dmtd_demo.training.data import IGNORED, Batch, Row, collate
from dmtd_demo.training.loop import Position, Progress, Recipe
from dmtd_demo.training.masking import autocast, cyclical_heads, masked_hidden

# batches whose rows are sorted by length together, so that little of a batch is padding
BLOCK = 16
RATE = 1e-4
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# bytes that a trained parameter takes beside itself: its gradient and AdamW's two means, in float32
STATE = 12


def parse_taus(text: str) -> tuple[int, ...]:
    """Cycle lengths with commas between, such as 2,3,4."""
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
    """Batches of `size` rows, the same ones at each step whether or not the run was interrupted:
    the rows in a new order each time round, and of every BLOCK batches those of like length
    together.
    """
    known, made = -1, []
    while True:
        block, index = divmod(position.progress.step, BLOCK)
        if block != known:
            known, made = block, _block(rows, size, seed, block)
        chosen = made[index]
        yield collate(chosen, max(len(row.ids) for row in chosen), 0)


def _block(rows: Sequence[Row], size: int, seed: int, block: int) -> list[list[Row]]:
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
    """Make the layers and the final norm trainable, or LoRA's adapters in all their linears;
    embedding and LM head stay frozen. Raises UserError.
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
        raise UserError(
            f"training {trained:,} parameters needs {gib(trained * STATE)} for gradients and "
            f"optimizer; {model.device} has {gib(room)} free: "
            f"{'give --lora 16, with --quantization nf4 where the weights are large too' if lora is None else 'take a lower --lora'}"
        )
    if checkpointing:
        module.gradient_checkpointing_enable({"use_reentrant": False})
        module.train()  # transformers' layers look at it; Qwen has no dropout


def recipe(
    model: Model,
    split: Split,
    taus: Sequence[int],
    seed: int,
    rate: float,
    trained_length: int,
    settings: str,
) -> Recipe:
    """The loss of one cycle length for each batch, drawn from `taus`; lr, cosine, warm-up, AdamW's
    means and clip are the paper's, no weight decay *(ours)*.
    """
    backbone = model.backbone

    def loss(batch: Batch, progress: Progress) -> tuple[Tensor, dict[str, float]]:
        tau = random.Random(f"tau:{seed}:{progress.step}").choice(taus)
        read = batch.targets != IGNORED
        with autocast(batch.ids.device):
            hidden = masked_hidden(backbone, split, batch.ids, cyclical_heads(batch.phase, tau))
            logits = backbone.logits(hidden[read])
        return F.cross_entropy(logits.float(), batch.targets[read]), {"tau": tau}

    return Recipe(
        "dmtd",
        backbone.module,
        loss,
        lambda output: save_model(model, split, max(taus), trained_length, output / "model"),
        counts=lambda batch: (batch.targets != IGNORED).sum(),
        settings=settings,
        learning_rate=rate,
        warm_up=0.1,
        cosine=True,
        weight_decay=0.0,
    )


@torch.no_grad()
def merged(module: nn.Module) -> dict[str, Tensor]:
    """The weights by the names that they have in a checkpoint, LoRA's products added to them; those
    that are quantized, as they are read.
    """
    adapted = {
        name: part
        for name, part in module.named_modules()
        if hasattr(part, "get_delta_weight") and hasattr(part, "base_layer")
    }
    state = {
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


def save_model(model: Model, split: Split, tau: int, trained_length: int, folder: Path) -> None:
    """A folder in Hugging Face format, in the dtype of the checkpoint that training began with, the
    split in its config.json. Written aside, then moved.
    """
    raw = json.loads((model.folder / "config.json").read_text(encoding="utf-8"))
    dtype = str(raw.pop("torch_dtype", None) or raw.get("dtype") or "bfloat16")
    raw.update(
        dtype=dtype,
        num_encoding_layers=split.early,
        num_thinking_layers=split.middle,
        num_decoding_layers=split.late,
        mtp_horizon=tau,
        dmtd_head_input=split.head_input,
        trained_length=trained_length,
    )
    raw.pop("auto_map", None)  # the authors' own code, which is not in this folder
    aside = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        state = {
            name: t.detach().to("cpu", getattr(torch, dtype)).contiguous()
            for name, t in merged(model.backbone.module).items()
        }
        save_torch_state_dict(state, aside)
        (aside / "config.json").write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")
        if (model.folder / "generation_config.json").exists():
            shutil.copyfile(
                model.folder / "generation_config.json", aside / "generation_config.json"
            )
        if model.tokenizer is not None:
            model.tokenizer.save_pretrained(aside)
        before = folder.with_name(f"{folder.name}.before")
        if folder.exists():
            folder.rename(before)
        aside.rename(folder)
        shutil.rmtree(before, ignore_errors=True)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
