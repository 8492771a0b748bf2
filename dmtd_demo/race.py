"""One prompt, N decoders, one stream of events: EOS, limits, text, timing and audit, measured alike for every decoder.

The panels share a device, so they take turns by a virtual clock: each clock counts only its own panel's steps, and the panel
furthest behind moves next. Every panel then moves as fast, relative to the others, as it would alone.
"""
from __future__ import annotations

import time
import uuid
from dataclasses import asdict, dataclass, field
from typing import Callable, Iterator, Sequence
from urllib.parse import urlsplit

import torch

from dmtd_demo import trace
from dmtd_demo.arrivals import Arrivals
from dmtd_demo.audit import audit_ids
from dmtd_demo.chat import Message, TextStream, TokenText, check_messages, encode_chat
from dmtd_demo.decoders import Decoder, PanelSpec, Remote, Step, make_decoder
from dmtd_demo.errors import UserError, is_out_of_memory
from dmtd_demo.loading import Model, use_threads
from dmtd_demo.machine import describe
from dmtd_demo.sampling import Sampler, Sampling

BURST_SECONDS = 0.04   # of one turn: switching panels after every step costs tiny models 15 %
WARM_UP_STEPS = 12
WAIT_SECONDS = 0.05     # for a server elsewhere, where no panel of ours has anything to do
Batch = list[trace.Record]


@dataclass
class _Runner:
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
        started = time.perf_counter() - backbone.preparing   # no clock counts what is done once
        try:
            step = next(self.steps)
            if backbone.device.type == "cuda":
                torch.cuda.synchronize(backbone.device)
        except Exception as error:   # one panel's failure is shown in that panel; the others go on
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
            tokens.append({
                "id": token.id, "text": "" if end else self.stream.push(token.id), "origin": token.origin, "span": self.span, "logprob": round(token.logprob, 5),
                **({"top": [[i, self.texts.piece(i), round(p, 5)] for i, p in token.top]} if token.top else {})})
            self.limit -= 1
            if end:
                self.stop = "eos"
            elif self.limit == 0:
                self.stop = "length"
            if self.stop:
                break   # what a step emits after EOS or over the limit is dropped
        single = len(step.passes) == 1
        record = {
            "type": "step", "panel": self.index, "step": len(self.records), "ms": round(self.clock * 1000, 3),
            "passes": [{"kind": p.kind, "runs": [list(run) for run in p.runs], "ms": round(took * 1000, 3) if single else None} for p in step.passes],
            "tokens": tokens, **({"lengths": [round(p, 4) for p in step.lengths]} if step.lengths else {})}
        self.records.append(record)
        return record


def _failure(name: str, error: Exception) -> str:
    if is_out_of_memory(error):
        return f"{name} ran out of memory: fewer panels, fewer new tokens, a shorter conversation or a smaller model need less"
    return f"{name} failed: {' '.join(str(error).split())[:300] or type(error).__name__}"


def race(model: Model | Sequence[Model], panels: Sequence[PanelSpec], conversations: Sequence[Sequence[Message]], sampling: Sampling = Sampling(), *, max_new_tokens: int = 256,
         top: int = 0, ignore_eos: bool = False, thinking: bool = False, audit: bool = True, should_stop: Callable[[], bool] = lambda: False) -> Iterator[Batch]:
    """Race the panels, one conversation each, the user's turn last; on one model, or each on its own. Yields batches of records (design.md, "The trace"), one per burst.

    Raises UserError before the first record for anything the user supplied. When `should_stop` turns true, or the generator is closed,
    the race ends within one pass.
    """
    models = _each(model, panels)
    prompts = [_encoded(model, panel, conversation, thinking) for model, panel, conversation in zip(models, panels, conversations)]
    first = conversations[0][0]
    for model, ids in zip(models, prompts):
        if ids and first["role"] == "system" and len(ids) + max_new_tokens > model.context:
            _check_system(model, first["content"], max_new_tokens)
    return race_ids(models, panels, prompts, sampling, max_new_tokens=max_new_tokens, top=top, ignore_eos=ignore_eos, audit=audit, should_stop=should_stop,
                    prompt=conversations[0][-1]["content"], conversations=conversations, thinking=thinking)


