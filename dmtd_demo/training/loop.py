"""The one training loop. A recipe is a loss plus the trainable parameters; the loop does the rest."""
from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Iterator

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from dmtd_demo.errors import UserError
from dmtd_demo.training.data import Batch
from dmtd_demo.training.muon import Muon


@dataclass(frozen=True)
class Progress:
    """Where a run stands. tokens: seen so far; share: of the whole run, 0 to 1."""
    step: int
    tokens: int
    share: float


@dataclass
class Position:
    """The run's current progress, which the data may follow (short rows first)."""
    progress: Progress


@dataclass(frozen=True)
class Recipe:
    """name: as on the command line. trainable: what is optimized. loss(batch, progress): a scalar and figures to show;
    with repeats, batch is None for all but the first of them, and the loss is over what was seen.
    save(output): writes the result in its final form; called at every checkpoint."""
    name: str
    trainable: nn.Module
    loss: Callable[[Batch | None, Progress], tuple[Tensor, dict[str, float]]]
    save: Callable[[Path], None]
    learning_rate: float = 1e-3  # of AdamW
    muon_rate: float | None = None   # of Muon, for the matrices inside the layers; None: AdamW for everything
    warm_up: float = 0.02        # share of the run
    decay: float = 0.35          # share of the run, at its end, over which the rate falls to zero
    weight_decay: float = 0.1
    repeats: int = 1             # updates for each batch: more where its features cost much and are remembered
    begin: float = 0.0           # share of the schedule that was run before, where training goes on from given weights

    def share(self, tokens: int, total: int) -> float:
        """Where in the schedule a run of `total` tokens is when it has seen `tokens`."""
        return self.begin + (1 - self.begin) * min(1.0, tokens / total)


def rate_factor(recipe: Recipe, share: float) -> float:
    """Of the learning rate: linear warm-up, a plateau, then a linear fall to zero, so that a run can be made longer or shorter when resumed."""
    return max(0.0, min((share - recipe.begin + 1e-4) / recipe.warm_up, (1 - share) / recipe.decay, 1.0))


def optimizers(recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers (after 133,000 tokens its loss was 2.9 where AdamW's was 4.4), AdamW for the rest."""
    named = list(recipe.trainable.named_parameters())
    matrices = [p for name, p in named if recipe.muon_rate and p.ndim == 2 and "embed" not in name]
    chosen = {id(p) for p in matrices}
    rest = [p for _, p in named if id(p) not in chosen]
    made: list[torch.optim.Optimizer] = [torch.optim.AdamW(
        [{"params": [p for p in rest if p.ndim >= 2], "weight_decay": 0.0 if recipe.muon_rate else recipe.weight_decay},
         {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0}],
        lr=recipe.learning_rate, betas=(0.9, 0.95), fused=True)]
    if matrices:
        made.append(Muon(matrices, lr=recipe.muon_rate, weight_decay=recipe.weight_decay))
    for optimizer in made:
        for group in optimizer.param_groups:
            group["base"] = group["lr"]
    return made


def train(recipe: Recipe, batches: Callable[[Position], Iterator[Batch]], tokens: int, output: Path, *, resume: bool = False,
          device: torch.device = torch.device("cpu"), checkpoint_seconds: float = 300, keep: bool = False, log: Path | None = None,
          on_checkpoint: Callable[[Progress], dict] | None = None) -> None:
    """Train until `tokens` tokens were seen. Checkpoints lie in `output`/checkpoint and are complete files: written aside, then moved.

    keep: the result at every checkpoint stays, in `output`/kept/TOKENS, for curves over the run.
    """
    made = optimizers(recipe)
    folder = output / "checkpoint"
    progress = load_checkpoint(folder, recipe, made, tokens) if resume else Progress(0, 0, recipe.begin)
    position = Position(progress)
    stream = batches(position)
    bar = tqdm(total=tokens, initial=progress.tokens, unit="tok", unit_scale=True, desc=recipe.name, dynamic_ncols=True)
    last_save = time.monotonic()
    smooth = math.nan
    try:
        while progress.tokens < tokens:
            batch = next(stream).to(device)
            factor = rate_factor(recipe, progress.share)
            for group in (group for optimizer in made for group in optimizer.param_groups):
                group["lr"] = group["base"] * factor
            for repeat in range(recipe.repeats):
                loss, figures = recipe.loss(batch if repeat == 0 else None, progress)
                if not torch.isfinite(loss):
                    raise RuntimeError(f"training {recipe.name}: the loss is {loss.item()} at step {progress.step}; the last checkpoint in {folder} is whole, resume with a lower rate")
                loss.backward()
                nn.utils.clip_grad_norm_(recipe.trainable.parameters(), 1.0)
                for optimizer in made:
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
            seen = progress.tokens + batch.tokens
            progress = Progress(progress.step + 1, seen, recipe.share(seen, tokens))
            position.progress = progress
            value = loss.item()
            smooth = value if math.isnan(smooth) else 0.98 * smooth + 0.02 * value
            bar.update(batch.tokens)
            bar.set_postfix(loss=f"{smooth:.3f}", **{k: f"{v:.3f}" for k, v in figures.items()}, refresh=False)
            if time.monotonic() - last_save > checkpoint_seconds or progress.tokens >= tokens:
                save_checkpoint(folder, recipe, made, progress)
                recipe.save(output)
                if keep:
                    recipe.save(output / "kept" / str(progress.tokens))
                line = {"step": progress.step, "tokens": progress.tokens, "loss": round(smooth, 4), **(on_checkpoint(progress) if on_checkpoint else {})}
                bar.write(json.dumps(line))
                if log:
                    with log.open("a") as file:
                        file.write(json.dumps(line) + "\n")
                last_save = time.monotonic()
    finally:
        bar.close()


def save_checkpoint(folder: Path, recipe: Recipe, made: list[torch.optim.Optimizer], progress: Progress) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"model.{name}": p.detach() for name, p in recipe.trainable.named_parameters()}
    for name, p in recipe.trainable.named_parameters():
        for key, value in (item for optimizer in made for item in optimizer.state.get(p, {}).items()):
            tensors[f"{key}.{name}"] = value
    temporary = folder / f"{recipe.name}.part"
    save_file({k: v.contiguous() for k, v in tensors.items()}, temporary, metadata={"step": str(progress.step), "tokens": str(progress.tokens)})
    temporary.rename(folder / f"{recipe.name}.safetensors")


def load_checkpoint(folder: Path, recipe: Recipe, made: list[torch.optim.Optimizer], tokens: int) -> Progress:
    path = folder / f"{recipe.name}.safetensors"
    if not path.exists():
        raise UserError(f"--resume needs a checkpoint at {path}; there is none: start without --resume")
    state = load_file(path)
    with safe_open(path, "pt") as file:
        facts = file.metadata()
    owner = {id(p): optimizer for optimizer in made for group in optimizer.param_groups for p in group["params"]}
    with torch.no_grad():
        for name, p in recipe.trainable.named_parameters():
            p.copy_(state[f"model.{name}"])
            entry = {key: state[f"{key}.{name}"] for key in ("step", "exp_avg", "exp_avg_sq", "momentum_buffer") if f"{key}.{name}" in state}
            if entry:
                owner[id(p)].state[p] = {key: value.to(p.device) for key, value in entry.items()}
    seen = int(facts["tokens"])
    return Progress(int(facts["step"]), seen, recipe.share(seen, tokens))
