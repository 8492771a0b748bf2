"""What `classroom-hybrid` answers, teacher-forced: exact match, and how many drafts are right."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Iterator, Sequence

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import Qwen3_5TextConfig

from dmtd_demo.training.clp import prefix_length
from dmtd_demo.training.data import Row
from dmtd_demo.training.hybrid.checkpoint import Weights, stored
from dmtd_demo.training.hybrid.data import LENGTH, encoded, packed_rows
from dmtd_demo.training.hybrid.model import Hybrid
from dmtd_demo.training.hybrid.trainer import DEPTH
from dmtd_demo.training.world import Example


class Judge:
    """Teacher-forced figures from the weights as they are stored, in float32.

    For greedy decoding, whether every token of the reference answer is the argmax is whether the
    decoder writes it: of `ar` with every position a head, of DMTD with its mask.
    """

    def __init__(
        self,
        config: Qwen3_5TextConfig,
        weights: Weights,
        device: torch.device,
        pad: int,
        rows_per_batch: int = 16,
    ) -> None:
        as_stored = {name: t.to(device).float() for name, t in stored(weights).items()}
        self.model = Hybrid(config, as_stored)
        self.device, self.pad, self.rows_per_batch = device, pad, rows_per_batch

    @torch.no_grad()
    def answers(
        self, rows: Sequence[Row], tau: int = 1, depth: int = 0
    ) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
        """Give for each text its number and, where its last answer's m tokens are predicted:

        the states [m, hidden]; the argmax of the backbone [m]; the drafts of every depth
        [m, depth].
        """
        heads = [np.arange(len(row.ids)) < row.answer for row in rows]
        for row, mask in zip(rows, heads):
            mask[row.answer :] = np.arange(len(row.ids) - row.answer) % tau == 0
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = False
        try:
            for batch, where in packed_rows(rows, heads, self.rows_per_batch, 0, self.pad):
                ids, texts, at_head = (
                    torch.from_numpy(x).to(self.device)
                    for x in (batch.ids, batch.texts, batch.heads)
                )
                with sdpa_kernel([SDPBackend.MATH]):
                    h, embedded, seen = self.model.hidden(ids.long(), texts, at_head, torch.float32)
                    made = self.model.drafts(h, embedded, seen, depth)
                own = self.model.logits(h).argmax(-1)
                guesses = own.new_zeros(*own.shape, depth)
                for i, m in enumerate(made):
                    guesses[..., i] = self.model.logits(m).argmax(-1)
                for number, index, column in where:
                    text = rows[number]
                    at = slice(column + text.answer - 1, column + len(text.ids) - 1)
                    yield number, h[index, at], own[index, at], guesses[index, at]
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before

    def exact(self, rows: Sequence[Row], tau: int = 1) -> list[bool]:
        """Return of each text whether its last answer is what cycles of length tau write."""
        right = [False] * len(rows)
        for number, _, own, _ in self.answers(rows, tau):
            right[number] = own.tolist() == rows[number].ids[rows[number].answer :]
        return right


def encoded_rows(tokenizer: Tokenizer, end: int, examples: Sequence[Example]) -> list[Row]:
    """Return the examples as rows, without those that are longer than a packed row."""
    rows = [encoded(tokenizer, example, end) for example in examples]
    return [row for row in rows if len(row.ids) <= LENGTH]


def accepted_by_checking(text: list[int], drafts: list[list[int]], k: int) -> tuple[int, int]:
    """Return how many drafts `mtp-native-verified` accepts along `ar`'s text, in how many passes.

    drafts[t]: those that follow text[t]; text[0] comes from the prompt, and the first drafts with
    it.
    """
    at = accepted = passes = 0
    while at < len(text) - 1:
        wanted = text[at + 1 : at + 1 + k]
        same = torch.tensor([d == w for d, w in zip(drafts[at], wanted)])
        right = int(prefix_length(same))
        accepted, passes = accepted + right, passes + 1
        at += 1 + right
    return accepted, passes


def drafts_by_checking(judge: Judge, rows: Sequence[Row]) -> dict[str, Any]:
    """Return what `mtp-native-verified` does on texts that `ar` answers exactly.

    For each k the mean number of accepted drafts a pass; and each depth's accuracy where all before
    it were right.
    """
    counts = {k: [0, 0] for k in range(1, DEPTH + 1)}
    right_at, reached_at = [0] * DEPTH, [0] * DEPTH
    for number, _, own, guesses in judge.answers(rows, depth=DEPTH):
        text = rows[number].ids[rows[number].answer :]
        if own.tolist() != text:
            continue
        drafts = guesses.tolist()
        for k, count in counts.items():
            accepted, passes = accepted_by_checking(text, drafts, k)
            count[0] += accepted
            count[1] += passes
        for at in range(len(text)):
            for i in range(min(DEPTH, len(text) - 1 - at)):
                reached_at[i] += 1
                if drafts[at][i] != text[at + 1 + i]:
                    break
                right_at[i] += 1
    return {
        "mean_accepted": {str(k): round(a / max(p, 1), 3) for k, (a, p) in counts.items()},
        "right_if_reached": [round(r / max(n, 1), 4) for r, n in zip(right_at, reached_at)],
    }


def by_family(families: Sequence[str], right: Sequence[bool]) -> dict[str, float]:
    """Return the share of right answers of each family."""
    found: dict[str, list[bool]] = defaultdict(list)
    for family, ok in zip(families, right):
        found[family].append(ok)
    return {family: round(sum(oks) / len(oks), 3) for family, oks in sorted(found.items())}
