"""The one training loop.

A recipe is a loss plus the trainable parameters; the loop does the rest.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import threading
import time
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Generic, Iterator, Protocol, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from dmtd_demo.errors import Interrupted, TrainingError, UserError
from dmtd_demo.machine import is_there
from dmtd_demo.training.muon import Muon

if TYPE_CHECKING:
    from accelerate import Accelerator
    from typing_extensions import Self


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


class Drawn(Protocol):
    """A batch as the loop sees it. tokens: what it adds to the run's count."""

    @property
    def tokens(self) -> int: ...

    def to(self, device: torch.device) -> Self:
        """Return the batch on this device."""

    def piece(self, index: int, of: int) -> Self:
        """Return every `of`-th row or position, from this index on."""


B = TypeVar("B", bound=Drawn)
Figures = dict[str, Any]  # of one update, by the name that is shown: numbers
Lost = tuple[Tensor, Figures]


@dataclass(frozen=True)
class Recipe(Generic[B]):
    """A loss and what it trains.

    name: as on the command line. trainable: what is optimized, of it the parameters that require a
    gradient. loss(batch, progress): a scalar, or parts that add up to it, [m], and figures to show.
    save(output): writes the result in its final form; called at every checkpoint. counts(batch):
    over how many terms each part of the loss is a mean, a number or [m], so that the pieces of a
    batch can be put together; without it nothing is divided, and each of several processes computes
    the whole batch. again(): the loss over what was seen, where `repeats` asks for more updates.
    """

    name: str
    trainable: nn.Module
    loss: Callable[[B, Progress], Lost]
    save: Callable[[Path], None]
    counts: Callable[[B], Tensor] | None = None
    again: Callable[[], Lost] | None = None
    # what a resumed run must have in common with the one that it goes on
    settings: str = ""
    learning_rate: float = 1e-3  # of AdamW
    # of Muon, for the matrices inside the layers; None: AdamW for everything
    muon_rate: float | None = None
    warm_up: float = 0.02  # share of the run
    decay: float = 0.35  # share of the run, at its end, over which the rate falls to zero
    weight_decay: float = 0.1
    # updates for each batch: more where its features cost much and are remembered
    repeats: int = 1
    # share of the schedule that was run before, where training goes on from given weights
    begin: float = 0.0
    # after the warm-up the rate falls along a cosine, in place of plateau and decay
    cosine: bool = False

    def share(self, done: int, total: int) -> float:
        """Where in the schedule a run of `total` tokens (or steps) is when `done` of them are."""
        return self.begin + (1 - self.begin) * min(1.0, done / total)

    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        """What is trained, by name."""
        return [(name, p) for name, p in self.trainable.named_parameters() if p.requires_grad]


@dataclass(frozen=True)
class Run:
    """How long a recipe is trained, and where.

    It ends when `tokens` tokens were seen, or after `steps` updates where those are given.
    Checkpoints lie in `output`/checkpoint, one every `checkpoint_seconds`. keep: the result at
    every checkpoint stays, in `output`/kept/TOKENS, for curves over the run. log: a file that gets
    a JSON line at each. pieces: into how many each process cuts its share of a batch, whose
    gradients are added up before the update (gradient accumulation). bar: on standard error.
    """

    output: Path
    tokens: int | None = None
    steps: int | None = None
    resume: bool = False
    device: torch.device = torch.device("cpu")
    checkpoint_seconds: float = 300
    keep: bool = False
    log: Path | None = None
    pieces: int = 1
    bar: bool = True

    @property
    def total(self) -> int:
        """Tokens, or updates where those are given."""
        total = self.tokens if self.steps is None else self.steps
        if total is None:
            raise ValueError("a run needs tokens or steps")
        return total

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.output / "checkpoint"

    def done(self, progress: Progress) -> int:
        """How much of `total` was done."""
        return progress.tokens if self.steps is None else progress.step


def rate_factor(recipe: Recipe[Any], share: float) -> float:
    """Return the factor of the learning rate at this share of the run.

    It is a linear warm-up, a plateau, then a linear fall to zero, so that a run can be made longer
    or shorter when resumed; or a cosine.
    """
    if recipe.cosine:
        return min(
            (share + 1e-4) / recipe.warm_up,
            0.5 + 0.5 * math.cos(math.pi * max(0.0, share - recipe.warm_up) / (1 - recipe.warm_up)),
            1.0,
        )
    return max(
        0.0, min((share - recipe.begin + 1e-4) / recipe.warm_up, (1 - share) / recipe.decay, 1.0)
    )


