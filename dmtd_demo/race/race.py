"""One prompt, N decoders, one stream of events: EOS, limits, text, timing and audit, measured alike for every decoder.

The panels share a device, so they take turns by a virtual clock: each clock counts only its own panel's steps, and the panel
furthest behind moves next. Every panel then moves as fast, relative to the others, as it would alone.
"""

from __future__ import annotations

import uuid
from dataclasses import asdict
from typing import Callable, Iterator, Sequence
from urllib.parse import urlsplit

from dmtd_demo.decoders import Decoder
from dmtd_demo.errors import UserError, is_out_of_memory
from dmtd_demo.machine import describe
from dmtd_demo.models.chat import Message, TokenText
from dmtd_demo.models.model import Model, use_threads
from dmtd_demo.race import trace
from dmtd_demo.race.audit import audit_ids
from dmtd_demo.race.local import Runner, turn, warm_up
from dmtd_demo.race.panels import PanelSpec, make_decoder
from dmtd_demo.race.remote import Arrivals
from dmtd_demo.race.remote_server import Remote
from dmtd_demo.race.request import check_prompt, check_system, encoded, one_each
from dmtd_demo.race.trace import Batch
from dmtd_demo.sampling import Sampler, Sampling

WAIT_SECONDS = 0.05  # for a server elsewhere, where no panel of ours has anything to do


