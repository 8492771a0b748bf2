"""`bench`: tokens per second of each panel against `transformers.generate`.

Both run on the same weights, in one run, in alternation; the figures are medians.
"""

from __future__ import annotations

import gc
import random
import statistics
import sys
import time
from dataclasses import asdict
from functools import partial
from typing import Any, Callable, Sequence

import torch
from tqdm import tqdm
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.streamers import BaseStreamer
from transformers.utils import logging as transformers_logging

from dmtd_demo.backbone.onednn import plain
from dmtd_demo.backbone.split import Split
from dmtd_demo.errors import UserError
from dmtd_demo.machine import describe
from dmtd_demo.measure.limits import PassCosts, bytes_read, memory_bandwidth
from dmtd_demo.models.chat import encode_chat
from dmtd_demo.models.model import Model
from dmtd_demo.race.panels import PanelSpec, make_decoder
from dmtd_demo.race.race import race_ids
from dmtd_demo.race.request import check_prompt
from dmtd_demo.race.settings import RaceSettings

# tokens, by transformers' prompt lookup
DRAFTED = 4
# the ways of `generate` that draft tokens
DRAFTING = ("prompt_lookup", "early_exit", "assistant")
QUESTION = "What is a language model?"


def bench(
    model: Model,
    panels: Sequence[PanelSpec],
    context: int,
    new: int,
    rounds: int = 5,
    assistant: Model | None = None,
) -> dict[str, Any]:
    """Time greedy decoding, batch 1, `new` tokens after a prompt of `context`, past any EOS.

    Every round runs `generate` over the weights as transformers loads them, and each panel once.
    `generate` runs with a dynamic and a static cache, with its own prompt lookup, with the layers
    before the late ones as its own assistant (early exit), and with `assistant`, a model with the
    same vocabulary, where one is given. Raises UserError where its vocabulary is another.

    A row's `bytes_per_token` counts the backbone's weights that its passes read;
    `share_of_memory` is how much of `memory_bandwidth` (bytes/s) that takes.
    """
    prompt = bench_prompt(model, context)
    check_prompt(model, prompt, new)
    # generate would run a `sum` checkpoint as another function
    can_generate = model.split is None or model.split.head_input == "replace"
    # without our fast paths
    as_loaded = _without_end(plain(model.backbone.module))
    ways = _ways(model, assistant) if can_generate else {}
    runs: dict[str, Callable[[], _Timed]] = {
        f"generate {way}": partial(_generate, as_loaded, prompt, new, **settings)
        for way, settings in ways.items()
    }
    names = [f"panel {i}" for i in range(len(panels))]
    if not any(panel.decoder == "ar" for panel in panels):
        names.append("ar")
    decoders = {name: make_decoder(panel) for name, panel in zip(names, [*panels, PanelSpec("ar")])}
    options = {name: decoder.resolve(decoder.options, model) for name, decoder in decoders.items()}
    for name, panel in zip(names, [*panels, PanelSpec("ar")]):
        runs[name] = partial(_timed_panel, model, panel, prompt, new)
    speeds: dict[str, list[float]] = {name: [] for name in runs}
    last: dict[str, _Timed] = {}
    costs = PassCosts(model, prompt, new)
    for round_ in tqdm(
        range(rounds + 1), desc="bench", unit="round", file=sys.stderr, disable=None
    ):
        for name, run in runs.items():
            gc.collect()
            last[name] = run()
            # the first round warms up
            if round_:
                speeds[name].append(last[name].tokens_per_second)
                if name in decoders:
                    costs.walk(decoders[name].name, options[name], last[name].spans)
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    best = max(
        (name for name in medians if name in ("generate dynamic", "generate static")),
        key=medians.__getitem__,
        default=None,
    )
    ar_name = next(
        name for name, panel in zip(names, [*panels, PanelSpec("ar")]) if panel.decoder == "ar"
    )
    bandwidth = memory_bandwidth(model.backbone.device)
    rows = []
    for name, panel in zip(names, panels):
        over_ar = medians[name] / medians[ar_name]
        limit = costs.limit(panel.decoder, options[name], last[name].spans)
        rows.append(
            {
                "panel": str(panel),
                "decoder": panel.decoder,
                "options": asdict(options[name]),
                "tokens_per_second": round(medians[name], 2),
                "spread": [round(min(speeds[name]), 2), round(max(speeds[name]), 2)],
                "over_generate": round(medians[name] / medians[best], 3) if best else None,
                **{
                    f"over_{way}": round(medians[name] / medians[f"generate {way}"], 3)
                    for way in DRAFTING
                    if way in ways
                },
                "over_ar": round(over_ar, 3),
                "limit": round(limit, 3) if limit else None,
                "share_of_limit": round(over_ar / limit, 3) if limit else None,
                "bytes_per_token": round(last[name].bytes_per_token),
                "share_of_memory": round(medians[name] * last[name].bytes_per_token / bandwidth, 3),
                "same_tokens_as_generate": last[name].ids == last[best].ids if best else None,
            }
        )
    generate = (
        {
            "cache": best.split()[1],
            "tokens_per_second": round(medians[best], 2),
            "spread": [round(min(speeds[best]), 2), round(max(speeds[best]), 2)],
            "all": {
                name.split()[1]: round(medians[name], 2)
                for name in medians
                if name.startswith("generate")
            },
        }
        if best
        else None
    )
    return {
        "model": model.name,
        "machine": describe(model.device),
        "dtype": model.dtype,
        "quantization": model.quantization,
        "context": context,
        "new": new,
        "rounds": rounds,
        "generate": generate,
        "memory_bandwidth": round(bandwidth),
        "pass_ms": costs.measured(),
        "rows": rows,
    }


