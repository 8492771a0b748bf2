"""The default threshold of each add-on, found on prompts of the training contents.

docs/methods.md, section 3.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, Callable, Sequence

import torch
from torch import Tensor, nn
from tqdm import tqdm

from dmtd_demo.backbone.qwen import Backbone
from dmtd_demo.backbone.split import Split
from dmtd_demo.decoders import DECODERS
from dmtd_demo.decoders.clp import accepted_length
from dmtd_demo.decoders.mtp_gate import open_gates
from dmtd_demo.errors import TrainingError
from dmtd_demo.models.addons import LateHeads, MTPHeads
from dmtd_demo.models.model import Model
from dmtd_demo.progress import Progress, no_progress
from dmtd_demo.sampling import Sampler
from dmtd_demo.training.clp import OwnHead
from dmtd_demo.training.data import Row, encode
from dmtd_demo.training.masking import frozen_hidden
from dmtd_demo.training.world.mix import COMPOSITIONAL, draw

PROMPTS = 2000
DECODED_PROMPTS = 228
THRESHOLDS = tuple(i / 100 for i in range(50, 100)) + (
    0.992,
    0.995,
    0.997,
    0.999,
    0.9995,
    0.9998,
    0.9999,
)
COARSE = (0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 0.9995, 0.9999)
# shares of the tokens taken along that have to be the model's own choices, and on how many tokens
# such a share is read at least
WANTED = {"clp": 0.97, "gate": 0.97, "adaptive": 0.9, "mixed": 0.9}
ENOUGH = 20
KEPT_EXACT_MATCH = 0.997
KEPT_AUDIT = 0.993
FIXED = (2, 3, 4, 6)  # the fixed cycles: `dmtd-adaptive` is to be as right as the best of them
READABLE = 0.95  # of `ar`'s exact match, for `mixed`


class NothingExact(TrainingError):
    """`ar` answers none of the prompts exactly, so no threshold can be read off them."""


def validation_rows(tokenizer: Any, count: int) -> list[Row]:
    """Draw `count` prompts with their answers, of the compositional families in turn.

    None of them is held out.
    """
    rng = random.Random("validation")
    return [
        encode(tokenizer, draw(COMPOSITIONAL[i % len(COMPOSITIONAL)], rng, wanted=False))
        for i in range(count)
    ]


@dataclass(frozen=True)
class Acceptance:
    """How a trained add-on says how many MTP tokens to accept.

    read: hidden states [n, hidden] to probabilities, [n, any]. accept(probabilities of one
    position, k, threshold): how many tokens, 0..k.
    """

    read: Callable[[Tensor], Tensor]
    accept: Callable[[Sequence[float], int, float], int]

    @classmethod
    def of(cls, name: str, module: nn.Module) -> Acceptance:
        """Return what the decoder of an add-on does with this module. name: of its recipe."""
        if isinstance(module, LateHeads):
            module = module.lengths
        if name != "gate":
            return cls(
                lambda h: module(h).softmax(-1),
                lambda p, k, threshold: accepted_length(p, k, threshold, "cumulative"),
            )
        return cls(lambda h: module(h).sigmoid(), open_gates)


@torch.no_grad()
def spans(
    backbone: Backbone,
    split: Split,
    heads: MTPHeads | OwnHead,
    rows: Sequence[Row],
    acceptance: Acceptance,
    tell: Progress = no_progress,
) -> dict[str, Any]:
    """Find the most generous threshold of `clp` or `gate` that keeps exact match and audit.

    Along `ar`'s own text the hidden states are the same, whatever the threshold, up to the first
    wrong token: so one pass over each prompt that `ar` answers exactly tells, for every threshold,
    whether that text would have been left, and which tokens would have been emitted.

    rows: prompts with their answers, none of them trained on. Returns facts for the add-on's card.
    Raises NothingExact where `ar` answers none of them exactly.
    """
    kept = {t: 0 for t in THRESHOLDS}
    accepted = {t: 0 for t in THRESHOLDS}
    wrong = {t: 0 for t in THRESHOLDS}
    lengths = {t: [0, 0] for t in THRESHOLDS}
    right = 0
    for number, row in enumerate(tqdm(rows, desc="calibrate", unit="prompt")):
        tell("Choosing the threshold", number, len(rows))
        ids = torch.tensor([row.ids], device=backbone.device)
        h = frozen_hidden(backbone, split, ids, exact=True)
        if not bool(
            (backbone.logits(h[0, row.answer - 1 : -1]).argmax(-1) == ids[0, row.answer :]).all()
        ):
            continue
        right += 1
        # [n, k], read at the generated positions
        if isinstance(heads, OwnHead):
            states = h[0].to(backbone.dtype)
            guesses = heads.head.guesses(states, ids[0], heads.k)[row.answer :].tolist()
        else:
            guesses = backbone.logits(heads(h[0, row.answer : -1])).argmax(-1).tolist()
        probabilities = acceptance.read(h[0, row.answer : -1]).tolist()
        text = row.ids[row.answer :]
        for threshold in THRESHOLDS:
            emitted, failed = follow(
                text,
                guesses,
                [acceptance.accept(p, heads.k, threshold) for p in probabilities],
                lengths[threshold],
            )
            accepted[threshold] += emitted
            wrong[threshold] += failed
            kept[threshold] += not failed
    if not right:
        raise NothingExact(
            f"calibrating needs prompts that ar answers exactly; of {len(rows)} there were none: "
            "the backbone is not trained enough, the threshold stays at its most careful"
        )
    results = {
        t: {
            "exact_match_kept": kept[t] / right,
            "audit": 1 - wrong[t] / max(accepted[t], 1),
            "mean_span": lengths[t][0] / max(lengths[t][1], 1),
        }
        for t in THRESHOLDS
    }
    good = [
        t
        for t, r in results.items()
        if r["exact_match_kept"] >= KEPT_EXACT_MATCH and r["audit"] >= KEPT_AUDIT
    ]
    chosen = min(good, default=max(THRESHOLDS))
    return {
        "threshold": chosen,
        "validation": {
            "prompts": len(rows),
            "answered_exactly_by_ar": right,
            **{k: round(v, 4) for k, v in results[chosen].items()},
        },
    }


def by_share(
    probabilities: Sequence[Sequence[float]],
    right: Sequence[int],
    k: int,
    accept: Callable[[Sequence[float], int, float], int],
    wanted: float,
) -> dict[str, Any]:
    """Find the most generous threshold at which the wanted share of the taken tokens is right.

    For language models, whose long answers no unverified decoder keeps whole. probabilities: at
    positions of held-out texts; right: how many of the tokens after each are `ar`'s own. Where no
    threshold shows it on ENOUGH tokens, the threshold is 1: nothing is taken along. Returns
    facts for the add-on's card; by_threshold: [tokens per full pass, share right].
    """
    table, good_enough = {}, [1.0]
    for threshold in (0.3, 0.4, *THRESHOLDS, 1.0):
        taken = [accept(p, k, threshold) for p in probabilities]
        good = sum(map(min, taken, right))
        share = good / sum(taken) if sum(taken) else 1.0
        table[threshold] = [round(1 + sum(taken) / max(len(taken), 1), 4), round(share, 4)]
        if share >= wanted and sum(taken) >= ENOUGH:
            good_enough.append(threshold)
    best = min(good_enough)
    shown = {str(t): table[t] for t in (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99)}
    return {
        "threshold": best,
        "validation": {
            "positions": len(right),
            "wanted": wanted,
            "tokens_per_full_pass": table[best][0],
            "agreement": table[best][1],
            "by_threshold": shown,
        },
    }


@torch.no_grad()
def on_held_out(name: str, module: nn.Module, h: Tensor, right: Tensor, k: int) -> dict[str, Any]:
    """Find an add-on's threshold `by_share` of held-out positions.

    h [m, hidden]; right [m]: how many of the up to k tokens after each are the model's own choices.
    """
    accept = Acceptance.of(name, module)
    weight = next(module.parameters())
    chances = accept.read(h.to(weight)).tolist()
    return by_share(chances, right.tolist(), k, accept.accept, WANTED[name])


def follow(
    text: list[int], guesses: list[list[int]], accepted: list[int], span: list[int]
) -> tuple[int, int]:
    """Follow a decoder with MTP heads along `text` until its first wrong token.

    guesses, accepted: at each position. Returns how many MTP tokens were emitted, and 1 if one was
    wrong. Adds to span: tokens, full passes.
    """
    position, emitted = 1, 0  # the prefill gave text[0]
    while position < len(text):
        s = accepted[position - 1]
        span[1] += 1
        span[0] += 1
        for i in range(1, s + 1):
            if position + i >= len(text):  # past the end mark: dropped
                return emitted, 0
            emitted += 1
            span[0] += 1
            if guesses[position - 1][i - 1] != text[position + i]:
                return emitted, 1
        position += 1 + s
    return emitted, 0


def cycles(model: Model, decoder: str) -> dict[str, Any]:
    """Find the most generous threshold of `dmtd-adaptive` or `mixed`, for the add-on's card.

    `dmtd-adaptive` is to answer as many prompts exactly as `dmtd` at its best tau, `mixed` to keep
    READABLE of `ar`'s exact match. Here a wrong token changes what later passes see, so every
    threshold is decoded.
    """
    rows = validation_rows(model.tokenizer, DECODED_PROMPTS)
    if decoder == "mixed":
        wanted = READABLE * _decoded(model, "ar", {}, rows)["exact_match"]
    else:
        wanted = max(_decoded(model, "dmtd", {"tau": tau}, rows)["exact_match"] for tau in FIXED)
    result: dict[str, Any] = {}
    for threshold in COARSE:
        result = {
            "threshold": threshold,
            "validation": {
                "prompts": len(rows),
                "exact_match_wanted": round(wanted, 4),
                **_decoded(model, decoder, {"threshold": threshold}, rows),
            },
        }
        if result["validation"]["exact_match"] >= wanted:
            break
    return result


def _decoded(
    model: Model, decoder: str, options: dict[str, Any], rows: list[Row]
) -> dict[str, float]:
    """Answer the rows by a decoder: exact match, and tokens per full pass."""
    cls = DECODERS[decoder]
    made = cls(cls.resolve(cls.Options(**options), model))
    right = tokens = full = 0
    for row in tqdm(
        rows, desc=f"{decoder} {options.get('threshold', options.get('tau', ''))}", unit="prompt"
    ):
        wanted = row.ids[row.answer :]
        text: list[int] = []
        for step in made.steps(model, row.ids[: row.answer], Sampler()):
            text += [t.id for t in step.tokens]
            full += any(p.kind == "full" for p in step.passes)
            # one wrong token, or the end
            if text[: len(wanted)] != wanted[: len(text)] or len(text) >= len(wanted):
                break
        tokens += min(len(text), len(wanted)) - 1
        right += text[: len(wanted)] == wanted
    return {
        "exact_match": round(right / len(rows), 4),
        "tokens_per_full_pass": round(tokens / max(full, 1), 4),
    }