def optimizers(recipe: Recipe[Any]) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices inside the layers, AdamW for the rest.

    After 133,000 tokens Muon's loss was 2.9 where AdamW's was 4.4.
    """
    named = recipe.parameters()
    matrices = [p for name, p in named if recipe.muon_rate and p.ndim == 2 and "embed" not in name]
    chosen = {id(p) for p in matrices}
    rest = [p for _, p in named if id(p) not in chosen]
    made: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(
            [
                {
                    "params": [p for p in rest if p.ndim >= 2],
                    "weight_decay": 0.0 if recipe.muon_rate else recipe.weight_decay,
                },
                {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
            ],
            lr=recipe.learning_rate,
            betas=(0.9, 0.95),
            fused=True,
        )
    ]
    if recipe.muon_rate and matrices:
        made.append(Muon(matrices, lr=recipe.muon_rate, weight_decay=recipe.weight_decay))
    for optimizer in made:
        for group in optimizer.param_groups:
            group["base"] = group["lr"]
    return made


def processes(device: torch.device) -> Accelerator:
    """Return this process among those that `accelerate launch` started; alone without it.

    The others may wait long for what the first one prepares.
    """
    from accelerate import Accelerator, InitProcessGroupKwargs

    return Accelerator(
        cpu=device.type == "cpu",
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=1))],
    )


def target_of(device: str | None) -> torch.device:
    """Return the device that is asked for; without one CUDA where it is there. Raises UserError."""
    if device is not None and not is_there(device):
        raise UserError(
            f"--device needs to be cpu, or cuda where PyTorch finds a CUDA device; got {device!r}"
        )
    return torch.device(device or ("cuda" if is_there("cuda") else "cpu"))


def own_device(device: str | None) -> str | None:
    """Return the device that is asked for; each of several processes takes a CUDA device."""
    if device is None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return (
            f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
            if torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU") != "true"
            else "cpu"
        )
    return device


def train(
    recipe: Recipe[B],
    batches: Callable[[Position], Iterator[B]],
    run: Run,
    *,
    on_checkpoint: Callable[[Progress], dict[str, Any]] | None = None,
    watch: Callable[[Progress, float, Figures], None] | None = None,
) -> None:
    """Train a recipe. Checkpoints are complete files: written aside, then moved.

    With several processes every one draws the whole batch and computes its own rows of it.
    on_checkpoint: what else the log says at each. watch: gets the loss and the figures of each
    update, and may raise Cancelled: nothing is saved then. Raises TrainingError where the run
    cannot go on, and Interrupted after Ctrl-C or SIGTERM; the last checkpoint is whole then.
    """
    workers = processes(run.device)
    made = optimizers(recipe)
    total = run.total
    progress = Progress(0, 0, recipe.begin)
    saved: int | None = None  # the step of the last checkpoint
    if run.resume:
        progress = load_checkpoint(run.checkpoints, recipe, made)
        saved = progress.step
    done = run.done(progress)
    if done >= total and workers.is_main_process:
        # a run that ended may have been killed before its result was written
        recipe.save(run.output)
    progress = replace(progress, share=recipe.share(done, total))
    position = Position(progress)
    stream = batches(position)
    bar = tqdm(
        total=total,
        initial=done,
        unit="tok" if run.steps is None else "step",
        unit_scale=run.steps is None,
        desc=recipe.name,
        dynamic_ncols=True,
        disable=not (workers.is_main_process and run.bar),
    )
    last_save = time.monotonic()
    smooth = math.nan
    with _signals() as caught, contextlib.closing(bar):
        while done < total:
            batch = next(stream)
            factor = rate_factor(recipe, progress.share)
            for group in (group for optimizer in made for group in optimizer.param_groups):
                group["lr"] = group["base"] * factor
            try:
                loss, figures = _updates(recipe, batch, progress, made, workers, run)
            except _NotFinite as error:
                raise TrainingError(
                    f"training {recipe.name}: {error} at step {progress.step}; "
                    f"{_left(run.checkpoints, saved)}, with a lower rate"
                ) from None
            progress = Progress(progress.step + 1, progress.tokens + batch.tokens, 0.0)
            done = run.done(progress)
            progress = replace(progress, share=recipe.share(done, total))
            position.progress = progress
            smooth = loss if math.isnan(smooth) else 0.98 * smooth + 0.02 * loss
            bar.update(done - bar.n)
            if watch:
                watch(progress, loss, figures)
            bar.set_postfix(
                loss=f"{smooth:.3f}",
                **{k: f"{v:.3f}" if isinstance(v, float) else v for k, v in figures.items()},
                refresh=False,
            )
            stop = _anywhere(workers, len(caught), run.device)
            due = time.monotonic() - last_save > run.checkpoint_seconds or done >= total or stop
            if workers.is_main_process and due:
                try:
                    save_checkpoint(run.checkpoints, recipe, made, progress)
                    saved = progress.step
                    more = on_checkpoint(progress) if on_checkpoint else {}
                    bar.write(_result(recipe, run, progress, smooth, more))
                except (OSError, SafetensorError) as error:
                    raise TrainingError(
                        f"training {recipe.name}: {run.output} could not be written at step "
                        f"{progress.step} ({error}); free some space: "
                        f"{_left(run.checkpoints, saved)}"
                    ) from None
                last_save = time.monotonic()
            if stop and done < total:
                raise Interrupted(
                    f"training {recipe.name} was stopped after step {progress.step} and is saved: "
                    "go on with --resume",
                    caught[0] if caught else signal.SIGTERM,
                )
    workers.wait_for_everyone()


class _NotFinite(ArithmeticError):
    """A loss or a gradient that is no number."""


def _updates(
    recipe: Recipe[B],
    batch: B,
    progress: Progress,
    made: list[torch.optim.Optimizer],
    workers: Accelerator,
    run: Run,
) -> tuple[float, Figures]:
    """Make the updates of one batch; return the last one's loss and figures.

    Raises _NotFinite before an update whose loss or gradient is not finite.
    """
    share = workers.num_processes * run.pieces if recipe.counts else 1
    parameters = [p for _, p in recipe.parameters()]
    for repeat in range(recipe.repeats):
        if share == 1:
            again = recipe.again if repeat else None
            parts, figures = again() if again else recipe.loss(batch.to(run.device), progress)
            loss = parts.sum()
            loss.backward()
        else:
            mine = range(workers.process_index, share, workers.num_processes)
            loss, figures = _in_pieces(recipe, batch, progress, run.device, mine, share)
            if workers.num_processes > 1:
                loss = workers.reduce(loss, "sum")
                for p in parameters:
                    own = torch.zeros_like(p) if p.grad is None else p.grad
                    p.grad = workers.reduce(own, "sum")
        norm = nn.utils.clip_grad_norm_(parameters, 1.0)
        for what, value in (("loss", loss), ("gradient", norm)):
            if not torch.isfinite(value):
                raise _NotFinite(f"the {what} is {value.item()}")
        for optimizer in made:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return loss.item(), figures


def _anywhere(workers: Accelerator, signals: int, device: torch.device) -> bool:
    """Whether any of the processes has caught a signal."""
    if workers.num_processes == 1:
        return signals > 0
    return workers.reduce(torch.tensor(signals, device=device)).item() > 0


def _result(
    recipe: Recipe[Any], run: Run, progress: Progress, loss: float, more: dict[str, Any]
) -> str:
    """Write the result as it stands, and the log's line, which is returned."""
    recipe.save(run.output)
    if run.keep:
        recipe.save(run.output / "kept" / str(progress.tokens))
    facts = {"step": progress.step, "tokens": progress.tokens, "loss": round(loss, 4), **more}
    line = json.dumps(facts)
    if run.log:
        with run.log.open("a") as file:
            file.write(line + "\n")
    return line


