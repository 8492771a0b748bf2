"""Conversations that the model writes itself (Magpie, arXiv 2406.08464), and batches of them.

Given its chat template up to the user's turn, the model draws the user's message, then answers it
greedily. Every row is a text of its own that starts anew, over its kept prefix, as it ends.
"""

from __future__ import annotations

import hashlib
import math
import time
import traceback
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterator

import numpy as np
import torch
from model import Cache, Stack, decode_fast, decode_plain, decode_step, triton
from torch import Tensor
from weights import Tokens

DEFAULT = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
# The default prompt has three quarters of the rows; the others draw requests of other kinds.
OTHERS = (
    "You are a helpful assistant.",
    "You are a helpful assistant that answers short everyday questions.",
    "You are a programming assistant. You write short code and explain it.",
    "You are an AI rewriting assistant. You rewrite the user's text as they ask.",
    "You are a helpful assistant that makes lists and plans.",
    "You are an AI assistant that summarizes the text the user gives you.",
    "You are a teacher who explains science, history and language in plain words.",
    "You are a helpful assistant for emails, letters and stories.",
)
TAIL = "\n<|im_start|>assistant\n"
NEXT = "\n<|im_start|>user\n"
LONGEST_USER = 160
# user tokens are drawn from so many likeliest ones
CANDIDATES = 64
# why a text ended, as written in the log beside its last token
WHOLE, CUT, LONG_USER, LOOP = 1, 2, 3, 4
REASONS = {CUT: "cut off", LONG_USER: "long user turn", LOOP: "loop"}


def repetition(ids: np.ndarray) -> float:
    """Share of 4-grams that occurred before in the same text; 0 for fewer than 4 tokens."""
    if len(ids) < 4:
        return 0.0
    wide = ids.astype(np.int64)
    grams = ((wide[:-3] * 65536 + wide[1:-2]) * 65536 + wide[2:-1]) * 32768 + wide[3:]
    return 1.0 - len(np.unique(grams)) / len(grams)


@dataclass(frozen=True)
class Corpus:
    """Texts end to end. tokens uint16; starts, lengths, prompts (tokens before the last answer),
    held (a tenth, by the content) and system (which system prompt) by text."""

    tokens: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    prompts: np.ndarray
    held: np.ndarray
    system: np.ndarray

    @property
    def answer_tokens(self) -> int:
        return int((self.lengths - self.prompts).sum())

    @staticmethod
    def load(path: Path) -> Corpus:
        """What `save` wrote."""
        kept = np.load(path)
        lengths = kept["lengths"].astype(np.int64)
        starts = np.cumsum(lengths) - lengths
        prompts = kept["prompts"].astype(np.int64)
        return Corpus(kept["tokens"], starts, lengths, prompts, kept["held"], kept["system"])

    def save(self, path: Path, most: int) -> None:
        """At most so many answer tokens, the held-out texts first; numpy's npz, deflated."""
        order = np.concatenate([np.flatnonzero(self.held), np.flatnonzero(~self.held)])
        order = order[np.cumsum((self.lengths - self.prompts)[order]) <= most]
        tokens = [self.tokens[s : s + n] for s, n in zip(self.starts[order], self.lengths[order])]
        part = path.with_suffix(".part")
        with part.open("wb") as file:
            np.savez_compressed(
                file,
                tokens=np.concatenate(tokens),
                lengths=self.lengths[order].astype(np.uint16),
                prompts=self.prompts[order].astype(np.uint16),
                held=self.held[order],
                system=self.system[order].astype(np.uint8),
            )
        part.rename(path)