def race(
    model: Model | Sequence[Model],
    panels: Sequence[PanelSpec],
    conversations: Sequence[Sequence[Message]],
    sampling: Sampling = Sampling(),
    *,
    max_new_tokens: int = 256,
    top: int = 0,
    ignore_eos: bool = False,
    thinking: bool = False,
    audit: bool = True,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[Batch]:
    """Race the panels, one conversation each, the user's turn last; on one model, or each on its own. Yields batches of records (docs/design.md, "The trace"), one per burst.

    Raises UserError before the first record for anything the user supplied. When `should_stop` turns true, or the generator is closed,
    the race ends within one pass.
    """
    models = one_each(model, panels)
    prompts = [
        encoded(model, panel, conversation, thinking)
        for model, panel, conversation in zip(models, panels, conversations)
    ]
    first = conversations[0][0]
    for model, ids in zip(models, prompts):
        if ids and first["role"] == "system" and len(ids) + max_new_tokens > model.context:
            check_system(model, first["content"], max_new_tokens)
    return race_ids(
        models,
        panels,
        prompts,
        sampling,
        max_new_tokens=max_new_tokens,
        top=top,
        ignore_eos=ignore_eos,
        audit=audit,
        should_stop=should_stop,
        prompt=conversations[0][-1]["content"],
        conversations=conversations,
        thinking=thinking,
    )


def race_ids(
    model: Model | Sequence[Model],
    panels: Sequence[PanelSpec],
    prompts: Sequence[Sequence[int]],
    sampling: Sampling = Sampling(),
    *,
    max_new_tokens: int = 256,
    top: int = 0,
    ignore_eos: bool = False,
    audit: bool = True,
    should_stop: Callable[[], bool] = lambda: False,
    prompt: str = "",
    conversations: Sequence[Sequence[Message]] = (),
    thinking: bool = False,
) -> Iterator[Batch]:
    """The same from token ids, one prompt per panel, used as they are. conversations: what remote panels are asked in place of them."""
    if not panels:
        raise UserError("a race needs at least one panel; got none")
    if len(prompts) != len(panels):
        raise ValueError(f"a race needs one prompt per panel; got {len(prompts)} for {len(panels)}")
    if not (isinstance(max_new_tokens, int) and max_new_tokens >= 1):
        raise UserError(
            f"max new tokens needs to be a whole number, 1 or more; got {max_new_tokens}"
        )
    if not (isinstance(top, int) and 0 <= top <= 100):
        raise UserError(f"top needs a whole number from 0 to 100; got {top}")
    models = one_each(model, panels)
    decoders = []
    for model, panel, ids in zip(models, panels, prompts):
        decoder = make_decoder(panel)
        if not isinstance(decoder, Remote):
            check_prompt(model, ids, max_new_tokens)
            decoder.options = decoder.resolve(decoder.options, model)
        elif not conversations:
            raise UserError("a remote panel needs a prompt in words; got token ids")
        decoders.append(decoder)
    return _run(
        models,
        panels,
        decoders,
        prompts,
        conversations,
        sampling,
        max_new_tokens,
        top,
        ignore_eos,
        thinking,
        audit,
        should_stop,
        prompt,
    )


def _run(
    models: list[Model],
    panels: Sequence[PanelSpec],
    decoders: list[Decoder],
    prompts: Sequence[Sequence[int]],
    conversations: Sequence[Sequence[Message]],
    sampling: Sampling,
    max_new_tokens: int,
    top: int,
    ignore_eos: bool,
    thinking: bool,
    audit: bool,
    should_stop: Callable[[], bool],
    prompt: str,
) -> Iterator[Batch]:
    texts = {model: TokenText(model.tokenizer) for model in models}
    yield [_header(models, panels, decoders, prompts, sampling, max_new_tokens, prompt)]
    local = [index for index, decoder in enumerate(decoders) if not isinstance(decoder, Remote)]
    for index in local:
        use_threads(models[index])
        warm_up(models[index], decoders[index], prompts[index])
    panes: list[Runner | Arrivals] = []
    for index, (model, decoder, ids) in enumerate(zip(models, decoders, prompts)):
        if isinstance(decoder, Remote):
            panes.append(
                Arrivals(
                    index,
                    decoder,
                    conversations[index],
                    sampling,
                    max_new_tokens,
                    top,
                    ignore_eos,
                    thinking,
                )
            )
        else:
            panes.append(
                Runner(
                    index,
                    decoder,
                    model,
                    ids,
                    decoder.steps(model, ids, Sampler(sampling, top, model.backbone.device)),
                    texts[model].stream(),
                    max_new_tokens,
                    frozenset() if ignore_eos else model.eos_ids,
                    texts[model],
                )
            )
    remote = [pane for pane in panes if isinstance(pane, Arrivals)]
    try:
        for pane in remote:
            pane.start()
        running = list(panes)
        while running:
            taking_turns = [pane for pane in running if isinstance(pane, Runner)]
            batch = (
                turn(min(taking_turns, key=lambda r: (r.clock, r.index)), should_stop)
                if taking_turns
                else []
            )
            for pane in remote:
                batch += pane.take(0.0 if taking_turns or batch else WAIT_SECONDS / len(remote))
            if should_stop():
                for pane in running:
                    pane.stop = pane.stop or "stopped"
            for pane in [pane for pane in running if pane.stop]:
                pane.close()
                batch.append(
                    {
                        "type": "end",
                        "panel": pane.index,
                        "stop": pane.stop,
                        **({"message": pane.message} if pane.message else {}),
                        **pane.statistics(),
                    }
                )
                running.remove(pane)
            if batch:
                yield batch
        for pane in panes:
            yield _verdict(pane, panes[0], audit and not should_stop())
    finally:
        for pane in panes:
            pane.close()


def _verdict(pane: Runner | Arrivals, first: Runner | Arrivals, audit: bool) -> Batch:
    """The audit and the summary of a finished panel."""
    records: Batch = []
    summary = {
        "type": "summary",
        "panel": pane.index,
        "stop": pane.stop,
        **({"message": pane.message} if pane.message else {}),
        **pane.statistics(),
    }
    if isinstance(pane, Arrivals):  # no model of ours to ask
        return [{**summary, "agreement": None, "audit_agreement": None, "extra_parameters": None}]
    tokens = pane.tokens
    ids = [t["id"] for t in tokens]
    agrees: list[bool] | None = None
    if audit and tokens and pane.stop != "error":
        use_threads(pane.model)
        try:
            agrees = audit_ids(pane.model, pane.prompt_ids, ids)
            records.append({"type": "audit", "panel": pane.index, "agrees": agrees})
        except Exception as error:  # the text stands; only its check is missing
            if not is_out_of_memory(error):
                raise
    comparable = isinstance(first, Runner) and _same_tokenizer(pane.model, first.model)
    records.append(
        {
            **summary,
            "agreement": round(trace.agreement(ids, [t["id"] for t in first.tokens]), 4)
            if comparable
            else None,
            "audit_agreement": trace.audit_agreement(tokens, agrees)
            if agrees is not None
            else None,
            "extra_parameters": pane.decoder.extra_parameters(pane.model),
        }
    )
    return records


def _same_tokenizer(one: Model, other: Model) -> bool:
    if one is other or one.tokenizer is other.tokenizer:
        return one.backbone.vocab_size == other.backbone.vocab_size
    return (
        one.tokenizer is not None
        and other.tokenizer is not None
        and one.tokenizer.get_vocab() == other.tokenizer.get_vocab()
    )


def _header(
    models: list[Model],
    panels: Sequence[PanelSpec],
    decoders: list[Decoder],
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    max_new_tokens: int,
    prompt: str,
) -> trace.Record:
    settings = asdict(sampling)
    use_threads(models[0])
    trained = [
        (model.trained_length, len(ids) + max_new_tokens)
        for model, ids in zip(models, prompts)
        if model.trained_length and ids
    ]
    entries = []
    for index, (model, panel, decoder, ids) in enumerate(zip(models, panels, decoders, prompts)):
        own = (
            {"model": decoder.options.name or urlsplit(decoder.server).netloc}
            if isinstance(decoder, Remote)
            else {
                "model": model.name,
                "dtype": model.dtype,
                "quantization": model.quantization,
                "layers": model.layers,
                "prompt_tokens": len(ids),
            }
        )
        entries.append(
            {
                "panel": index,
                "spec": str(panel),
                "decoder": panel.decoder,
                "label": decoder.label,
                "options": asdict(decoder.options),
                **own,
            }
        )
    return {
        "type": "header",
        "schema": trace.SCHEMA,
        "run": uuid.uuid4().hex,
        "seed": settings.pop("seed"),
        "sampling": settings,
        "prompt": prompt,
        "max_new_tokens": max_new_tokens,
        "machine": describe(models[0].device),
        "panels": entries,
        **(
            {
                "trained_length": min(length for length, _ in trained),
                "beyond_trained_length": any(longest > length for length, longest in trained),
            }
            if trained
            else {}
        ),
    }