def race_ids(model: Model | Sequence[Model], panels: Sequence[PanelSpec], prompts: Sequence[Sequence[int]], sampling: Sampling = Sampling(), *, max_new_tokens: int = 256,
             top: int = 0, ignore_eos: bool = False, audit: bool = True, should_stop: Callable[[], bool] = lambda: False, prompt: str = "",
             conversations: Sequence[Sequence[Message]] = (), thinking: bool = False) -> Iterator[Batch]:
    """The same from token ids, one prompt per panel, used as they are. conversations: what remote panels are asked in place of them."""
    if not panels:
        raise UserError("a race needs at least one panel; got none")
    if len(prompts) != len(panels):
        raise ValueError(f"a race needs one prompt per panel; got {len(prompts)} for {len(panels)}")
    if not (isinstance(max_new_tokens, int) and max_new_tokens >= 1):
        raise UserError(f"max new tokens needs to be a whole number, 1 or more; got {max_new_tokens}")
    if not (isinstance(top, int) and 0 <= top <= 100):
        raise UserError(f"top needs a whole number from 0 to 100; got {top}")
    models = _each(model, panels)
    decoders = []
    for model, panel, ids in zip(models, panels, prompts):
        decoder = make_decoder(panel)
        if not isinstance(decoder, Remote):
            check_prompt(model, ids, max_new_tokens)
            decoder.options = decoder.resolve(decoder.options, model)
        elif not conversations:
            raise UserError("a remote panel needs a prompt in words; got token ids")
        decoders.append(decoder)
    return _run(models, panels, decoders, prompts, conversations, sampling, max_new_tokens, top, ignore_eos, thinking, audit, should_stop, prompt)


def _encoded(model: Model, panel: PanelSpec, conversation: Sequence[Message], thinking: bool) -> list[int]:
    """The prompt's ids; none for a panel whose server encodes it itself."""
    if panel.decoder != Remote.name:
        return encode_chat(model.tokenizer, conversation, thinking)
    check_messages(conversation)
    return []


def _each(model: Model | Sequence[Model], panels: Sequence[PanelSpec]) -> list[Model]:
    """The model of every panel."""
    models = [model] * len(panels) if isinstance(model, Model) else list(model)
    if len(models) != len(panels):
        raise ValueError(f"a race needs one model, or one per panel; got {len(models)} for {len(panels)}")
    return models


def _check_system(model: Model, text: str, max_new_tokens: int) -> None:
    """Raises UserError where the system prompt alone leaves no room."""
    tokens = len(model.tokenizer(text, add_special_tokens=False).input_ids)
    if tokens + max_new_tokens > model.context:
        raise UserError(f"the system prompt and the new tokens need to fit the context of {model.context} tokens; got {tokens} and {max_new_tokens}")


def check_prompt(model: Model, ids: Sequence[int], max_new_tokens: int) -> None:
    """Raises UserError where the prompt cannot be read: empty, over the context, or with ids outside the vocabulary."""
    if not ids:
        raise UserError("a prompt needs at least one token; got none")
    if len(ids) + max_new_tokens > model.context:
        raise UserError(f"prompt and new tokens need to fit the context of {model.context} tokens; got a prompt of {len(ids)} and {max_new_tokens} new tokens")
    worst = max(ids, key=lambda i: i if i >= 0 else model.backbone.vocab_size - i)
    if not 0 <= worst < model.backbone.vocab_size:
        raise UserError(f"token ids need to be from 0 to {model.backbone.vocab_size - 1}; got {worst}")


def _run(models: list[Model], panels: Sequence[PanelSpec], decoders: list[Decoder], prompts: Sequence[Sequence[int]], conversations: Sequence[Sequence[Message]], sampling: Sampling,
         max_new_tokens: int, top: int, ignore_eos: bool, thinking: bool, audit: bool, should_stop: Callable[[], bool], prompt: str) -> Iterator[Batch]:
    texts = {model: TokenText(model.tokenizer) for model in models}
    yield [_header(models, panels, decoders, prompts, sampling, max_new_tokens, prompt)]
    local = [index for index, decoder in enumerate(decoders) if not isinstance(decoder, Remote)]
    for index in local:
        use_threads(models[index])
        warm_up(models[index], decoders[index], prompts[index])
    panes: list[_Runner | Arrivals] = []
    for index, (model, decoder, ids) in enumerate(zip(models, decoders, prompts)):
        if isinstance(decoder, Remote):
            panes.append(Arrivals(index, decoder, conversations[index], sampling, max_new_tokens, top, ignore_eos, thinking))
        else:
            panes.append(_Runner(index, decoder, model, ids, decoder.steps(model, ids, Sampler(sampling, top, model.backbone.device)), texts[model].stream(), max_new_tokens,
                                 frozenset() if ignore_eos else model.eos_ids, texts[model]))
    remote = [pane for pane in panes if isinstance(pane, Arrivals)]
    try:
        for pane in remote:
            pane.start()
        running = list(panes)
        while running:
            taking_turns = [pane for pane in running if isinstance(pane, _Runner)]
            batch = _turn(min(taking_turns, key=lambda r: (r.clock, r.index)), should_stop) if taking_turns else []
            for pane in remote:
                batch += pane.take(0.0 if taking_turns or batch else WAIT_SECONDS / len(remote))
            if should_stop():
                for pane in running:
                    pane.stop = pane.stop or "stopped"
            for pane in [pane for pane in running if pane.stop]:
                pane.close()
                batch.append({"type": "end", "panel": pane.index, "stop": pane.stop, **({"message": pane.message} if pane.message else {}), **pane.statistics()})
                running.remove(pane)
            if batch:
                yield batch
        for pane in panes:
            yield _verdict(pane, panes[0], audit and not should_stop())
    finally:
        for pane in panes:
            pane.close()


