"""A panel of this machine in motion: its decoder, its clock, and what it has emitted."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from dmtd_demo.decoders import Decoder, Step
from dmtd_demo.errors import is_out_of_memory
from dmtd_demo.models.chat import TextStream, TokenText
from dmtd_demo.models.model import Model, use_threads
from dmtd_demo.race import trace
from dmtd_demo.race.trace import Batch
from dmtd_demo.sampling import Sampler

BURST_SECONDS = 0.04  # of one turn: switching panels after every step costs tiny models 15 %
WARM_UP_STEPS = 12


@dataclass
class Runner:
    """One panel's decoder in motion, its clock and what it has emitted."""

    index: int
    decoder: Decoder
    model: Model
    prompt_ids: Sequence[int]
    steps: Iterator[Step]
    stream: TextStream
    limit: int
    eos_ids: frozenset[int]
    texts: TokenText
    clock: float = 0.0
    span: int = 0
    records: Batch = field(default_factory=list)
    stop: str | None = None
    message: str | None = None

    @property
    def tokens(self) -> list[trace.Record]:
        return [token for record in self.records for token in record["tokens"]]

    def close(self) -> None:
        """Its KV cache is given back."""
        self.steps.close()

    def statistics(self) -> trace.Record:
        return trace.statistics(self.records, self.model.layers)

    def advance(self) -> trace.Record | None:
        """One step by the panel's clock; None where the decoder failed."""
        backbone = self.model.backbone
        started = time.perf_counter() - backbone.preparing  # no clock counts what is done once
        try:
            step = next(self.steps)
            if backbone.device.type == "cuda":
                torch.cuda.synchronize(backbone.device)
        except Exception as error:  # one panel's failure is shown in that panel; the others go on
            self.stop, self.message = "error", _failure(self.decoder.name, error)
            return None
        took = time.perf_counter() - backbone.preparing - started
        self.clock += took
        return self._record(step, took)

    def _record(self, step: Step, took: float) -> trace.Record:
        if any(p.kind in ("full", "verify") for p in step.passes):
            self.span += 1
        tokens = []
        for token in step.tokens:
            end = token.id in self.eos_ids
            tokens.append(
                {
                    "id": token.id,
                    "text": "" if end else self.stream.push(token.id),
                    "origin": token.origin,
                    "span": self.span,
                    "logprob": round(token.logprob, 5),
                    **(
                        {"top": [[i, self.texts.piece(i), round(p, 5)] for i, p in token.top]}
                        if token.top
                        else {}
                    ),
                }
            )
            self.limit -= 1
            if end:
                self.stop = "eos"
            elif self.limit == 0:
                self.stop = "length"
            if self.stop:
                break  # what a step emits after EOS or over the limit is dropped
        single = len(step.passes) == 1
        record = {
            "type": "step",
            "panel": self.index,
            "step": len(self.records),
            "ms": round(self.clock * 1000, 3),
            "passes": [
                {
                    "kind": p.kind,
                    "runs": [list(run) for run in p.runs],
                    "ms": round(took * 1000, 3) if single else None,
                }
                for p in step.passes
            ],
            "tokens": tokens,
            **({"lengths": [round(p, 4) for p in step.lengths]} if step.lengths else {}),
        }
        self.records.append(record)
        return record


def _failure(name: str, error: Exception) -> str:
    if is_out_of_memory(error):
        return f"{name} ran out of memory: fewer panels, fewer new tokens, a shorter conversation or a smaller model need less"
    return f"{name} failed: {' '.join(str(error).split())[:300] or type(error).__name__}"


def turn(runner: Runner, should_stop: Callable[[], bool]) -> Batch:
    """A burst of steps of the panel that is furthest behind."""
    batch: Batch = []
    use_threads(runner.model)  # of the thread that takes this turn
    turn_ends = time.perf_counter() + BURST_SECONDS
    while runner.stop is None and time.perf_counter() < turn_ends and not should_stop():
        record = runner.advance()
        if record:
            batch.append(record)
    return batch


def warm_up(model: Model, decoder: Decoder, prompt_ids: Sequence[int]) -> None:
    """A few uncounted steps the first time a decoder runs on a model: kernels, memory pools and tables are then in place."""
    key = f"{decoder.name}:{decoder.options}"
    if key in model.warmed:
        return
    prompt_ids = list(prompt_ids)[:64]
    steps = decoder.steps(model, prompt_ids, Sampler(device=model.backbone.device))
    room = model.context - len(prompt_ids)
    try:
        for _ in range(WARM_UP_STEPS):
            room -= len(next(steps).tokens)
            if room <= 0:
                break
    except Exception:  # it fails again where it is shown, in its panel
        return
    finally:
        steps.close()
    model.warmed.add(key)
