"""A run of the recipe: `python -m dmtd_demo train classroom-hybrid`."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import random
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Iterator, Sequence

import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen3_5TextConfig

from dmtd_demo.destinations import check_folder
from dmtd_demo.errors import Interrupted, TrainingError, UserError
from dmtd_demo.models.addons import Base, save_addon
from dmtd_demo.models.catalog import ASSETS
from dmtd_demo.models.checkpoint import check_weights
from dmtd_demo.training.calibrate import PROMPTS, THRESHOLDS
from dmtd_demo.training.corpus import WORLD_NAME
from dmtd_demo.training.hybrid.checkpoint import (
    NAME,
    SPLIT,
    Weights,
    new_config,
    new_weights,
    save_model,
    shapes,
)
from dmtd_demo.training.hybrid.data import LENGTH, Batches, workers
from dmtd_demo.training.hybrid.judge import Judge, by_family, drafts_by_checking, encoded_rows
from dmtd_demo.training.hybrid.optimizer import rate_factor
from dmtd_demo.training.hybrid.predictor import chosen_threshold, spans, train_predictor
from dmtd_demo.training.hybrid.trainer import DEPTH, made_trainer
from dmtd_demo.training.loop import target_of
from dmtd_demo.training.world import Example
from dmtd_demo.training.world.mix import COMPOSITIONAL, draw, held_out_examples, training_examples

# root mean square of the table that a run begins with: at its full size, random layers would be
# sure of their nonsense
TABLE_SIZE = 0.04
# of the run: every position a head, until copying from the prompt has formed
AR_SHARE = 0.2
# from this share of the run on, texts up to this length
CURRICULUM = ((0.0, 64), (0.03, 128), (0.08, 256), (0.2, 512))
BEGIN = 0.5  # a run from given weights begins here in the schedule
LOG_SECONDS = 10
QUICK = 10  # held-out prompts of each family, asked whenever the model is saved
TAUS = (2, 3, 4, 6)
SEED = 7  # of the held-out prompts, as in `eval --seed 7`
SURE = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)  # the thresholds that are reported


@dataclass(frozen=True)
class Settings:
    """What a run is asked.

    seconds: of training; rows: of LENGTH tokens in a batch; updates: at most; start: a folder with
    weights to begin from. prompts, validation, texts, lessons: how many held-out prompts, prompts
    for the threshold, texts and updates for the predictor.
    """

    output: Path
    seconds: float = 240.0
    rows: int = 32
    updates: int | None = None
    seed: int = 0
    device: str | None = None
    threads: int | None = None
    compile: bool = False
    start: Path | None = None
    save_seconds: float = 60.0
    prompts: int = 1000
    validation: int = PROMPTS
    texts: int = 6000
    lessons: int = 2000

    def __post_init__(self) -> None:
        if not self.seconds > 0:
            raise UserError(f"--seconds needs a number above 0; got {self.seconds:g}")
        # each has 512 tokens, which are held and passed at once
        if not 1 <= self.rows <= 4096:
            raise UserError(f"--rows needs a number from 1 to 4,096; got {self.rows}")
        if self.updates is not None and self.updates < 1:
            raise UserError(f"--max-steps needs a whole number, 1 or more; got {self.updates}")
        target_of(self.device)


class Log:
    """Lines of JSON, on the screen and in a file; second: since the run began."""

    def __init__(self, path: Path) -> None:
        self.path, self.began = path, time.monotonic()
        path.parent.mkdir(parents=True, exist_ok=True)

    def __call__(self, **facts: Any) -> None:
        line = json.dumps({"second": round(time.monotonic() - self.began, 1), **facts})
        print(line, flush=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


@dataclass(frozen=True)
class Text:
    """The tokenizer of `classroom`, and itself without its wrapping."""

    tokenizer: PreTrainedTokenizerBase
    raw: Tokenizer
    end: int
    pad: int

    @classmethod
    def of(cls, folder: Path) -> Text:
        """Read it from a model's folder."""
        tokenizer = AutoTokenizer.from_pretrained(folder)
        raw = Tokenizer.from_file(str(folder / "tokenizer.json"))
        return cls(tokenizer, raw, tokenizer.eos_token_id, tokenizer.pad_token_id)