def _turn(runner: _Runner, should_stop: Callable[[], bool]) -> Batch:
    """A burst of steps of the panel that is furthest behind."""
    batch: Batch = []
    use_threads(runner.model)   # of the thread that takes this turn
    turn_ends = time.perf_counter() + BURST_SECONDS
    while runner.stop is None and time.perf_counter() < turn_ends and not should_stop():
        record = runner.advance()
        if record:
            batch.append(record)
    return batch


def _verdict(pane: _Runner | Arrivals, first: _Runner | Arrivals, audit: bool) -> Batch:
    """The audit and the summary of a finished panel."""
    records: Batch = []
    summary = {"type": "summary", "panel": pane.index, "stop": pane.stop, **({"message": pane.message} if pane.message else {}), **pane.statistics()}
    if isinstance(pane, Arrivals):   # no model of ours to ask
        return [{**summary, "agreement": None, "audit_agreement": None, "extra_parameters": None}]
    tokens = pane.tokens
    ids = [t["id"] for t in tokens]
    agrees: list[bool] | None = None
    if audit and tokens and pane.stop != "error":
        use_threads(pane.model)
        try:
            agrees = audit_ids(pane.model, pane.prompt_ids, ids)
            records.append({"type": "audit", "panel": pane.index, "agrees": agrees})
        except Exception as error:   # the text stands; only its check is missing
            if not is_out_of_memory(error):
                raise
    comparable = isinstance(first, _Runner) and _same_tokenizer(pane.model, first.model)
    records.append({**summary, "agreement": round(trace.agreement(ids, [t["id"] for t in first.tokens]), 4) if comparable else None,
                    "audit_agreement": trace.audit_agreement(tokens, agrees) if agrees is not None else None, "extra_parameters": pane.decoder.extra_parameters(pane.model)})
    return records


def _same_tokenizer(one: Model, other: Model) -> bool:
    if one is other or one.tokenizer is other.tokenizer:
        return one.backbone.vocab_size == other.backbone.vocab_size
    return one.tokenizer is not None and other.tokenizer is not None and one.tokenizer.get_vocab() == other.tokenizer.get_vocab()


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
    except Exception:   # it fails again where it is shown, in its panel
        return
    finally:
        steps.close()
    model.warmed.add(key)


def _header(models: list[Model], panels: Sequence[PanelSpec], decoders: list[Decoder], prompts: Sequence[Sequence[int]], sampling: Sampling, max_new_tokens: int, prompt: str) -> trace.Record:
    settings = asdict(sampling)
    use_threads(models[0])
    trained = [(model.trained_length, len(ids) + max_new_tokens) for model, ids in zip(models, prompts) if model.trained_length and ids]
    entries = []
    for index, (model, panel, decoder, ids) in enumerate(zip(models, panels, decoders, prompts)):
        own = ({"model": decoder.options.name or urlsplit(decoder.server).netloc} if isinstance(decoder, Remote) else
               {"model": model.name, "dtype": model.dtype, "quantization": model.quantization, "layers": model.layers, "prompt_tokens": len(ids)})
        entries.append({"panel": index, "spec": str(panel), "decoder": panel.decoder, "label": decoder.label, "options": asdict(decoder.options), **own})
    return {
        "type": "header", "schema": trace.SCHEMA, "run": uuid.uuid4().hex, "seed": settings.pop("seed"), "sampling": settings, "prompt": prompt,
        "max_new_tokens": max_new_tokens, "machine": describe(models[0].device), "panels": entries,
        **({"trained_length": min(length for length, _ in trained), "beyond_trained_length": any(longest > length for length, longest in trained)} if trained else {})}
