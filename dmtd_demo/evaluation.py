"""`eval`: held-out prompts through every panel; exact match and the figures of design.md, "Command line"."""
from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any, Sequence

from tqdm import tqdm

from dmtd_demo import trace
from dmtd_demo.chat import Message, encode_chat
from dmtd_demo.decoders import PanelSpec, make_decoder
from dmtd_demo.errors import UserError
from dmtd_demo.loading import Model
from dmtd_demo.machine import describe
from dmtd_demo.race import race_ids
from dmtd_demo.sampling import Sampling

Task = tuple[str, list[Message], str]   # family, conversation up to the user's last turn, reference answer


def held_out_tasks(seed: int, count: int) -> list[Task]:
    """Prompts of the small world's compositional families whose content was never trained on."""
    from dmtd_demo.training.world.mix import held_out_examples
    return [(family, [{"role": role, "content": text} for role, text in example.messages[:-1]], example.answer) for family, example in held_out_examples(seed, count)]


def read_tasks(path: str, count: int) -> list[Task]:
    """JSON lines with `answer`, and `prompt` or `messages`; `family` is optional."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--data needs a readable JSON-lines file; reading {path} gave: {error}") from None
    tasks: list[Task] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            messages = row["messages"] if "messages" in row else [{"role": "user", "content": row["prompt"]}]
            tasks.append((str(row.get("family", "all")), [{"role": str(m["role"]), "content": str(m["content"])} for m in messages], str(row["answer"])))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{path} line {number} needs to be a JSON object with answer, and prompt or messages; got {line[:80]!r}") from None
    if not tasks:
        raise UserError(f"--data needs at least one line; {path} has none")
    return tasks[:count]


def evaluate(model: Model, panels: Sequence[PanelSpec], tasks: Sequence[Task], sampling: Sampling, max_new_tokens: int, thinking: bool = False) -> dict[str, Any]:
    """One JSON object: the model, the machine and a row for each panel. `relative` is against `ar` on the same checkpoint."""
    reference = next((i for i, panel in enumerate(panels) if panel.decoder == "ar"), None)
    raced = list(panels) if reference is not None else [*panels, PanelSpec("ar")]
    tallies = [_Tally() for _ in raced]
    for family, conversation, answer in tqdm(tasks, desc="eval", unit="prompt", file=sys.stderr, disable=None):
        ids = encode_chat(model.tokenizer, conversation, thinking)
        for batch in race_ids(model, raced, [ids] * len(raced), sampling, max_new_tokens=max_new_tokens):
            for record in batch:
                tallies[record["panel"]].add(record, family, answer) if record["type"] in ("step", "audit", "summary") else None
    ar = tallies[-1 if reference is None else reference].exact_match()
    rows = []
    for panel, tally in zip(panels, tallies):
        decoder = make_decoder(panel)
        rows.append({"panel": str(panel), "decoder": panel.decoder, "options": asdict(decoder.resolve(decoder.options, model)),
                     **tally.row(model.layers), "relative": round(tally.exact_match() / ar, 4) if ar else None})
    return {"model": model.name, "machine": describe(model.device), "dtype": model.dtype, "quantization": model.quantization, "prompts": len(tasks), "rows": rows}


class _Tally:
    """One panel's sums over the prompts."""

    def __init__(self) -> None:
        self.right: dict[str, list[bool]] = defaultdict(list)
        self.repetition: list[float] = []
        self.spans: Counter[int] = Counter()
        self.full_passes = self.decoded = self.layer_runs = 0
        self.judged = self.agreed = 0
        self.stops: Counter[str] = Counter()
        self._tokens: list[trace.Record] = []

    def add(self, record: trace.Record, family: str, answer: str) -> None:
        if record["type"] == "step":
            self._tokens += record["tokens"]
            for p in record["passes"]:
                if p["kind"] != "prefill":
                    self.layer_runs += sum(stop - start for start, stop, _ in p["runs"])
        elif record["type"] == "audit":
            judged = [ok for token, ok in zip(self._tokens, record["agrees"]) if token["origin"] != "full"]
            self.judged += len(judged)
            self.agreed += sum(judged)
        else:
            if record["stop"] == "error":
                raise RuntimeError(record["message"])
            self.right[family].append(record["text"].strip() == answer.strip())
            self.repetition.append(record["repetition_ratio"])
            self.spans.update({int(length): count for length, count in record["spans"].items()})
            self.full_passes += record["full_passes"]
            self.decoded += record["tokens"] - 1
            self.stops[record["stop"]] += 1
            self._tokens = []

    def exact_match(self) -> float:
        results = [ok for family in self.right.values() for ok in family]
        return sum(results) / len(results)

    def row(self, layers: int) -> dict[str, Any]:
        spans = sum(self.spans.values())
        return {
            "exact_match": round(self.exact_match(), 4),
            "exact_match_by_family": {family: round(sum(ok) / len(ok), 4) for family, ok in sorted(self.right.items())},
            "repetition_ratio": round(sum(self.repetition) / len(self.repetition), 4),
            "audit_agreement": round(self.agreed / self.judged, 4) if self.judged else None,
            "mean_span": round(sum(length * count for length, count in self.spans.items()) / spans, 4) if spans else None,
            "tokens_per_full_pass": round(self.decoded / self.full_passes, 4) if self.full_passes else None,
            "plt": round(self.layer_runs / (layers * self.decoded), 4) if self.decoded else None,
            "stops": dict(self.stops)}