class Writer:
    """The batch of texts being written, as tensors that one captured step updates in place."""

    def __init__(
        self,
        stack: Stack,
        tokens: Tokens | None,
        rows: int,
        room: int,
        *,
        two_turns: float = 0.15,
        least: float = 0.02,
        chunk: int = 512,
    ) -> None:
        """least: user tokens under this share of the likeliest one's probability are not drawn."""
        self.stack, self.rows, self.room, self.least, self.chunk = stack, rows, room, least, chunk
        self.device = device = stack.weights.embedding.device
        systems = (DEFAULT, *OTHERS)
        if tokens:
            self.prefixes = [
                tokens.encode(f"<|im_start|>system\n{text}<|im_end|>\n<|im_start|>user\n")
                for text in systems
            ]
            forced = [tokens.encode(TAIL), tokens.encode(NEXT)]
            self.end, other, self.begin = (
                tokens.encode(t)[0] for t in ("<|im_end|>", "<|endoftext|>", "<|im_start|>")
            )
        else:
            self.prefixes = [[1, 2, 3, 4 + i] for i in range(len(systems))]
            forced, self.end, other, self.begin = [[5, 1, 6, 5], [5, 1, 7, 5]], 2, 0, 1
        self.tail = len(forced[0])
        rng = np.random.default_rng(0)
        self.system = np.where(rng.random(rows) < 0.75, 0, rng.integers(1, len(systems), rows))

        def held(values: Any) -> Tensor:
            return torch.tensor(values, device=device)

        self.forced = held(forced[0] + forced[1])
        self.ends = held([self.end, other])
        self.prefix_end = held([len(self.prefixes[s]) - 1 for s in self.system])
        self.prefix_last = held([self.prefixes[s][-1] for s in self.system])
        self.more = held((rng.random(rows) < two_turns).astype(np.int64))
        self.ids, self.pos = self.prefix_last.clone(), self.prefix_end.clone()
        self.mode, self.queue, self.said = (torch.zeros_like(self.ids) for _ in range(3))
        self.queue.fill_(-1)
        self.left = self.more.clone()
        self.log = torch.zeros(chunk, rows, dtype=torch.int32, device=device)
        self.at = torch.zeros(1, dtype=torch.long, device=device)
        self.attention = (
            decode_fast if triton is not None and device.type == "cuda" else decode_plain
        )
        self.cache = Cache(stack.shape, rows, room, stack.weights.embedding)
        self._prefill()

    def _prefill(self) -> None:
        """The prefixes' keys and values, one token at a time, once for all rows."""
        longest = max(map(len, self.prefixes))
        padded = np.array([(p + [0] * longest)[:longest] for p in self.prefixes])[self.system]
        ids = torch.from_numpy(padded).to(self.device)
        for i in range(longest):
            decode_step(
                self.stack, self.cache, ids[:, i], torch.full_like(self.pos, i), decode_plain
            )

    @torch.no_grad()
    def step(self) -> None:
        """Write one token of every row."""
        h = decode_step(self.stack, self.cache, self.ids, self.pos, self.attention)
        z, candidates = self.stack.logits(h).topk(CANDIDATES)
        z = z.float()
        likely = z >= z[:, :1] + math.log(self.least)
        # the largest of logits with Gumbel noise is a draw from their softmax
        drawn = torch.where(likely, z - torch.empty_like(z).exponential_().log(), -1e30)
        user = self.mode == 0
        place = torch.where(user, drawn.argmax(-1), 0)
        best = candidates.gather(-1, place[:, None])[:, 0]
        queued = self.queue >= 0
        token = torch.where(queued, self.forced[self.queue.clamp(min=0)], best)
        queue = torch.where(queued, self.queue + 1, -1)
        answering, asking = queue == self.tail, queue == len(self.forced)
        mode = torch.where(answering, 1, torch.where(asking, 0, self.mode))
        ended = ~queued & (token[:, None] == self.ends).any(-1)
        again = ended & ~user & (self.left > 0)
        whole = ended & ~user & (self.left == 0)
        queue = torch.where(answering | asking, -1, queue)
        queue = torch.where(ended & user, 0, torch.where(again, self.tail, queue))
        said = torch.where(queued, 0, self.said + 1)
        why = whole.long() * WHOLE
        why = torch.where(~whole & (self.pos + 2 >= self.room), CUT, why)
        why = torch.where((why == 0) & user & (said > LONGEST_USER), LONG_USER, why)
        self.log.index_copy_(0, self.at, (token + (why << 16)).int()[None])
        self.at += 1
        self.mode.copy_(mode)
        self.queue.copy_(queue)
        self.said.copy_(said)
        self.left -= again.long()
        self.ids.copy_(token)
        self.pos += 1
        self._restart(why > 0)

    def _restart(self, rows: Tensor) -> None:
        self.ids.copy_(torch.where(rows, self.prefix_last, self.ids))
        self.pos.copy_(torch.where(rows, self.prefix_end, self.pos))
        self.mode.copy_(torch.where(rows, 0, self.mode))
        self.queue.copy_(torch.where(rows, -1, self.queue))
        self.said.copy_(torch.where(rows, 0, self.said))
        self.left.copy_(torch.where(rows, self.more, self.left))

    def stop_loops(self, at: int, window: int = 80, period: int = 24) -> None:
        """Start rows anew whose last answer tokens only repeat themselves."""
        recent = self.log[at - window : at] & 0xFFFF
        looped = torch.zeros_like(self.mode, dtype=torch.bool)
        for p in range(1, period + 1):
            looped |= (recent[p:] == recent[:-p]).all(0)
        looped &= (self.mode == 1) & (self.said >= window)
        self.log[at - 1] |= torch.where(looped, LOOP << 16, 0).int()
        self._restart(looped)

    def captured(self) -> Callable[[], None]:
        """`step` as one launch, where the device has graphs."""
        if self.device.type != "cuda":
            return self.step
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self.step()
        torch.cuda.current_stream().wait_stream(side)
        # the steps above left half a text in each row
        self._restart(torch.ones_like(self.mode, dtype=torch.bool))
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self.step()
        except RuntimeError:
            traceback.print_exc()
            return self.step
        self._graph = graph
        return graph.replay


