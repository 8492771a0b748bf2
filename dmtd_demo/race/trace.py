"""The record of a race: its events, their statistics, and their form as JSON lines (schema 1)."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, Iterable, Sequence

TRACE_SCHEMA = 1
Record = dict[str, Any]
# the records that a race yields at once
Burst = list[Record]


def dumps(record: Record) -> str:
    """Write a record as one JSON line, without its line break."""
    return json.dumps(record, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def repetition_ratio(ids: Sequence[int | str]) -> float:
    """Return the share of 4-grams that occurred before in the same text; 0 under 4 tokens.

    docs/methods.md, section 5.
    """
    grams = [tuple(ids[i : i + 4]) for i in range(len(ids) - 3)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def agreement(ids: Sequence[int], reference: Sequence[int]) -> float:
    """Return the length of the common prefix divided by that of the longer text."""
    common = next(
        (i for i, (a, b) in enumerate(zip(ids, reference)) if a != b), min(len(ids), len(reference))
    )
    longer = max(len(ids), len(reference))
    return common / longer if longer else 1.0


def statistics(steps: Iterable[Record], layers: int) -> Record:
    """Compute the figures of one panel from its step records.

    The prefill and its token are left out where docs/design.md, "The trace", says so. layers: N of
    the backbone, 0 of a server elsewhere.
    """
    tokens: list[Record] = []
    first_ms: float | None = None
    last_ms = 0.0
    full_passes = layer_runs = 0
    for step in steps:
        last_ms = step["ms"]
        tokens += step["tokens"]
        if tokens and first_ms is None:
            first_ms = step["ms"]
        for p in step["passes"]:
            if p["kind"] != "prefill":
                full_passes += p["kind"] in ("full", "verify")
                layer_runs += sum(stop - start for start, stop, _ in p["runs"])
    decoded = max(len(tokens) - 1, 0)
    seconds = (last_ms - first_ms) / 1000 if first_ms is not None else 0.0
    spans = Counter(Counter(t["span"] for t in tokens if t["span"]).values())
    return {
        "tokens": len(tokens),
        "decode_seconds": round(seconds, 6),
        "tokens_per_second": round(decoded / seconds, 2) if decoded and seconds > 0 else None,
        "first_token_ms": first_ms,
        "full_passes": full_passes,
        "tokens_per_full_pass": round(decoded / full_passes, 4) if full_passes else None,
        "plt": round(layer_runs / (layers * decoded), 4) if decoded and layers else None,
        "spans": {str(length): count for length, count in sorted(spans.items())},
        "origins": dict(Counter(t["origin"] for t in tokens)),
        "repetition_ratio": round(
            repetition_ratio([t["text"] if t["id"] is None else t["id"] for t in tokens]), 4
        ),
        "text": "".join(t["text"] for t in tokens),
    }


def audit_agreement(tokens: Sequence[Record], agrees: Sequence[bool]) -> float | None:
    """Return the share of tokens that `ar` would have chosen, over those that no full pass made.

    None where there is no such token.
    """
    judged = [ok for token, ok in zip(tokens, agrees) if token["origin"] != "full"]
    return round(sum(judged) / len(judged), 4) if judged else None
