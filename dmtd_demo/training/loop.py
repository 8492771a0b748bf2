"""The one training loop. A recipe is a loss plus the trainable parameters; the loop does the rest."""
from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Iterator

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from dmtd_demo.errors import UserError
from dmtd_demo.training.data import Batch


@dataclass(frozen=True)
class Progress:
    """Where a run stands. tokens: seen so far; share: of the whole run, 0 to 1."""
    step: int
    tokens: int
    share: float


@dataclass(frozen=True)
class Recipe:
    """name: as on the command line. trainable: what is optimized. loss(batch, progress): a scalar and figures to show.
    save(output): writes the result in its final form; called at every checkpoint."""
    name: str
    trainable: nn.Module
    loss: Callable[[Batch, Progress], tuple[Tensor, dict[str, float]]]
    save: Callable[[Path], None]
    learning_rate: float = 1e-3
    warm_up: float = 0.02        # share of the run
    decay: float = 0.35          # share of the run, at its end, over which the rate falls to zero
    weight_decay: float = 0.1


def rate(recipe: Recipe, share: float) -> float:
    """Learning rate: linear warm-up, a plateau, then a linear fall to zero, so that a run can be made longer or shorter when resumed."""
    return recipe.learning_rate * max(0.0, min(share / recipe.warm_up, (1 - share) / recipe.decay, 1.0))


def train(recipe: Recipe, batches: Callable[[Progress], Iterator[Batch]], tokens: int, output: Path, *, resume: bool = False,
          device: torch.device = torch.device("cpu"), checkpoint_seconds: float = 300, log: Path | None = None,
          on_checkpoint: Callable[[Progress], dict] | None = None) -> None:
    """Train until `tokens` tokens were seen. Checkpoints lie in `output`/checkpoint and are complete files: written aside, then moved."""
    decayed = [p for p in recipe.trainable.parameters() if p.ndim >= 2]
    plain = [p for p in recipe.trainable.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=recipe.learning_rate, betas=(0.9, 0.95), fused=True)
    folder = output / "checkpoint"
    progress = load_checkpoint(folder, recipe, optimizer, tokens) if resume else Progress(0, 0, 0.0)
    stream = batches(progress)
    bar = tqdm(total=tokens, initial=progress.tokens, unit="tok", unit_scale=True, desc=recipe.name, dynamic_ncols=True)
    last_save = time.monotonic()
    smooth = math.nan
    try:
        while progress.tokens < tokens:
            batch = next(stream).to(device)
            for group in optimizer.param_groups:
                group["lr"] = rate(recipe, progress.tokens / tokens)
            loss, figures = recipe.loss(batch, progress)
            if not torch.isfinite(loss):
                raise RuntimeError(f"training {recipe.name}: the loss is {loss.item()} at step {progress.step}; the last checkpoint in {folder} is whole, resume with a lower rate")
            loss.backward()
            nn.utils.clip_grad_norm_(recipe.trainable.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            seen = progress.tokens + batch.tokens
            progress = Progress(progress.step + 1, seen, min(1.0, seen / tokens))
            value = loss.item()
            smooth = value if math.isnan(smooth) else 0.98 * smooth + 0.02 * value
            bar.update(batch.tokens)
            bar.set_postfix(loss=f"{smooth:.3f}", **{k: f"{v:.3f}" for k, v in figures.items()}, refresh=False)
            if time.monotonic() - last_save > checkpoint_seconds or progress.tokens >= tokens:
                save_checkpoint(folder, recipe, optimizer, progress)
                recipe.save(output)
                line = {"step": progress.step, "tokens": progress.tokens, "loss": round(smooth, 4), **(on_checkpoint(progress) if on_checkpoint else {})}
                bar.write(json.dumps(line))
                if log:
                    with log.open("a") as file:
                        file.write(json.dumps(line) + "\n")
                last_save = time.monotonic()
    finally:
        bar.close()


def save_checkpoint(folder: Path, recipe: Recipe, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"model.{name}": p.detach() for name, p in recipe.trainable.named_parameters()}
    for name, p in recipe.trainable.named_parameters():
        for key, value in optimizer.state.get(p, {}).items():
            tensors[f"{key}.{name}"] = value
    temporary = folder / f"{recipe.name}.part"
    save_file({k: v.contiguous() for k, v in tensors.items()}, temporary, metadata={"step": str(progress.step), "tokens": str(progress.tokens)})
    temporary.rename(folder / f"{recipe.name}.safetensors")


def load_checkpoint(folder: Path, recipe: Recipe, optimizer: torch.optim.Optimizer, tokens: int) -> Progress:
    from safetensors import safe_open
    path = folder / f"{recipe.name}.safetensors"
    if not path.exists():
        raise UserError(f"--resume needs a checkpoint at {path}; there is none: start without --resume")
    state = load_file(path)
    with safe_open(path, "pt") as file:
        facts = file.metadata()
    with torch.no_grad():
        for name, p in recipe.trainable.named_parameters():
            p.copy_(state[f"model.{name}"])
            entry = {key: state[f"{key}.{name}"] for key in ("step", "exp_avg", "exp_avg_sq") if f"{key}.{name}" in state}
            if entry:
                optimizer.state[p] = {key: value.to(p.device) for key, value in entry.items()}
    seen = int(facts["tokens"])
    return Progress(int(facts["step"]), seen, min(1.0, seen / tokens))