@dataclass(frozen=True)
class Work:
    """A run's settings and what it works with. held_out: family and example of each prompt."""

    settings: Settings
    config: Qwen3_5TextConfig
    text: Text
    device: torch.device
    held_out: Sequence[tuple[str, Example]]
    log: Log


def start_weights(config: Qwen3_5TextConfig, seed: int, start: Path | None) -> Weights:
    """Return the weights in the folder `start`; else random ones with the table of `classroom`.

    Raises UserError where the folder has others than this model's.
    """
    found: Weights = {}
    for file in sorted((start or ASSETS / "classroom").glob("model*.safetensors")):
        found |= {name: t.float() for name, t in load_file(file).items()}
    if start is None:
        table = found["model.embed_tokens.weight"]
        table = table - table.mean(0)
        table = table * (TABLE_SIZE / table.square().mean().sqrt())
        return new_weights(config, seed) | {"model.embed_tokens.weight": table}
    wanted = shapes(config)
    if {name: tuple(t.shape) for name, t in found.items()} != wanted:
        raise UserError(
            f"--start needs a folder with the {len(wanted)} tensors of {NAME}; {start} has "
            f"{len(found)}, or other shapes"
        )
    return found


def train(settings: Settings) -> None:
    """Train; the model lies in `output`/model with its predictor, the figures in training.json.

    A Ctrl-C or SIGTERM ends it after the update, with the model as it is then. Raises UserError,
    and TrainingError where the loss is not finite: nothing of that is saved.
    """
    check_folder(settings.output)
    device = target_of(settings.device)
    threads = settings.threads or (2 if device.type == "cuda" else torch.get_num_threads())
    torch.set_num_threads(threads)
    # products of the recurrent state; what is evaluated is float32
    torch.backends.cuda.matmul.allow_tf32 = True
    text = Text.of(ASSETS / "classroom")
    config = new_config(len(text.tokenizer), text.end, text.pad)
    weights = start_weights(config, settings.seed, settings.start)
    held_out = held_out_examples(SEED, settings.prompts)
    work = Work(settings, config, text, device, held_out, Log(settings.output / "log.jsonl"))
    with _stops() as caught:
        exact, facts = _learn(work, weights, caught)
    if caught:
        raise Interrupted(
            f"training {NAME} was stopped after step {facts['steps']}; the model as it was is in "
            f"{settings.output / 'model'}",
            caught[0],
        )
    _finish(work, exact, facts)