class Collector:
    """Cuts logs into texts and filters them, in a thread beside the device's work."""

    def __init__(self, writer: Writer) -> None:
        self.writer = writer
        self.open: list[list[np.ndarray]] = [[] for _ in range(writer.rows)]
        self.texts: list[np.ndarray] = []
        self.facts: list[tuple[int, bool, int]] = []
        self.seen: set[bytes] = set()
        self.counts: Counter[str] = Counter()

    def add(self, log: np.ndarray) -> None:
        """log [steps, rows]: tokens, and why a text ended in the upper bits."""
        for row, line in enumerate(np.ascontiguousarray(log.T)):
            begin, ended = 0, np.flatnonzero(line >> 16)
            for end in ended:
                self.open[row].append(line[begin : end + 1])
                begin = end + 1
                self._text(row, np.concatenate(self.open[row]))
                self.open[row] = []
            if begin < len(line):
                self.open[row].append(line[begin:])

    def _text(self, row: int, codes: np.ndarray) -> None:
        why, emitted = int(codes[-1]) >> 16, (codes & 0xFFFF).astype(np.uint16)
        self.counts["drawn"] += 1
        self.counts["drawn tokens"] += len(emitted)
        if why != WHOLE:
            # both marks can stand at one token
            self.counts[REASONS.get(why, "loop")] += 1
            return
        w = self.writer
        marks = np.flatnonzero(emitted == w.begin)
        if len(marks) != 1 + 2 * int(w.more_list[row]):
            self.counts["control token in a turn"] += 1
            return
        user, answer = emitted[: marks[0] - 2], emitted[marks[-1] + w.tail - 1 : -1]
        key = hashlib.blake2b(user.tobytes(), digest_size=8).digest()
        if len(user) < 3:
            self.counts["empty user turn"] += 1
        elif len(answer) < 4:
            self.counts["empty answer"] += 1
        elif repetition(answer) > 0.25:
            self.counts["repeats itself"] += 1
        elif key in self.seen:
            self.counts["duplicate"] += 1
        else:
            self.seen.add(key)
            self.counts["kept"] += 1
            self.counts["answer tokens"] += len(answer)
            system = int(w.system[row])
            prefix = np.array(w.prefixes[system], dtype=np.uint16)
            self.texts.append(np.concatenate([prefix, emitted]))
            self.facts.append((len(prefix) + marks[-1] + w.tail - 1, key[0] % 10 == 0, system))

    def corpus(self) -> Corpus:
        lengths = np.array([len(t) for t in self.texts], dtype=np.int64)
        prompts, held, system = (np.array(column) for column in zip(*self.facts))
        return Corpus(
            np.concatenate(self.texts),
            np.cumsum(lengths) - lengths,
            lengths,
            prompts.astype(np.int64),
            held.astype(bool),
            system,
        )


