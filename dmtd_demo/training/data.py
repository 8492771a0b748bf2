"""Conversations to padded batches: one conversation a row, rows sorted into a few fixed lengths."""
from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Callable, Iterable, Iterator

import torch
from torch import Tensor

from dmtd_demo.training.world import Example

LENGTHS = (48, 64, 96, 128, 192, 256, 384, 512)   # few fixed shapes: bf16 kernels on CPU are built per shape
TOKENS_PER_BATCH = 4096
IGNORED = -100


@dataclass(frozen=True)
class Batch:
    """ids: [rows, length], padded at the end. targets: the next token where it belongs to the last answer, else -100, [rows, length].
    phase: each position's distance from its row's first answer token, negative within the prompt, [rows, length]."""
    ids: Tensor
    targets: Tensor
    phase: Tensor
    tokens: int

    def to(self, device: torch.device) -> Batch:
        return Batch(self.ids.to(device), self.targets.to(device), self.phase.to(device), self.tokens)


def encode(tokenizer, example: Example) -> tuple[list[int], int]:
    """Token ids of the whole conversation, end mark included, and where its last answer begins."""
    messages = [{"role": role, "content": text} for role, text in example.messages]
    prompt = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
    ids = tokenizer(prompt, add_special_tokens=False).input_ids
    return ids + tokenizer(example.answer, add_special_tokens=False).input_ids + [tokenizer.eos_token_id], len(ids)


def batches(tokenizer, examples: Iterable[tuple[str, Example]], longest: Callable[[], int], pad: int) -> Iterator[Batch]:
    """Fill rows of each length in LENGTHS until they make a batch; conversations over longest() are left out."""
    waiting: dict[int, list[tuple[list[int], int]]] = {length: [] for length in LENGTHS}
    for _, example in examples:
        ids, answer = encode(tokenizer, example)
        if len(ids) > longest():
            continue
        length = next(length for length in LENGTHS if length >= len(ids))
        waiting[length].append((ids, answer))
        if len(waiting[length]) == TOKENS_PER_BATCH // length:
            yield collate(waiting[length], length, pad)
            waiting[length] = []


def collate(rows: list[tuple[list[int], int]], length: int, pad: int) -> Batch:
    ids = torch.full((len(rows), length), pad)
    targets = torch.full((len(rows), length), IGNORED)
    answers = torch.tensor([answer for _, answer in rows])
    for row, (tokens, answer) in enumerate(rows):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        targets[row, answer - 1 : len(tokens) - 1] = ids[row, answer : len(tokens)]
    return Batch(ids, targets, torch.arange(length)[None] - answers[:, None], sum(len(tokens) for tokens, _ in rows))


def draw_tau(rng: random.Random, choices: dict[int, float]) -> int:
    return rng.choices(list(choices), list(choices.values()))[0]