@contextlib.contextmanager
def _stops() -> Iterator[list[int]]:
    """Give the list of the signals that asked for an end, and put their handlers back after it."""
    caught: list[int] = []
    previous = {
        number: signal.signal(number, lambda n, _: caught.append(n))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield caught
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _learn(work: Work, weights: Weights, caught: list[int]) -> tuple[Weights, dict[str, int]]:
    """Train the model; returns its weights in float32, and how many tokens and steps it took."""
    settings, config, text, log = work.settings, work.config, work.text, work.log
    begin = BEGIN if settings.start else 0.0
    asked = [example for _, example in work.held_out[: QUICK * len(COMPOSITIONAL)]]
    quick = encoded_rows(text.raw, text.end, asked)
    batches = Batches(
        tokenizer=str(ASSETS / "classroom" / "tokenizer.json"),
        end=text.end,
        pad=text.pad,
        seed=f"hybrid:{settings.seed}:{settings.start or ''}",
        rows=settings.rows,
        depth=DEPTH,
    )
    tokens = step = 0
    with workers(max(1, (os.cpu_count() or 2) - 4), batches, _longest(begin)) as (source, limit):
        log(
            stage="start",
            parameters=sum(t.numel() for t in weights.values()),
            device=str(work.device),
            torch=torch.__version__,
            settings={name: str(v) for name, v in asdict(settings).items() if v is not None},
        )
        trainer = made_trainer(config, weights, settings.rows, work.device, settings.compile, log)
        log(stage="ready")

        def figures() -> list[float]:
            values = trainer.figures.tolist()
            if not np.isfinite(values).all():
                raise TrainingError(
                    f"training {NAME}: the loss or its gradient is not finite at step {step}; "
                    f"what was saved last is in {settings.output / 'model'}"
                )
            return values

        def save() -> Weights:
            figures()
            exact = trainer.optimizer.exact()
            save_model(config, exact, text.tokenizer, settings.output / "model", SPLIT, LENGTH)
            return exact

        started = last_log = last_save = time.monotonic()
        logged, waited = 0, 0.0
        while not caught:
            now = time.monotonic()
            share = begin + (1 - begin) * (now - started) / settings.seconds
            if share >= 1 or settings.updates and step >= settings.updates:
                break
            limit.value = _longest(share)
            batch = _next(source, caught)
            if batch is None:
                break
            waited += time.monotonic() - now
            trainer.step(batch, rate_factor(share, step, begin), share < AR_SHARE)
            tokens, step = tokens + batch.tokens, step + 1
            now = time.monotonic()
            if now - last_log >= LOG_SECONDS or step in (1, 20):
                values = figures()
                log(
                    step=step,
                    tokens=tokens,
                    share=round(share, 4),
                    tokens_per_second=round((tokens - logged) / (now - last_log)),
                    waited=round(waited, 2),
                    loss=round(values[0], 4),
                    drafts=[round(v, 4) for v in values[1 : 1 + DEPTH]],
                    accuracy=round(values[1 + DEPTH], 4),
                    norm=round(values[-1], 3),
                )
                last_log, logged, waited = time.monotonic(), tokens, 0.0
            if now - last_save >= settings.save_seconds:
                judge = Judge(config, save(), work.device, text.pad)
                shares = {tau: round(float(np.mean(judge.exact(quick, tau))), 3) for tau in (1, 4)}
                log(stage="saved", ar=shares[1], C4=shares[4], **drafts_by_checking(judge, quick))
                last_save = time.monotonic()
                last_log += last_save - now
        exact = save()
    log(stage="trained", step=step, tokens=tokens, seconds=round(time.monotonic() - started, 1))
    return exact, {"tokens": tokens, "steps": step}


def _longest(share: float) -> int:
    return [length for at, length in CURRICULUM if share >= at][-1]


def _next(source: Any, caught: list[int]) -> Any:
    """Return the next batch; None where an end was asked for meanwhile."""
    while not caught:
        with contextlib.suppress(queue.Empty):
            return source.get(timeout=1)
    return None


def _finish(work: Work, weights: Weights, facts: dict[str, Any]) -> None:
    """Measure the held-out figures, train the predictor and choose its threshold.

    What is known so far is written after each.
    """
    settings, text, held_out = work.settings, work.text, work.held_out
    judge = Judge(work.config, weights, work.device, text.pad)
    rows = encoded_rows(text.raw, text.end, [example for _, example in held_out])
    results: dict[str, Any] = {
        "model": NAME,
        "split": str(SPLIT),
        **facts,
        "prompts": len(rows),
        "seed": SEED,
        "teacher_forced": True,
    }

    def write(**more: Any) -> None:
        results.update(more)
        part = settings.output / "training.json.part"
        part.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        part.replace(settings.output / "training.json")
        work.log(**more)

    right = judge.exact(rows)
    write(ar=round(float(np.mean(right)), 4))
    if len(rows) == len(held_out):  # none was too long
        write(ar_by_family=by_family([family for family, _ in held_out], right))
    write(**{f"C{tau}": round(float(np.mean(judge.exact(rows, tau))), 4) for tau in TAUS})
    write(**drafts_by_checking(judge, rows))
    rng = random.Random("validation")  # as in calibrate: contents of training, none of these texts
    families = [COMPOSITIONAL[i % len(COMPOSITIONAL)] for i in range(settings.validation)]
    validation = encoded_rows(
        text.raw, text.end, [draw(family, rng, wanted=False) for family in families]
    )
    source = training_examples(f"clp:{settings.seed}")
    seen = encoded_rows(text.raw, text.end, [next(source)[1] for _ in range(settings.texts)])
    predictor = train_predictor(judge, seen, settings.seed, settings.lessons)
    found = spans(judge, predictor, validation, THRESHOLDS)
    chosen = chosen_threshold(found)
    folder = settings.output / "model"
    save_addon(
        folder / "addons",
        "native_clp",
        predictor,
        Base(NAME, None, check_weights(folder)),
        work.config.hidden_size,
        threshold=chosen,
        data=WORLD_NAME,
        validation={"prompts": len(validation), **found[chosen]},
    )
    held = spans(judge, predictor, rows, (chosen, *SURE))
    write(threshold=chosen, validation=found[chosen], mtp_native=held[chosen])
    write(mtp_native_by_threshold={str(t): held[t] for t in SURE})
    work.log(stage="done")