def bench_prompt(model: Model, context: int) -> list[int]:
    """Build a prompt of exactly `context` ids.

    A question after as much earlier text as fits; random ids where there is no tokenizer.
    """
    if model.tokenizer is None or not model.tokenizer.chat_template:
        rng = random.Random(0)
        return [rng.randrange(model.backbone.vocab_size) for _ in range(context)]
    messages = [{"role": "user", "content": QUESTION}]
    ids = encode_chat(model.tokenizer, messages)
    filler = model.tokenizer(
        "Ada found a red kite in the garden and took it home. ", add_special_tokens=False
    ).input_ids
    short = max(context - len(ids), 0)
    return ((filler * (short // len(filler) + 1))[:short] + ids)[-context:]


class _Timed(BaseStreamer):
    """Ids as they arrive.

    The clock runs from the first to the last, so the prefill is left out, as in traces.
    """

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.spans: dict[str, int] = {}
        self._prompt = True
        self._times: list[float] = []
        # tokens that came with the first of them
        self._first = 0
        self._speed: float | None = None
        self.bytes_per_token = 0.0

    def put(self, value: torch.Tensor) -> None:
        if self._prompt:
            self._prompt = False
            return
        self.ids += value.flatten().tolist()
        self._times.append(time.perf_counter())
        self._first = self._first or len(self.ids)

    def end(self) -> None:
        self._speed = (len(self.ids) - self._first) / (self._times[-1] - self._times[0])

    @property
    def tokens_per_second(self) -> float:
        assert self._speed is not None
        return self._speed


def _ways(model: Model, assistant: Model | None) -> dict[str, dict[str, Any]]:
    """Return the settings of `generate` for each of its ways."""
    if model.backbone.hybrid:
        return {"dynamic": {}}  # it drafts for no model with recurrent states
    ways: dict[str, dict[str, Any]] = {
        "dynamic": {},
        "static": {"cache_implementation": "static"},
        "prompt_lookup": {"prompt_lookup_num_tokens": DRAFTED},
    }
    # with random weights no draft of it would ever stand, and each costs most of a pass
    if model.layers > 1 and model.folder is not None:
        ways["early_exit"] = {
            "assistant_early_exit": (model.split or Split.default(model.layers)).late_start
        }
    if assistant is not None:
        if assistant.backbone.vocab_size != model.backbone.vocab_size:
            raise UserError(
                "an assistant needs the model's own vocabulary of "
                f"{model.backbone.vocab_size} tokens; {assistant.name} has "
                f"{assistant.backbone.vocab_size}"
            )
        ways["assistant"] = {"assistant_model": _without_end(plain(assistant.backbone.module))}
    return ways


def _without_end(twin: PreTrainedModel) -> PreTrainedModel:
    """Let `generate` go on past EOS, on a model of `plain`.

    The settings that a call leaves open, as None does, come from the model's.
    """
    twin.generation_config = GenerationConfig()
    return twin


@torch.inference_mode()
def _generate(
    # transformers adds `generate` to the classes of causal models, not to PreTrainedModel
    module: Any,
    prompt: list[int],
    new: int,
    assistant_model: PreTrainedModel | None = None,
    **settings: Any,
) -> _Timed:
    timed = _Timed()
    config = GenerationConfig(
        do_sample=False,
        repetition_penalty=1.0,
        max_new_tokens=new,
        eos_token_id=None,
        pad_token_id=0,
        **settings,
    )
    ids = torch.tensor([prompt], device=module.device)
    # transformers warns of its own steps when it assists
    transformers_logging.set_verbosity_error()
    module.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        generation_config=config,
        streamer=timed,
        **({"assistant_model": assistant_model} if assistant_model is not None else {}),
    )
    if len(timed.ids) != new:
        raise RuntimeError(f"generate was asked for {new} tokens and made {len(timed.ids)}")
    return timed


def _timed_panel(model: Model, panel: PanelSpec, prompt: list[int], new: int) -> _Timed:
    timed, read = _Timed(), 0
    for batch in race_ids(
        model, [panel], [prompt], RaceSettings(max_new_tokens=new, ignore_eos=True, audit=False)
    ):
        for record in batch:
            if record["type"] == "step":
                # not the prefill
                if timed.ids:
                    read += bytes_read(model.backbone, record)
                timed.ids += [token["id"] for token in record["tokens"]]
            elif record["type"] == "summary":
                if record["stop"] == "error":
                    raise RuntimeError(record["message"])
                timed.spans, timed._speed = record["spans"], record["tokens_per_second"]
                timed.bytes_per_token = read / (record["tokens"] - 1)
    return timed