def _in_pieces(
    recipe: Recipe[B],
    batch: B,
    progress: Progress,
    device: torch.device,
    mine: range,
    share: int,
) -> Lost:
    """Run forward and backward over these of the `share` pieces of a batch.

    Each is a mean over its own terms, and weighs as many as it has: what it adds to the loss of the
    whole batch.
    """
    if recipe.counts is None:
        raise ValueError(f"the recipe {recipe.name} counts nothing, so its batches stay whole")
    whole = recipe.counts(batch).clamp(min=1).to(device)
    total = torch.zeros((), device=device)
    sums: Figures = {}
    for index in mine:
        piece = batch.piece(index, share)
        counts = recipe.counts(piece).to(device)
        if counts.sum() == 0:
            continue
        parts, figures = recipe.loss(piece.to(device), progress)
        loss = (parts * counts / whole).sum()
        loss.backward()
        total = total + loss.detach()
        for name, value in figures.items():
            sums[name] = (
                sums.get(name, 0.0) + value / len(mine) if isinstance(value, float) else value
            )
    return total, sums


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Note Ctrl-C and SIGTERM once, so that the step ends and a checkpoint is written.

    A second one ends the process as always.
    """
    caught: list[int] = []
    # Python gives signals to the main thread alone
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    before: dict[int, Any] = {}

    def note(number: int, _: object) -> None:
        caught.append(number)
        for each, handler in before.items():
            signal.signal(each, handler)

    for each in (signal.SIGINT, signal.SIGTERM):
        before[each] = signal.signal(each, note)
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _left(folder: Path, saved: int | None) -> str:
    """Say what remains of a run that failed."""
    return (
        f"the last checkpoint in {folder}, of step {saved}, is whole: go on with --resume"
        if saved is not None
        else "there is no checkpoint yet: start again"
    )


def save_checkpoint(
    folder: Path, recipe: Recipe[Any], made: list[torch.optim.Optimizer], progress: Progress
) -> None:
    """Write parameters and optimizer state as one file, aside and then moved. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"model.{name}": p.detach() for name, p in recipe.parameters()}
    for name, p in recipe.parameters():
        for key, value in (
            item for optimizer in made for item in optimizer.state.get(p, {}).items()
        ):
            tensors[f"{key}.{name}"] = value
    temporary = folder / f"{recipe.name}.part"
    try:
        save_file(
            {k: v.contiguous() for k, v in tensors.items()},
            temporary,
            metadata={
                "step": str(progress.step),
                "tokens": str(progress.tokens),
                "settings": recipe.settings,
            },
        )
        temporary.replace(folder / f"{recipe.name}.safetensors")
    finally:
        temporary.unlink(missing_ok=True)  # what did not fit on the disk


