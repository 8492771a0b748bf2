"""`ar` for many texts at once, for data and evaluation: nobody watches, so only the whole counts.

A batch of rows is decoded together; a text that ends makes room for the next one, and when none is
left the batch is halved as it empties. Lengths and batch sizes come in few fixed steps, since new
shapes cost time on a CPU.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import Callable, Iterator, Sequence

import torch
from torch import Tensor

from dmtd_demo.backbone.batched import BatchCache
from dmtd_demo.decoders.ar import Autoregressive
from dmtd_demo.models.model import Model
from dmtd_demo.sampling import Sampler, truncated

# prompts are read in these lengths, and in multiples of the last one
LENGTHS = (32, 64, 96, 128, 192, 256, 384, 512)
READ = 8  # prompts that are read together
LOOK = 16  # tokens between two looks at whether a text goes on


@dataclass(frozen=True)
class Written:
    """A text. index: of its prompt; ids: with the end mark where it has one; ended: whether it has;
    stopped: whether `go_on` said no."""

    index: int
    ids: list[int]
    ended: bool
    stopped: bool = False


@dataclass(frozen=True)
class Writing:
    """How texts are written. batch: rows at once. sampler: greedy without one; texts are drawn from
    its one generator. ends: the end marks, the model's own where not given. go_on: whether a text
    goes on, asked every LOOK tokens.
    """

    batch: int = 64
    sampler: Sampler | None = None
    ends: frozenset[int] | None = None
    go_on: Callable[[list[int]], bool] = lambda ids: True


def batched_ar(
    model: Model,
    prompts: Sequence[Sequence[int]],
    longest: int,
    how: Writing = Writing(),
    tell: Callable[[int], None] = lambda tokens: None,
) -> Iterator[Written]:
    """Yield each prompt's text as it ends, in any order: its end mark, `longest` tokens, or
    `go_on`, asked every LOOK tokens.

    The same prompts and seed give the same texts again. tell: hears how many tokens a step made,
    and may raise Cancelled. Greedy, a text is what `ar` writes, up to near-ties where long sums
    round otherwise. Models that cannot be batched (recurrent layers, several devices) write one
    text after another.
    """
    sampler = how.sampler or Sampler(device=model.backbone.device)
    ends = model.eos_ids if how.ends is None else how.ends
    asked = _Asked(model, prompts, longest, sampler, ends, how.go_on, tell)
    yield from _Batch(asked, how.batch) if model.backbone.can_batch else _one_by_one(asked)


@dataclass(frozen=True)
class _Asked:
    """What is to be written, as in `batched_ar`."""

    model: Model
    prompts: Sequence[Sequence[int]]
    longest: int
    sampler: Sampler
    ends: frozenset[int]
    go_on: Callable[[list[int]], bool]
    tell: Callable[[int], None]

    def ended(self, index: int, ids: list[int]) -> Written | None:
        """Return the text of a prompt where its last token ends it."""
        ended = ids[-1] in self.ends
        full = len(ids) >= min(self.longest, self.model.context - len(self.prompts[index]))
        stopped = len(ids) % LOOK == 0 and not self.go_on(ids)
        if ended or full or stopped:
            return Written(index, ids, ended, stopped and not ended)
        return None


def _one_by_one(asked: _Asked) -> Iterator[Written]:
    for index, prompt in enumerate(asked.prompts):
        ids: list[int] = []
        for step in Autoregressive().steps(asked.model, prompt, asked.sampler):
            ids += [token.id for token in step.tokens]
            asked.tell(len(step.tokens))
            written = asked.ended(index, ids) if ids else None
            if written is not None:
                yield written
                break


def drawn(sampler: Sampler, logits: Tensor) -> list[int]:
    """Draw one token for each row of logits [rows, vocabulary].

    With top-k by as many random numbers as there are tokens to draw from: for 64 texts and 49,152
    tokens the others cost a quarter of a step.
    """
    sampling = sampler.sampling
    if sampling.temperature == 0 or not 0 < sampling.top_k < logits.shape[-1]:
        return sampler.draw(logits).tolist()
    likeliest = logits.topk(sampling.top_k)
    chances = truncated(likeliest.values, replace(sampling, top_k=0)).softmax(-1)
    chosen = torch.multinomial(chances, 1, generator=sampler.generator)
    return likeliest.indices.gather(-1, chosen)[:, 0].tolist()


class _Batch:
    """The rows of one batch, as an iterator of what they wrote."""

    def __init__(self, asked: _Asked, batch: int) -> None:
        self.asked, self.backbone, self.prompts = asked, asked.model.backbone, asked.prompts
        rows = 1
        while rows < min(batch, len(self.prompts)):
            rows *= 2
        self.cache = BatchCache(self.backbone.layers, min(rows, batch))
        # the longest first: what is left at the end is short
        self.waiting = deque(sorted(range(len(self.prompts)), key=lambda i: -len(self.prompts[i])))
        self.texts: list[tuple[int, list[int]] | None] = [None] * len(self.cache.lengths)
        self.done: list[Written] = []

    @torch.inference_mode()
    def __iter__(self) -> Iterator[Written]:
        while self.waiting or any(self.texts):
            empty = [row for row, text in enumerate(self.texts) if text is None]
            if self.waiting and len(empty) >= min(READ, len(self.waiting), len(self.texts)):
                self._read(empty[:READ])
            elif not self.waiting and len(empty) * 2 >= len(self.texts) > 1:
                self._halve()
            else:
                self._step()
            yield from self.done
            self.done = []

    def _read(self, rows: list[int]) -> None:
        """Begin a text in each of these rows, as long as there are any."""
        new = [self.waiting.popleft() for _ in rows[: len(self.waiting)]]
        rows = rows[: len(new)]
        most = max(len(self.prompts[index]) for index in new)
        q = next((n for n in LENGTHS if n >= most), -(-most // LENGTHS[-1]) * LENGTHS[-1])
        q = min(q, self.asked.model.context)
        ids = torch.zeros((len(new), q), dtype=torch.long)
        for row, index in zip(ids, new):
            row[: len(self.prompts[index])] = torch.tensor(self.prompts[index])
        out = self.backbone.begin_texts(ids.to(self.backbone.device), self.cache, rows)
        last = torch.tensor([len(self.prompts[index]) - 1 for index in new], device=out.device)
        drawn = self._drawn(out[torch.arange(len(new), device=out.device), last])
        for row, index, token in zip(rows, new, drawn):
            self.cache.lengths[row] = len(self.prompts[index])
            self.texts[row] = (index, [])
            self._take(row, token)
        self.asked.tell(len(new))

    def _step(self) -> None:
        """One token for every text; empty rows compute along."""
        ids = [text[1][-1] if text else 0 for text in self.texts]
        for row, text in enumerate(self.texts):
            if text is None:
                self.cache.lengths[row] = 0
        drawn = self._drawn(self.backbone.step_texts(ids, self.cache))
        made = 0
        for row, token in enumerate(drawn):
            if self.texts[row] is not None:
                self._take(row, token)
                made += 1
        self.asked.tell(made)

    def _drawn(self, out: Tensor) -> list[int]:
        return drawn(self.asked.sampler, self.backbone.logits(self.backbone.final_norm(out)))

    def _take(self, row: int, token: int) -> None:
        """Append a token to a row's text, and end the text where it ends."""
        text = self.texts[row]
        assert text is not None
        index, ids = text
        ids.append(token)
        written = self.asked.ended(index, ids)
        if written is not None:
            self.done.append(written)
            self.texts[row] = None

    def _halve(self) -> None:
        """Go on with half as many rows, or fewer."""
        kept = [row for row, text in enumerate(self.texts) if text is not None]
        size = 1
        while size < len(kept):
            size *= 2
        rows = (kept + [row for row, text in enumerate(self.texts) if text is None])[:size]
        self.cache.keep(rows)
        self.texts = [self.texts[row] for row in rows]
