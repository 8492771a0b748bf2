"""A panel of this machine in motion: its decoder, its clock, and the tokens it has emitted."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from dmtd_demo.decoders import Decoder, Step
from dmtd_demo.errors import is_out_of_memory
from dmtd_demo.models.ends import named
from dmtd_demo.models.model import Model, use_threads
from dmtd_demo.models.thoughts import balanced
from dmtd_demo.models.token_text import TokenText
from dmtd_demo.race import trace
from dmtd_demo.race.audit import Judged, audit_ids
from dmtd_demo.race.protocol import Panel, ending
from dmtd_demo.race.request import Entry
from dmtd_demo.race.settings import RaceSettings
from dmtd_demo.race.trace import Burst
from dmtd_demo.sampling import Sampler

# of one turn: switching panels after every step costs tiny models 15 %
BURST_SECONDS = 0.04
WARM_UP_STEPS = 12


class LocalPanel:
    """A decoder in motion, its clock and its record. It is a Panel (race/protocol.py).

    clock: seconds that its own steps took. limit: tokens that it may still emit.
    """

    def __init__(
        self,
        index: int,
        decoder: Decoder[Any],
        entry: Entry,
        settings: RaceSettings,
        texts: TokenText,
    ) -> None:
        self.index = index
        self.decoder = decoder
        self.model = entry.model
        self.prompt = entry.prompt
        self.clock = 0.0
        self.stop: str | None = None
        self.message: str | None = None
        self.limit = settings.max_new_tokens
        self.records: list[trace.Record] = []
        self._span = 0
        self._eos_ids = frozenset() if settings.ignore_eos else entry.model.eos_ids
        self._texts = texts
        self._stream = texts.stream()
        self._thoughts = balanced(entry.model.tokenizer, entry.prompt)
        sampler = Sampler(settings.sampling, settings.top, entry.model.backbone.device)
        # asked once: with every step it would be a hundredth of a short pass
        self._on_cuda = entry.model.backbone.device.type == "cuda"
        self._steps = decoder.steps(entry.model, entry.prompt, sampler)

    @property
    def tokens(self) -> list[trace.Record]:
        return [token for record in self.records for token in record["tokens"]]

    def facts(self) -> trace.Record:
        """Describe the model and the prompt's length for the header."""
        states = [i for i, is_one in enumerate(self.model.backbone.recurrent) if is_one]
        return {
            "model": self.model.name,
            "dtype": self.model.dtype,
            "quantization": self.model.quantization,
            "layers": self.model.layers,
            "prompt_tokens": len(self.prompt),
            **({"lossless": True, "alike": self.model.alike} if self.decoder.lossless else {}),
            **({"recurrent": states} if states else {}),
            **({"takes_nothing": True} if self._takes_nothing() else {}),
            **({"ends": named(self._eos_ids, self.model.tokenizer)} if self._eos_ids else {}),
        }

    def _takes_nothing(self) -> bool:
        return self.decoder.takes_nothing(self.decoder.options, self.model)

    def prepare(self) -> None:
        """Warm up, by as many CPU threads as suit the model."""
        use_threads(self.model)
        warm_up(self.model, self.decoder, self.prompt)

    def start(self) -> None:
        """Do nothing: the clock runs while a turn is taken."""

    def take(self, should_stop: Callable[[], bool], seconds: float) -> Burst:
        """Run steps for BURST_SECONDS; `seconds` is of panels that wait for others."""
        batch: Burst = []
        # of the thread that takes this turn
        use_threads(self.model)
        turn_ends = time.perf_counter() + BURST_SECONDS
        while self.stop is None and time.perf_counter() < turn_ends and not should_stop():
            record = self._advance()
            if record:
                batch.append(record)
        return batch

    def close(self) -> None:
        """Give the KV cache back."""
        self._steps.close()

    def statistics(self) -> trace.Record:
        """Return the figures of the steps so far."""
        return trace.statistics(self.records, self.model.layers)

    def verdict(self, first: Panel, audit: bool) -> Burst:
        """Return the audit, where it is asked for and can be made, and the summary.

        first: the panel that the text is compared with.
        """
        tokens = self.tokens
        ids = [token["id"] for token in tokens]
        judged = self._audit(ids) if audit and tokens and self.stop != "error" else None
        agrees = None if judged is None else [each.agrees for each in judged]
        comparable = first.model is not None and _same_tokenizer(self.model, first.model)
        reference = [token["id"] for token in first.tokens]
        summary = {
            "type": "summary",
            **ending(self),
            "agreement": round(trace.agreement(ids, reference), 4) if comparable else None,
            "audit_agreement": None if agrees is None else trace.audit_agreement(tokens, agrees),
            "extra_parameters": self.decoder.extra_parameters(self.model),
        }
        if judged is None:
            return [summary]
        choices = [
            [
                each.choice,
                self._texts.piece(each.choice),
                round(each.probability, 5),
                round(each.own, 5),
            ]
            for each in judged
        ]
        return [
            {"type": "audit", "panel": self.index, "agrees": agrees, "choices": choices},
            summary,
        ]

    def _audit(self, ids: Sequence[int]) -> list[Judged] | None:
        use_threads(self.model)
        try:
            return audit_ids(self.model, self.prompt, ids)
        except Exception as error:
            # the text stands; only its check is missing
            if is_out_of_memory(error):
                return None
            raise

    def _advance(self) -> trace.Record | None:
        """Run one step by the panel's clock; return None where the decoder failed."""
        backbone = self.model.backbone
        # no clock counts preparations that are made once
        started = time.perf_counter() - backbone.preparing
        try:
            step = next(self._steps)
            if self._on_cuda:
                torch.cuda.synchronize(backbone.device)
        except Exception as error:
            # one panel's failure is shown in that panel; the others go on
            self.stop, self.message = "error", _failure(self.decoder.name, error)
            return None
        took = time.perf_counter() - backbone.preparing - started
        self.clock += took
        return self._record(step, took)

    def _record(self, step: Step, took: float) -> trace.Record:
        if any(p.kind in ("full", "verify") for p in step.passes):
            self._span += 1
        tokens = []
        for token in step.tokens:
            end = token.id in self._eos_ids
            top = [[i, self._texts.piece(i), round(p, 5)] for i, p in token.top]
            tokens.append(
                {
                    "id": token.id,
                    "text": "" if end else self._thoughts.push(self._stream.push(token.id)),
                    "origin": token.origin,
                    "span": self._span,
                    "logprob": round(token.logprob, 5),
                    **({"top": top} if top else {}),
                }
            )
            self.limit -= 1
            if end:
                self.stop = "eos"
            elif self.limit == 0:
                self.stop = "length"
            # tokens of a step after EOS or over the limit are dropped
            if self.stop:
                break
        if self.stop and tokens:
            tokens[-1]["text"] = f"{tokens[-1]['text']}{self._thoughts.finish()}"
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
            # of a step that was cut only what its tokens show
            **(
                {"tree": list(step.tree), "stood": list(step.stood[: len(tokens)])}
                if step.tree
                else {}
            ),
        }
        self.records.append(record)
        return record


