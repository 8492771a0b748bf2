"""Conversations to padded batches: one conversation a row, rows sorted into a few fixed lengths."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, Callable, Iterable, Iterator

import torch
from torch import Tensor

from dmtd_demo.training.world import Example

# few fixed shapes: bf16 kernels on CPU are built per shape
LENGTHS = (48, 64, 96, 128, 192, 256, 512)
TOKENS_PER_BATCH = 4096
IGNORED = -100


@dataclass(frozen=True)
class Batch:
    """Rows of conversations, padded at the end to one length.

    ids [rows, length]. targets [rows, length]: the next token where it belongs to an answer, else
    -100. phase [rows, length]: each position's distance from its row's first answer token, negative
    within the prompt. tokens: without the padding.
    """

    ids: Tensor
    targets: Tensor
    phase: Tensor
    tokens: int

    def to(self, device: torch.device) -> Batch:
        """Return the batch on this device."""
        return Batch(
            self.ids.to(device), self.targets.to(device), self.phase.to(device), self.tokens
        )

    def piece(self, index: int, of: int) -> Batch:
        """Return every `of`-th row, from this index on."""
        return Batch(
            self.ids[index::of], self.targets[index::of], self.phase[index::of], self.tokens
        )


@dataclass(frozen=True)
class Row:
    """A whole conversation, its end mark included.

    answers: where each answer begins and ends, end mark included, the last one last.
    """

    ids: list[int]
    answers: list[tuple[int, int]]

    @property
    def answer(self) -> int:
        """Where the last answer begins."""
        return self.answers[-1][0]


def encode(tokenizer: Any, example: Example) -> Row:
    """Encode each turn through the chat template by itself, which adds nothing but the turns."""
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
    tokenizer: Any, examples: Iterable[tuple[str, Example]], longest: Callable[[], int], pad: int
) -> Iterator[Batch]:
    """Fill rows of each length in LENGTHS until they make a batch.

    Conversations of more than longest() tokens are left out. pad: the id that fills the rest.
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
    """Pad rows to one batch of `length` positions. pad: the id that fills them."""
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
    """Draw a cycle length for each row of ids, [rows, 1]."""
    return torch.tensor(
        rng.choices(list(choices), list(choices.values()), k=ids.shape[0]), device=ids.device
    )[:, None]
