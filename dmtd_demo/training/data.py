"""Conversations to padded batches: one conversation a row, rows sorted into a few fixed lengths."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Callable, Iterable, Iterator

import torch
from torch import Tensor

from dmtd_demo.training.world import Example

# few fixed shapes: bf16 kernels on CPU are built per shape
LENGTHS = (48, 64, 96, 128, 192, 256, 512)
TOKENS_PER_BATCH = 4096
IGNORED = -100


@dataclass(frozen=True)
class Batch:
    """ids: [rows, length], padded at the end.

    targets: the next token where it belongs to an answer, else -100, [rows, length]. phase: each
    position's distance from its row's first answer token, negative within the prompt, [rows,
    length].
    """

    ids: Tensor
    targets: Tensor
    phase: Tensor
    tokens: int

    def to(self, device: torch.device) -> Batch:
        return Batch(
            self.ids.to(device), self.targets.to(device), self.phase.to(device), self.tokens
        )

    def piece(self, index: int, of: int) -> Batch:
        """Every `of`-th row, from this index on."""
        return Batch(
            self.ids[index::of], self.targets[index::of], self.phase[index::of], self.tokens
        )


@dataclass(frozen=True)
class Row:
    """ids: a whole conversation, its end mark included.

    answers: where each answer begins and ends, end mark included, the last one last.
    """

    ids: list[int]
    answers: list[tuple[int, int]]

    @property
    def answer(self) -> int:
        """Where the last answer begins."""
        return self.answers[-1][0]


def encode(tokenizer, example: Example) -> Row:
    """Each turn through the chat template by itself: the template adds nothing but the turns."""
    ids: list[int] = []
    answers: list[tuple[int, int]] = []
    for (_, asked), (_, answer) in zip(example.messages[::2], example.messages[1::2]):
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": asked}], tokenize=False, add_generation_prompt=True
        )
        ids += tokenizer(("\n" if ids else "") + prompt, add_special_tokens=False).input_ids
        start = len(ids)
        ids += tokenizer(answer, add_special_tokens=False).input_ids + [tokenizer.eos_token_id]
        answers.append((start, len(ids)))
    return Row(ids, answers)


def batches(
    tokenizer, examples: Iterable[tuple[str, Example]], longest: Callable[[], int], pad: int
) -> Iterator[Batch]:
    """Fill rows of each length in LENGTHS until they make a batch; conversations over longest() are
    left out.
    """
    waiting: dict[int, list[Row]] = {length: [] for length in LENGTHS}
    for _, example in examples:
        row = encode(tokenizer, example)
        if len(row.ids) > longest():
            continue
        length = next(length for length in LENGTHS if length >= len(row.ids))
        waiting[length].append(row)
        if len(waiting[length]) == TOKENS_PER_BATCH // length:
            yield collate(waiting[length], length, pad)
            waiting[length] = []


def collate(rows: list[Row], length: int, pad: int) -> Batch:
    ids = torch.full((len(rows), length), pad)
    targets = torch.full((len(rows), length), IGNORED)
    for index, row in enumerate(rows):
        ids[index, : len(row.ids)] = torch.tensor(row.ids)
        for start, stop in row.answers:
            targets[index, start - 1 : stop - 1] = ids[index, start:stop]
    starts = torch.tensor([row.answer for row in rows])
    return Batch(
        ids,
        targets,
        torch.arange(length)[None] - starts[:, None],
        sum(len(row.ids) for row in rows),
    )


def draw_taus(rng: random.Random, choices: dict[int, float], ids: Tensor) -> Tensor:
    """A cycle length for each row of ids, [rows, 1]."""
    return torch.tensor(
        rng.choices(list(choices), list(choices.values()), k=ids.shape[0]), device=ids.device
    )[:, None]
