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
from typing import Any, Callable, Mapping, Sequence

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
from dmtd_demo.race.request import check_length
from dmtd_demo.race.settings import RaceSettings

# tokens that transformers' prompt lookup drafts
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
    # before a prompt of that length is made
    check_length(model, context, new)
    prompt = bench_prompt(model, context)
    # generate would run a `sum` checkpoint as another function
    can_generate = model.split is None or model.split.head_input == "replace"
    runs = _Runs(model, panels, prompt, new, _ways(model, assistant) if can_generate else {})
    runs.measure(rounds)
    bandwidth = memory_bandwidth(model.backbone.device)
    return {
        "model": model.name,
        "machine": describe(model.device),
        "dtype": model.dtype,
        "quantization": model.quantization,
        "context": context,
        "new": new,
        "rounds": rounds,
        "generate": runs.generate(),
        "memory_bandwidth": round(bandwidth),
        "pass_ms": runs.costs.measured(),
        "rows": runs.rows(bandwidth),
    }


class _Runs:
    """The runs of one benchmark by name, and what they measured.

    They are `generate` in its ways, and each panel; `ar` is run where no panel is one. ways: the
    settings of `generate` by the name of each.
    """

    def __init__(
        self,
        model: Model,
        panels: Sequence[PanelSpec],
        prompt: list[int],
        new: int,
        ways: Mapping[str, dict[str, Any]],
    ) -> None:
        self.ways = ways
        self.panels = {f"panel {i}": panel for i, panel in enumerate(panels)}
        self.timed_panels = dict(self.panels)
        if not any(panel.decoder == "ar" for panel in panels):
            self.timed_panels["ar"] = PanelSpec("ar")
        # without our fast paths
        as_loaded = _without_end(plain(model.backbone.module))
        self.runs: dict[str, Callable[[], Timed]] = {
            f"generate {way}": partial(_generate, as_loaded, prompt, new, **settings)
            for way, settings in ways.items()
        }
        self.options: dict[str, Any] = {}
        self.idle: dict[str, bool] = {}
        for name, panel in self.timed_panels.items():
            decoder = make_decoder(panel)
            self.options[name] = decoder.resolve(decoder.options, model)
            self.idle[name] = decoder.takes_nothing(self.options[name], model)
            self.runs[name] = partial(timed_panel, model, panel, prompt, new)
        self.speeds: dict[str, list[float]] = {name: [] for name in self.runs}
        self.last: dict[str, Timed] = {}
        self.costs = PassCosts(model, prompt, new)

    def measure(self, rounds: int) -> None:
        """Run each once a round, in alternation, after a round that warms up."""
        for round_ in tqdm(
            range(rounds + 1), desc="bench", unit="round", file=sys.stderr, disable=None
        ):
            for name, run in self.runs.items():
                gc.collect()
                self.last[name] = run()
                if round_:
                    self.speeds[name].append(self.last[name].tokens_per_second)
                    panel = self.timed_panels.get(name)
                    if panel is not None:
                        spans = self.last[name].spans
                        self.costs.walk(panel.decoder, self.options[name], spans)

    def median(self, name: str) -> float:
        """Return the median tokens per second of a run."""
        return statistics.median(self.speeds[name])

    @property
    def best(self) -> str | None:
        """The faster of `generate`'s two caches; None where it cannot run."""
        caches = [name for name in ("generate dynamic", "generate static") if name in self.runs]
        return max(caches, key=self.median, default=None)

    def rows(self, bandwidth: float) -> list[dict[str, Any]]:
        """Return the figures of every panel that was asked for. bandwidth: bytes a second."""
        best = self.best
        ar = self.median(next(n for n, p in self.timed_panels.items() if p.decoder == "ar"))
        rows = []
        for name, panel in self.panels.items():
            speed, last = self.median(name), self.last[name]
            over_ar = speed / ar
            limit = self.costs.limit(panel.decoder, self.options[name], last.spans)
            over = {
                f"over_{way}": round(speed / self.median(f"generate {way}"), 3)
                for way in DRAFTING
                if way in self.ways
            }
            rows.append(
                {
                    "panel": str(panel),
                    "decoder": panel.decoder,
                    "options": asdict(self.options[name]),
                    **({"takes_nothing": True} if self.idle[name] else {}),
                    "tokens_per_second": round(speed, 2),
                    "spread": self._spread(name),
                    "over_generate": round(speed / self.median(best), 3) if best else None,
                    **over,
                    "over_ar": round(over_ar, 3),
                    "limit": round(limit, 3) if limit else None,
                    "share_of_limit": round(over_ar / limit, 3) if limit else None,
                    "bytes_per_token": round(last.bytes_per_token),
                    "share_of_memory": round(speed * last.bytes_per_token / bandwidth, 3),
                    "same_tokens_as_generate": last.ids == self.last[best].ids if best else None,
                }
            )
        return rows

    def generate(self) -> dict[str, Any] | None:
        """Return the figures of `generate`; None where it cannot run."""
        best = self.best
        if best is None:
            return None
        return {
            "cache": best.split()[1],
            "tokens_per_second": round(self.median(best), 2),
            "spread": self._spread(best),
            "all": {way: round(self.median(f"generate {way}"), 2) for way in self.ways},
        }

    def _spread(self, name: str) -> list[float]:
        return [round(min(self.speeds[name]), 2), round(max(self.speeds[name]), 2)]


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


class Timed(BaseStreamer):
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
        if len(self._times) < 2:
            raise UserError(
                "bench needs more --new tokens than may come at once; all "
                f"{len(self.ids)} of them did, drafted and checked"
            )
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
) -> Timed:
    timed = Timed()
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


def timed_panel(model: Model, panel: PanelSpec, prompt: list[int], new: int) -> Timed:
    """Run one panel for `new` tokens, past any EOS, and return its ids and times."""
    timed, steps = Timed(), []
    for batch in race_ids(
        model, [panel], [prompt], RaceSettings(max_new_tokens=new, ignore_eos=True, audit=False)
    ):
        for record in batch:
            if record["type"] == "step":
                # not the prefill
                if timed.ids:
                    steps.append(record)
                timed.ids += [token["id"] for token in record["tokens"]]
            elif record["type"] == "summary":
                if record["stop"] == "error":
                    raise RuntimeError(record["message"])
                timed.spans, timed._speed = record["spans"], record["tokens_per_second"]
                read = bytes_read(model.backbone, steps)
                timed.bytes_per_token = read / (record["tokens"] - 1)
    return timed
