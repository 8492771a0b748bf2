"""`eval`: held-out prompts through every panel.

Exact match, and the other figures of docs/design.md, "Command line".
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from dataclasses import asdict
from typing import Any, Sequence

import numpy as np
import torch
from tqdm import tqdm

from dmtd_demo.errors import UserError
from dmtd_demo.machine import describe
from dmtd_demo.models.chat import Message, encode_chat
from dmtd_demo.models.model import Model
from dmtd_demo.race import trace
from dmtd_demo.race.audit import logits_before
from dmtd_demo.race.panels import PanelSpec, make_decoder
from dmtd_demo.race.race import race_ids
from dmtd_demo.race.settings import RaceSettings
from dmtd_demo.text_files import lines_of, parsed, read_text
from dmtd_demo.training.conversations import LeftOut, messages_in

RESAMPLES = 1000
# family, conversation up to the user's last turn, reference answer
Task = tuple[str, list[Message], str]


def held_out_tasks(seed: int, count: int) -> list[Task]:
    """Draw prompts of the small world's compositional families that were never trained on."""
    from dmtd_demo.training.world.mix import held_out_examples

    return [
        (
            family,
            [{"role": role, "content": text} for role, text in example.messages[:-1]],
            example.answer,
        )
        for family, example in held_out_examples(seed, count)
    ]