def write(
    writer: Writer,
    deadline: float,
    tell: Callable[[dict[str, Any]], None],
    wanted: int,
    steps: int | None = None,
) -> Corpus:
    """Texts until the deadline (time.monotonic), or until `wanted` answer tokens are kept."""
    writer.more_list = writer.more.tolist()
    step = writer.captured()
    collector, pool = Collector(writer), ThreadPoolExecutor(1)
    pending: list[Future[None]] = []
    began, done = time.monotonic(), 0
    while time.monotonic() < deadline and (steps is None or done < steps):
        writer.at.zero_()
        size = min(writer.chunk, (steps or 1 << 30) - done)
        for i in range(1, size + 1):
            step()
            if i % 32 == 0 and i >= 96:
                writer.stop_loops(i)
        # waits for the device, so the deadline is met to within a chunk
        log = writer.log[:size].cpu().numpy()
        pending.append(pool.submit(collector.add, log))
        done += size
        seconds = time.monotonic() - began
        tell(
            {
                "steps": done,
                "drawn": done * writer.rows,
                "seconds": round(seconds, 1),
                "tokens_per_s": round(done * writer.rows / seconds),
            }
        )
        if collector.counts["answer tokens"] > wanted:
            break
    for future in pending:
        future.result()
    pool.shutdown()
    corpus = collector.corpus()
    tell(
        {
            "counts": dict(collector.counts),
            "answer_tokens": corpus.answer_tokens,
            "texts": len(corpus.lengths),
            "seconds": round(time.monotonic() - began, 1),
        }
    )
    return corpus


@dataclass(frozen=True)
class Batch:
    """ids [rows, n] padded at the right; lengths and prompts on the device and as numpy."""

    ids: Tensor
    lengths: Tensor
    prompts: Tensor
    sizes: tuple[np.ndarray, np.ndarray]

    @property
    def answers(self) -> int:
        return int((self.sizes[0] - self.sizes[1]).sum())


class Batches:
    """Batches of about `positions` positions, of texts of like length; kept on the device."""

    STEP = 64

    def __init__(
        self, corpus: Corpus, held: bool, positions: int, device: torch.device, longest: int = 512
    ) -> None:
        chosen = np.flatnonzero((corpus.held == held) & (corpus.lengths <= longest))
        widths = -(-corpus.lengths[chosen] // self.STEP) * self.STEP
        self.groups = {int(n): chosen[widths == n] for n in np.unique(widths)}
        self.corpus, self.positions, self.device = corpus, positions, device
        self.flat = torch.from_numpy(corpus.tokens.astype(np.int32)).to(device)

    def batch(self, texts: np.ndarray, n: int) -> Batch:
        def put(values: np.ndarray) -> Tensor:
            made = torch.from_numpy(np.ascontiguousarray(values))
            if self.device.type == "cuda":
                made = made.pin_memory()
            return made.to(self.device, non_blocking=True)

        c = self.corpus
        starts, lengths, prompts = (
            put(c.starts[texts]),
            put(c.lengths[texts]),
            put(c.prompts[texts]),
        )
        at = torch.arange(n, device=self.device)
        ids = self.flat[(starts[:, None] + at).clamp(max=len(self.flat) - 1)].long()
        ids = torch.where(at < lengths[:, None], ids, 2)
        return Batch(ids, lengths, prompts, (c.lengths[texts], c.prompts[texts]))

    def endless(self, seed: int) -> Iterator[Batch]:
        rng = np.random.default_rng(seed)
        while True:
            lots = []
            for n, texts in self.groups.items():
                rows = max(1, self.positions // n)
                shuffled = rng.permutation(texts)
                # a group smaller than a batch gives one of its own
                whole = max(1, len(shuffled) // rows)
                lots += [(n, lot) for lot in np.array_split(shuffled, whole) if len(lot)]
            for i in rng.permutation(len(lots)):
                yield self.batch(lots[i][1], lots[i][0])

    def some(self, positions: int) -> list[Batch]:
        """The same batches at each call, about so many positions, by every length's share."""
        total = sum(n * len(texts) for n, texts in self.groups.items())
        found = []
        for n, texts in self.groups.items():
            count = min(len(texts), max(1, round(len(texts) * positions / max(1, total))))
            rows = max(1, self.positions // n)
            for begin in range(0, count, rows):
                found.append(self.batch(texts[begin : min(begin + rows, count)], n))
        return found