def load_checkpoint(
    folder: Path, recipe: Recipe[Any], made: list[torch.optim.Optimizer]
) -> Progress:
    """Read the run's checkpoint into the recipe and its optimizers. Raises UserError."""
    path = folder / f"{recipe.name}.safetensors"
    if not path.exists():
        raise UserError(
            f"--resume needs a checkpoint at {path}; there is none: start without --resume"
        )
    try:
        state = load_file(path)
        with safe_open(path, "pt") as file:
            facts = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"--resume needs a whole checkpoint; reading {path} gave: {error}"
        ) from None
    shapes = {f"model.{name}": p.shape for name, p in recipe.parameters()}
    if facts.get("settings", "") != recipe.settings or shapes != {
        name: t.shape for name, t in state.items() if name.startswith("model.")
    }:
        raise UserError(
            "--resume needs the settings that the run began "
            f"with{': ' if facts.get('settings') else ''}{facts.get('settings', '')}; got "
            f"{recipe.settings or 'another model'}"
        )
    if not (facts.get("step", "").isdecimal() and facts.get("tokens", "").isdecimal()):
        raise UserError(
            f"--resume needs a checkpoint that says its step and tokens; {path} has "
            f"{', '.join(facts) or 'neither'}"
        )
    owner = {
        id(p): optimizer
        for optimizer in made
        for group in optimizer.param_groups
        for p in group["params"]
    }
    with torch.no_grad():
        for name, p in recipe.parameters():
            p.copy_(state[f"model.{name}"])
            entry = {
                key: state[f"{key}.{name}"]
                for key in ("step", "exp_avg", "exp_avg_sq", "momentum_buffer")
                if f"{key}.{name}" in state
            }
            if entry:
                owner[id(p)].state[p] = {key: value.to(p.device) for key, value in entry.items()}
    return Progress(int(facts["step"]), int(facts["tokens"]), 0.0)
