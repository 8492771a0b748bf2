"""Packed rows for `classroom-hybrid`, made by other processes while the model trains.

Several conversations lie in each row, so that every batch has one shape.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import random
import signal
from dataclasses import dataclass, replace
from typing import Any, Iterable, Iterator, Sequence

import numpy as np
from tokenizers import Tokenizer

from dmtd_demo.training.cycles import LONGEST, WHOLE
from dmtd_demo.training.data import IGNORED, Row
from dmtd_demo.training.world import Example
from dmtd_demo.training.world.mix import training_examples

LENGTH = 512
CYCLES = {1: 0.3, 2: 0.25, 3: 0.2, 4: 0.15, 6: 0.1}  # tau, drawn for each text
# share of the other texts whose cycles change their length, as when drafts are verified
VARIED = 0.15
READ_SHARE = 9 / 16  # room for answer positions: they are 46 % of all
CHARACTERS = 6  # a token has four on average
MISSES = 12  # texts in turn that no row has room for, until a batch is closed


@dataclass(frozen=True)
class Packed:
    """A batch.

    ids, texts (which text of its row a position belongs to), heads (m = 1): [rows, LENGTH]. read:
    positions of the flattened batch that predict a token of an answer, [room]. targets: the next
    token there and those after it, [room, 1 + depth], IGNORED past the answer's end and where read
    is only filled up. tokens: without what fills up the rows.
    """

    ids: np.ndarray
    texts: np.ndarray
    heads: np.ndarray
    read: np.ndarray
    targets: np.ndarray
    tokens: int


def room(rows: int) -> int:
    """Return how many answer positions a batch of so many rows has room for."""
    return int(rows * LENGTH * READ_SHARE)


def encoded(tokenizer: Tokenizer, example: Example, end: int) -> Row:
    """Return what training.data.encode gives, without the template engine: that took most of it."""
    ids: list[int] = []
    answers: list[tuple[int, int]] = []
    for (_, asked), (_, answer) in zip(example.messages[::2], example.messages[1::2]):
        before = "\n" if ids else ""
        ids += tokenizer.encode(
            f"{before}<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n",
            add_special_tokens=False,
        ).ids
        start = len(ids)
        ids += [*tokenizer.encode(answer, add_special_tokens=False).ids, end]
        answers.append((start, len(ids)))
    return Row(ids, answers)


def drawn_heads(rng: random.Random, row: Row) -> np.ndarray:
    """Draw the cyclical mask of the last answer: which positions are heads, the prompt always."""
    heads = np.ones(len(row.ids), dtype=bool)
    phase = np.arange(len(row.ids) - row.answer)
    if rng.random() < VARIED:
        heads[row.answer :] = False
        at = row.answer
        while at < len(heads):
            heads[at] = True
            at += LONGEST if rng.random() < WHOLE / 2 else rng.randint(1, LONGEST - 1)
    else:
        heads[row.answer :] = phase % rng.choices(list(CYCLES), list(CYCLES.values()))[0] == 0
    return heads


def places(
    lengths: Iterable[int], rows: int, length: int, misses: int = MISSES
) -> Iterator[list[list[int]]]:
    """Say which texts share a row: for each batch, for each of its rows, their numbers.

    In the order in which they came. Every text is placed once, and none is cut.
    """
    waiting: list[tuple[int, int]] = []
    source = enumerate(lengths)
    done = False
    while not done or waiting:
        rooms, missed = [length] * rows, 0
        placed: list[list[int]] = [[] for _ in rooms]
        left: list[tuple[int, int]] = []
        old = iter(waiting)
        while missed < misses:
            item = next(old, None) or next(source, None)
            if item is None:
                done = True
                break
            number, size = item
            fits = [(left_over, i) for i, left_over in enumerate(rooms) if left_over >= size]
            if fits:
                _, i = min(fits)
                rooms[i] -= size
                placed[i].append(number)
            else:
                left.append(item)
                missed += 1
        waiting = [*left, *old]
        yield placed


def collate(
    placed: list[list[tuple[Row, np.ndarray]]],
    depth: int,
    length: int,
    pad: int,
    most: int | None = None,
) -> Packed:
    """Put texts into one batch; placed: for each row its texts and their heads."""
    shape = (len(placed), length)
    ids, texts = np.full(shape, pad, np.int16), np.zeros(shape, np.int16)
    heads = np.ones(shape, bool)
    answers = np.full((len(placed), length + depth), IGNORED, np.int16)
    used = 0
    for index, row in enumerate(placed):
        at = 0
        for number, (text, mask) in enumerate(row):
            stop = at + len(text.ids)
            ids[index, at:stop], texts[index, at:stop] = text.ids, number
            heads[index, at:stop] = mask
            for a, b in text.answers:
                answers[index, at + a - 1 : at + b - 1] = text.ids[a:b]
            at = stop
        texts[index, at:] = len(row)
        used += at
    (read,) = np.nonzero(answers[:, :length].ravel() != IGNORED)
    rows, columns = np.divmod(read, length)
    # between the answers of one row lies a prompt, longer than any depth: what is read past an
    # answer's end is IGNORED
    targets = np.stack([answers[rows, columns + i] for i in range(depth + 1)], -1)
    if most is not None:
        read, targets = read[:most], targets[:most]
        more = most - len(read)
        read = np.pad(read, (0, more))
        targets = np.pad(targets, ((0, more), (0, 0)), constant_values=IGNORED)
    return Packed(ids, texts, heads, read.astype(np.int32), targets, used)


@dataclass(frozen=True)
class Batches:
    """What batches are made of: so many rows each, with answers' next tokens up to `depth` further.

    tokenizer: its file; end and pad: its marks. seed: of the conversations that are drawn.
    """

    tokenizer: str
    end: int
    pad: int
    seed: str
    rows: int
    depth: int


def batches(asked: Batches, longest: Any) -> Iterator[Packed]:
    """Make batches without end. longest.value: of a text in tokens, at the moment."""
    rng = random.Random(f"heads:{asked.seed}")
    tokenizer = Tokenizer.from_file(asked.tokenizer)
    made: dict[int, tuple[Row, np.ndarray]] = {}

    def lengths() -> Iterator[int]:
        for _, example in training_examples(asked.seed):
            if sum(len(text) for _, text in example.messages) > CHARACTERS * longest.value:
                # encoding what is too long took most of the time while only short texts are wanted
                continue
            row = encoded(tokenizer, example, asked.end)
            if len(row.ids) <= longest.value:
                made[count[0]] = row, drawn_heads(rng, row)
                count[0] += 1
                yield len(row.ids)

    count = [0]
    for placed in places(lengths(), asked.rows, LENGTH):
        texts = [[made.pop(number) for number in row] for row in placed]
        yield collate(texts, asked.depth, LENGTH, asked.pad, room(asked.rows))


def _work(out: Any, parent: int, asked: Batches, longest: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # not what the training process does with it
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(5)
    for batch in batches(asked, longest):
        while True:
            try:
                out.put(batch, timeout=2)
                break
            except queue.Full:
                if os.getppid() != parent:  # killed: nobody reads any more
                    os._exit(0)


@contextlib.contextmanager
def workers(count: int, asked: Batches, longest: int) -> Iterator[tuple[Any, Any]]:
    """Give a queue of batches, and a shared number: the longest text that goes into new ones."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # they use no CUDA, and importing everything once more would take them ten seconds
    context = multiprocessing.get_context("fork")
    out, limit = context.Queue(4 * count), context.Value("i", longest, lock=False)
    made = [
        context.Process(
            target=_work,
            args=(out, os.getpid(), replace(asked, seed=f"{asked.seed}:{i}"), limit),
            daemon=True,
        )
        for i in range(count)
    ]
    for process in made:
        process.start()
    try:
        yield out, limit
    finally:
        for process in made:
            process.terminate()
        out.cancel_join_thread()


def packed_rows(
    rows: Sequence[Row], heads: Sequence[np.ndarray], per_batch: int, depth: int, pad: int
) -> Iterator[tuple[Packed, list[tuple[int, int, int]]]]:
    """Put given texts into batches of at most per_batch packed rows.

    With each of them, where its texts begin: number, row, column.
    """
    for placed in places((len(row.ids) for row in rows), per_batch, LENGTH, misses=10_000_000):
        placed = [row for row in placed if row]
        where = []
        for index, row in enumerate(placed):
            at = 0
            for number in row:
                where.append((number, index, at))
                at += len(rows[number].ids)
        texts = [[(rows[number], heads[number]) for number in row] for row in placed]
        yield collate(texts, depth, LENGTH, pad), where