def read_tasks(path: str, count: int) -> list[Task]:
    """Read JSON lines with `answer`, and `prompt` or `messages`; `family` is optional.

    Without `answer` it is the conversation's last one. Raises UserError.
    """
    try:
        lines = list(lines_of(read_text(path)))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"--data needs a readable JSON-lines file; reading {path} gave: {error}"
        ) from None
    tasks: list[Task] = []
    for number, line in lines:
        try:
            row = parsed(line)
            turns = (
                row["messages"]
                if "messages" in row
                else [{"role": "user", "content": row["prompt"]}]
            )
            messages = messages_in(turns)
            if "answer" not in row and messages[-1]["role"] == "assistant":
                row["answer"] = messages.pop()["content"]
            if isinstance(row["answer"], bool) or not isinstance(row["answer"], (str, int, float)):
                raise TypeError
            tasks.append((str(row.get("family", "all")), messages, str(row["answer"])))
        except LeftOut as reason:
            # nothing of an evaluation is left out unseen
            raise UserError(
                f"{path} line {number} cannot be asked: a conversation {reason}"
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(
                f"{path} line {number} needs to be a JSON object with answer, and prompt or "
                f"messages; got {line[:80]!r}"
            ) from None
    if not tasks:
        raise UserError(f"--data needs at least one line; {path} has none")
    return tasks[:count]


@torch.inference_mode()
def nats(model: Model, prompt_ids: Sequence[int], ids: Sequence[int]) -> float:
    """Return the negative log-probability of a text under the model's own `ar`, all its tokens."""
    return -sum(
        logits.float().log_softmax(-1).gather(-1, wanted[:, None]).sum().item()
        for logits, wanted in logits_before(model, prompt_ids, ids)
    )


def evaluate(
    model: Model,
    panels: Sequence[PanelSpec],
    tasks: Sequence[Task],
    settings: RaceSettings,
) -> dict[str, Any]:
    """Run every panel on every task; return the model, the machine and a row for each panel.

    `relative` and `over_ar` are against `ar` on the same checkpoint and prompts. `intervals`: for
    each figure the 2.5th and 97.5th percentile of RESAMPLES bootstrap samples of the prompts, those
    of `ar` drawn along. `nats`: a token's negative log-probability under `ar` itself, in the mean.
    `spans`: how many steps emitted so many tokens; `accepted`: in which share of the steps as many
    or more followed the first; `by_family`: figures of each kind of request; `same_as_ar`: how many
    texts are those of `ar`.
    """
    reference = next((i for i, panel in enumerate(panels) if panel.decoder == "ar"), None)
    raced = list(panels) if reference is not None else [*panels, PanelSpec("ar")]
    results = _race_all(model, raced, tasks, settings)
    base = results[-1 if reference is None else reference]
    samples = [
        np.arange(len(tasks)),
        *np.random.default_rng(0).integers(0, len(tasks), (RESAMPLES, len(tasks))),
    ]
    rows = []
    for panel, result in zip(panels, results):
        decoder = make_decoder(panel)
        resolved = decoder.resolve(decoder.options, model)
        figures, intervals = _with_intervals(result.table(), base.table(), samples, model.layers)
        rows.append(
            {
                "panel": str(panel),
                "decoder": panel.decoder,
                "options": asdict(resolved),
                **({"takes_nothing": True} if decoder.takes_nothing(resolved, model) else {}),
                **figures,
                "intervals": intervals,
                "exact_match_by_family": result.by_family(),
                "stops": dict(result.stops),
                "spans": {str(n): count for n, count in sorted(result.spans.items())},
                "accepted": result.accepted(),
                "by_family": result.figures_by_family(base.table(), model.layers),
                "same_as_ar": sum(a == b for a, b in zip(result.texts, base.texts)),
            }
        )
    return {
        "model": model.name,
        "machine": describe(model.device),
        "dtype": model.dtype,
        "quantization": model.quantization,
        "prompts": len(tasks),
        "rows": rows,
    }


def _race_all(
    model: Model, panels: Sequence[PanelSpec], tasks: Sequence[Task], settings: RaceSettings
) -> list[_Results]:
    """Race the panels on every task, and count what each wrote."""
    results = [_Results() for _ in panels]
    for family, conversation, answer in tqdm(
        tasks, desc="eval", unit="prompt", file=sys.stderr, disable=None
    ):
        ids = encode_chat(model.tokenizer, conversation, settings.thinking)
        known: dict[tuple[int, ...], float] = {}
        for batch in race_ids(model, panels, [ids] * len(panels), settings):
            for record in batch:
                if record["type"] in ("step", "audit", "summary"):
                    results[record["panel"]].add(record, family, answer)
        for result in results:
            if result.ids not in known:
                known[result.ids] = nats(model, ids, result.ids) if result.ids else 0.0
            result.close(known[result.ids])
    return results


def _with_intervals(
    table: np.ndarray, ar: np.ndarray, samples: Sequence[np.ndarray], layers: int
) -> tuple[dict[str, float | None], dict[str, list[float] | None]]:
    """Compute the figures of a row, and the interval of each over the bootstrap samples.

    table, ar: [prompts, COUNTED]. samples: indices of prompts, all of them first.
    """
    figures, *resampled = [_figures(table[sample], ar[sample], layers) for sample in samples]
    intervals = {}
    for name, value in figures.items():
        drawn = [x for f in resampled if (x := f[name]) is not None]
        intervals[name] = (
            [round(float(bound), 4) for bound in np.percentile(drawn, (2.5, 97.5))]
            if value is not None and drawn
            else None
        )
    return figures, intervals


COUNTED = (
    "right",
    "repetition",
    "judged",
    "agreed",
    "spanned",
    "spans",
    "full_passes",
    "decoded",
    "layer_runs",
    "seconds",
    "tokens",
    "nats",
)
# of what is told for each kind of request
OF_FAMILY = ("audit_agreement", "tokens_per_full_pass", "nats", "over_ar")


def _figures(table: np.ndarray, ar: np.ndarray, layers: int) -> dict[str, float | None]:
    """Compute the figures of a row from sums over its prompts. table, ar: [prompts, COUNTED]."""
    total = dict(zip(COUNTED, table.sum(0)))
    base = dict(zip(COUNTED, ar.sum(0)))

    def ratio(a: float, b: float) -> float | None:
        return round(float(a / b), 4) if b else None

    speed, ar_speed = (
        ratio(total["decoded"], total["seconds"]),
        ratio(base["decoded"], base["seconds"]),
    )
    return {
        "exact_match": ratio(total["right"], len(table)),
        "relative": ratio(total["right"], base["right"]),
        "repetition_ratio": ratio(total["repetition"], len(table)),
        "audit_agreement": ratio(total["agreed"], total["judged"]),
        "nats": ratio(total["nats"], total["tokens"]),
        "mean_span": ratio(total["spanned"], total["spans"]),
        "tokens_per_full_pass": ratio(total["decoded"], total["full_passes"]),
        "plt": ratio(total["layer_runs"], layers * total["decoded"]),
        "tokens_per_second": speed,
        "over_ar": ratio(speed, ar_speed) if speed and ar_speed else None,
    }


class _Results:
    """The counts of one panel, a line of COUNTED for each prompt."""

    def __init__(self) -> None:
        self.lines: list[tuple[float, ...]] = []
        self.families: list[str] = []
        self.stops: Counter[str] = Counter()
        self.spans: Counter[int] = Counter()
        self.texts: list[str] = []
        self._tokens: list[trace.Record] = []
        self._layer_runs = self._judged = self._agreed = 0
        # the text that was added last, until it is closed
        self.ids: tuple[int, ...] = ()
        self._line: tuple[float, ...] = ()

    def close(self, nats: float) -> None:
        """Count the text that was added last, whose tokens have so many nats in all."""
        self.lines.append((*self._line, len(self.ids), nats))

    def accepted(self) -> list[float]:
        """Return the shares of steps whose first token 1, 2 … others followed; no prefill."""
        steps, deepest = self.spans.total(), max(self.spans, default=1)
        return [
            round(sum(n for length, n in self.spans.items() if length > depth) / steps, 4)
            for depth in range(1, deepest)
        ]

    def figures_by_family(self, ar: np.ndarray, layers: int) -> dict[str, Any]:
        """Return the figures of each kind of request by itself."""
        found = {}
        for family in sorted(set(self.families)):
            own = [i for i, name in enumerate(self.families) if name == family]
            figures = _figures(self.table()[own], ar[own], layers)
            found[family] = {
                "prompts": len(own),
                **{name: figures[name] for name in OF_FAMILY},
            }
        return found

    def add(self, record: trace.Record, family: str, answer: str) -> None:
        if record["type"] == "step":
            self._tokens += record["tokens"]
            self._layer_runs += sum(
                stop - start
                for p in record["passes"]
                if p["kind"] != "prefill"
                for start, stop, _ in p["runs"]
            )
        elif record["type"] == "audit":
            judged = [
                ok for token, ok in zip(self._tokens, record["agrees"]) if token["origin"] != "full"
            ]
            self._judged, self._agreed = len(judged), sum(judged)
        else:
            if record["stop"] == "error":
                raise RuntimeError(record["message"])
            spans = {int(length): count for length, count in record["spans"].items()}
            self.ids = tuple(token["id"] for token in self._tokens)
            self._line = (
                record["text"].strip() == answer.strip(),
                record["repetition_ratio"],
                self._judged,
                self._agreed,
                sum(length * count for length, count in spans.items()),
                sum(spans.values()),
                record["full_passes"],
                record["tokens"] - 1,
                self._layer_runs,
                record["decode_seconds"],
            )
            self.families.append(family)
            self.stops[record["stop"]] += 1
            self.spans.update(spans)
            self.texts.append(record["text"])
            self._tokens, self._layer_runs, self._judged, self._agreed = [], 0, 0, 0

    def table(self) -> np.ndarray:
        return np.array(self.lines, dtype=np.float64)

    def by_family(self) -> dict[str, float]:
        right: dict[str, list[float]] = defaultdict(list)
        for family, line in zip(self.families, self.lines):
            right[family].append(line[0])
        return {family: round(sum(ok) / len(ok), 4) for family, ok in sorted(right.items())}