def warm_up(model: Model, decoder: Decoder[Any], prompt: Sequence[int]) -> None:
    """Run a few uncounted steps the first time that a decoder runs on a model.

    Kernels, memory pools and tables are then in place.
    """
    key = f"{decoder.name}:{decoder.options}"
    if key in model.warmed:
        return
    prompt = list(prompt)[:64]
    steps = decoder.steps(model, prompt, Sampler(device=model.backbone.device))
    room = model.context - len(prompt)
    try:
        for _ in range(WARM_UP_STEPS):
            room -= len(next(steps).tokens)
            if room <= 0:
                break
    except Exception:
        # it fails again where it is shown, in its panel
        return
    finally:
        steps.close()
    model.warmed.add(key)


def _failure(name: str, error: Exception) -> str:
    if is_out_of_memory(error):
        return (
            f"{name} ran out of memory: fewer panels, fewer new tokens, a shorter conversation "
            "or a smaller model need less"
        )
    return f"{name} failed: {' '.join(str(error).split())[:300] or type(error).__name__}"


def _same_tokenizer(one: Model, other: Model) -> bool:
    if one is other or one.tokenizer is other.tokenizer:
        return one.backbone.vocab_size == other.backbone.vocab_size
    return (
        one.tokenizer is not None
        and other.tokenizer is not None
        and one.tokenizer.get_vocab() == other.tokenizer.get_vocab()
    )
