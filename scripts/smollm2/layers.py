"""DMTD layers by cyclical masking: the late layers adapted to inputs that skip the middle ones.

Two ways. `shared`: every pass runs the adapted late layers (the paper's way). `gated`: full passes
run the model's own late layers and only late-layer-only positions the adapted ones, so that the
model at tau = 1 stays what it was; both kinds attend to the keys and values of both.
The teacher is the model itself at tau = 1, at the same position of the same text.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any, Callable, Iterator

import numpy as np
import torch
from corpus import Batch, Batches, repetition
from model import MATRICES, Split, Stack, mask_counts, packing_of, with_matrices
from torch import Tensor
from torch.nn import functional as F
from weights import Layer

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

# positions whose logits exist at one time: 8192 · 49152 in bfloat16 are 0.8 GB
CHUNK = 8192
# the loss is read, and the queue of launches waited for, at every so many updates
TOLD = 8
# whether the gradient of the distance is made by one kernel, where the device can run it
FAST = False


@dataclass(frozen=True)
class Way:
    """How late layers are trained. rank: of LoRA factors, 0 for whole matrices."""

    split: Split
    shared: bool = False
    rank: int = 0
    optimizer: str = "adamw"
    rate: float = 1e-3
    loss: str = "kl"
    positions: int = 16384
    taus: tuple[tuple[int, ...], ...] = ((2, 3), (2, 4), (2, 6), (3, 4))

    @property
    def name(self) -> str:
        form = f"lora{self.rank}" if self.rank else "full"
        kind = "shared" if self.shared else "gated"
        return f"{kind}-{self.split}-{form}-{self.optimizer}-{self.rate:g}-{self.loss}"


class Adapted:
    """The trained late layers: float32 masters, and the matrices in the model's dtype."""

    def __init__(self, stack: Stack, way: Way) -> None:
        self.way, self.stack = way, stack
        self.own = stack.weights.layers[-way.split.late :]
        self.dtype = stack.weights.embedding.dtype
        names = [(i, name) for i in range(len(self.own)) for name in MATRICES]
        self.base = {key: getattr(self.own[key[0]], key[1]).float() for key in names}
        if way.rank:
            device = stack.weights.embedding.device
            made = torch.Generator(device).manual_seed(0)
            self.a, self.b = {}, {}
            for key, w in self.base.items():
                rows, columns = w.shape
                self.a[key] = torch.randn(way.rank, columns, device=device, generator=made)
                self.a[key] *= columns**-0.5
                self.b[key] = torch.zeros(rows, way.rank, device=device)
            self.masters = [*self.a.values(), *self.b.values()]
        else:
            self.masters = [w.clone() for w in self.base.values()]
        self._keys = list(self.base)

    @torch.no_grad()
    def values(self) -> dict[tuple[int, str], Tensor]:
        """The matrices in float32."""
        if not self.way.rank:
            return dict(zip(self._keys, self.masters))
        return {key: self.base[key] + self.b[key] @ self.a[key] for key in self._keys}

    def layers(
        self, values: dict[tuple[int, str], Tensor] | None = None, trained: bool = False
    ) -> list[Layer]:
        values = self.values() if values is None else values
        self.leaves = {
            key: w.to(self.dtype).detach().requires_grad_(trained) for key, w in values.items()
        }
        return [
            with_matrices(own, {name: self.leaves[i, name] for name in MATRICES})
            for i, own in enumerate(self.own)
        ]

    @torch.no_grad()
    def take_gradients(self) -> None:
        """From the matrices to the masters, as the chain rule has it for W + B A."""
        grads = {key: leaf.grad.float().contiguous() for key, leaf in self.leaves.items()}
        if not self.way.rank:
            for master, key in zip(self.masters, self._keys):
                master.grad = grads[key]
            return
        for key in self._keys:
            self.a[key].grad = (self.b[key].T @ grads[key]).contiguous()
            self.b[key].grad = (grads[key] @ self.a[key].T).contiguous()

    @torch.no_grad()
    def deltas(self) -> dict[tuple[int, str], Tensor]:
        return {key: w - self.base[key] for key, w in self.values().items()}


class Muon:
    """Momentum made orthogonal (Jordan, 2024), scaled to Adam's step size (arXiv 2502.16982)."""

    def __init__(self, parameters: list[Tensor], rate: float) -> None:
        self.param_groups = [{"lr": rate, "base": rate}]
        by_shape: dict[tuple[int, ...], list[Tensor]] = {}
        for p in parameters:
            by_shape.setdefault(tuple(p.shape), []).append(p)
        self.groups = list(by_shape.values())
        self.momentum = [torch.zeros_like(torch.stack(group)) for group in self.groups]

    @torch.no_grad()
    def step(self) -> None:
        rate = self.param_groups[0]["lr"]
        for group, momentum in zip(self.groups, self.momentum):
            grad = torch.stack([p.grad for p in group])
            momentum.lerp_(grad, 0.05)
            update = _orthogonal(grad.lerp(momentum, 0.95))
            scale = 0.2 * math.sqrt(max(update.shape[1:])) * rate
            for p, u in zip(group, update):
                p.sub_(u.to(p.dtype), alpha=scale)


def _orthogonal(g: Tensor) -> Tensor:
    """Newton-Schulz in five steps, coefficients of Jordan's; g [matrices, rows, columns]."""
    x = g.bfloat16()
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.mT if tall else x


class _Distance(torch.autograd.Function):
    """Sum of weighted KL(teacher || student) over positions; its gradient made in the forward,
    chunk by chunk, so that logits never outlive their chunk. hard: the teacher's argmax alone."""

    @staticmethod
    def forward(
        ctx: Any, h: Tensor, teacher: Tensor, weight: Tensor, table: Tensor, hard: bool, told: bool
    ) -> Tensor:
        grad = torch.empty_like(h)
        total = h.new_zeros((), dtype=torch.float32)
        for at in range(0, len(h), CHUNK):
            rows = slice(at, at + CHUNK)
            ours, own = F.linear(h[rows], table), F.linear(teacher[rows], table)
            if FAST and not hard and not told:
                difference = difference_fast(ours, own, weight[rows].contiguous())
            else:
                difference, loss = _against(ours, own, weight[rows], hard, told)
                total += loss
            grad[rows] = difference @ table
        ctx.save_for_backward(grad)
        return total

    @staticmethod
    def backward(ctx: Any, out: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        return grad * out.to(grad.dtype), None, None, None, None, None


def _against(
    student: Tensor, teacher: Tensor, weight: Tensor, hard: bool, told: bool
) -> tuple[Tensor, Tensor]:
    """(softmax(student) - softmax(teacher)) · weight in the logits' dtype, and the loss, the
    cross-entropy with the teacher's distribution, or with its argmax. told: False leaves the soft
    loss 0, which the gradient does not need and which costs a pass over the logits."""
    log = student.float().log_softmax(-1)
    if hard:
        best = teacher.argmax(-1, keepdim=True)
        loss = -(log.gather(-1, best)[:, 0] * weight).sum()
        difference = log.exp_().scatter_add_(-1, best, torch.full_like(log[:, :1], -1.0))
    else:
        target = teacher.float().softmax(-1)
        loss = -((target * log).sum(-1) * weight).sum() if told else weight.sum() * 0
        difference = log.exp_().sub_(target)
    return difference.mul_(weight[:, None]).to(student.dtype), loss


if triton is not None:

    @triton.jit
    def _difference_kernel(student_at, teacher_at, weight_at, width, BLOCK: tl.constexpr):
        """One row: (softmax(student) - softmax(teacher)) · weight, in the student's place."""
        row = tl.program_id(0).to(tl.int64)
        weight = tl.load(weight_at + row)
        lane = tl.arange(0, BLOCK)
        most_s = tl.full([BLOCK], -1e30, tl.float32)
        most_t = tl.full([BLOCK], -1e30, tl.float32)
        sum_s = tl.zeros([BLOCK], tl.float32)
        sum_t = tl.zeros([BLOCK], tl.float32)
        for start in range(0, width, BLOCK):
            cell = row * width + start + lane
            live = start + lane < width
            s = tl.load(student_at + cell, mask=live, other=float("-inf")).to(tl.float32)
            t = tl.load(teacher_at + cell, mask=live, other=float("-inf")).to(tl.float32)
            higher_s, higher_t = tl.maximum(most_s, s), tl.maximum(most_t, t)
            sum_s = sum_s * tl.exp(most_s - higher_s) + tl.exp(s - higher_s)
            sum_t = sum_t * tl.exp(most_t - higher_t) + tl.exp(t - higher_t)
            most_s, most_t = higher_s, higher_t
        top_s, top_t = tl.max(most_s, 0), tl.max(most_t, 0)
        share_s = weight / tl.sum(sum_s * tl.exp(most_s - top_s), 0)
        share_t = weight / tl.sum(sum_t * tl.exp(most_t - top_t), 0)
        for start in range(0, width, BLOCK):
            cell = row * width + start + lane
            live = start + lane < width
            s = tl.load(student_at + cell, mask=live, other=float("-inf")).to(tl.float32)
            t = tl.load(teacher_at + cell, mask=live, other=float("-inf")).to(tl.float32)
            out = tl.exp(s - top_s) * share_s - tl.exp(t - top_t) * share_t
            tl.store(student_at + cell, out.to(student_at.dtype.element_ty), mask=live)

    def difference_fast(student: Tensor, teacher: Tensor, weight: Tensor) -> Tensor:
        """What `_against` says first, in two reads of the logits; overwrites the student's."""
        _difference_kernel[(len(student),)](
            student, teacher, weight, student.shape[1], BLOCK=4096, num_warps=8
        )
        return student

else:
    difference_fast = None


class Trainer:
    """One way, trained from the model's own weights for a time or a number of positions."""

    def __init__(self, stack: Stack, way: Way, batches: Batches, seed: int = 1) -> None:
        self.stack, self.way = stack, way
        self.adapted = Adapted(stack, way)
        parameters = self.adapted.masters
        device = parameters[0].device
        self.rate = way.rate
        if way.optimizer == "muon":
            self.optimizer: Any = Muon(parameters, way.rate)
        else:
            for p in parameters:
                p.requires_grad_(True)
            self.optimizer = torch.optim.AdamW(
                parameters,
                lr=way.rate,
                betas=(0.9, 0.95),
                weight_decay=0.0,
                fused=device.type == "cuda",
            )
        self.stream: Iterator[Batch] = batches.endless(seed)
        self.rng = np.random.default_rng(seed)
        self.steps = self.seen = self.answers = 0
        self.loss = 0.0

    def step(self, share: float) -> Tensor:
        """share: of the run that is done, for the rate: 4 % warm-up, then a cosine to 5 %."""
        factor = min(
            1.0, (share + 1e-3) / 0.04, 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * share))
        )
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * factor
        batch, way = next(self.stream), self.way
        layers = self.adapted.layers(trained=True)
        c, thought = self.stack.frozen_part(batch.ids, way.split)
        total = torch.zeros((), device=c.device)
        with torch.no_grad():
            start = self.stack.shape.layers - way.split.late
            teacher = self.stack.final(self.stack.run(thought, start, self.stack.shape.layers))
        taus = way.taus[self.rng.integers(len(way.taus))]
        for tau in taus:
            loss, count = self.distance(batch, tau, c, thought, teacher, layers)
            (loss / (count * len(taus))).backward()
            total += loss.detach() / (count * len(taus))
            self.answers += batch.answers
        self.adapted.take_gradients()
        torch.nn.utils.clip_grad_norm_(self.adapted.masters, 1.0)
        self.optimizer.step()
        self.steps += 1
        self.seen += batch.ids.numel() * len(taus)
        return total

    def distance(
        self,
        batch: Batch,
        tau: int,
        c: Tensor,
        thought: Tensor,
        teacher: Tensor,
        layers: list[Layer],
    ) -> tuple[Tensor, int]:
        """The loss summed over late-layer-only positions and cycle heads, and how many they are."""
        packing = packing_of(
            batch.lengths,
            batch.prompts,
            batch.ids.shape[1],
            tau,
            mask_counts(*batch.sizes, tau),
            c.device,
        )
        h = self.stack.late(c, thought, packing, layers, self.way.shared)
        count = packing.late + packing.heads
        index = packing.index[:count]
        rows, n = batch.ids.shape
        # the last position of a text has nothing to predict
        weight = (index % n < batch.lengths[index // n] - 1).float()
        loss = _Distance.apply(
            h[:count],
            teacher.flatten(0, 1)[index],
            weight,
            self.stack.weights.embedding,
            self.way.loss == "ce",
            (self.steps + 1) % TOLD == 0,
        )
        return loss, count

    def run(
        self,
        seconds: float,
        tell: Callable[[dict[str, Any]], None],
        judged: list[Batch],
        every: float,
        taus: tuple[int, ...],
        steps: int | None = None,
    ) -> dict[str, Any]:
        """Train for so many seconds; figures after each `every` of them, and the last."""
        began, paused, due, warm = time.monotonic(), 0.0, every, (0.0, 0)
        while True:
            spent = time.monotonic() - began - paused
            if spent >= seconds or (steps is not None and self.steps >= steps):
                break
            loss = self.step(min(1.0, spent / seconds if steps is None else self.steps / steps))
            if self.steps % TOLD == 0:
                self.loss = loss.item()
            elif self.steps <= 2:
                # the first updates allocate and choose kernels: the speed is of those after them
                loss.item()
                warm = (time.monotonic(), self.seen)
            if spent > due and spent < seconds * 0.95:
                pause = time.monotonic()
                tell(self.figures(judged, taus, spent))
                paused += time.monotonic() - pause
                due += every
        if judged and judged[0].ids.is_cuda:
            torch.cuda.synchronize()
        spent = time.monotonic() - began - paused
        speed = (self.seen - warm[1]) / max(1e-3, time.monotonic() - warm[0] - paused)
        figures = {
            **self.figures(judged, taus, spent),
            "last": True,
            "warm_positions_per_s": round(speed),
        }
        tell(figures)
        return figures

    def figures(self, judged: list[Batch], taus: tuple[int, ...], seconds: float) -> dict[str, Any]:
        found = judge(
            self.stack, self.adapted.layers(), self.way.split, self.way.shared, judged, taus
        )
        return {
            "way": self.way.name,
            "steps": self.steps,
            "positions": self.seen,
            "answer_positions": self.answers,
            "seconds": round(seconds, 1),
            "positions_per_s": round(self.seen / max(seconds, 1e-3)),
            "loss": self.loss,
            **found,
        }


@torch.no_grad()
def judge(
    stack: Stack,
    layers: list[Layer],
    split: Split,
    shared: bool,
    judged: list[Batch],
    taus: tuple[int, ...],
) -> dict[str, Any]:
    """On given texts, for each tau: late and full, the shares of positions whose argmax is the
    model's own at tau = 1; nats, the mean negative log-probability of the text's next tokens at
    full passes, beside the model's own at the same places."""
    sums = {tau: torch.zeros(6, device=stack.weights.embedding.device) for tau in taus}
    for batch in judged:
        c, thought = stack.frozen_part(batch.ids, split)
        start = stack.shape.layers - split.late
        teacher = stack.final(stack.run(thought, start, stack.shape.layers)).flatten(0, 1)
        rows, n = batch.ids.shape
        following = F.pad(batch.ids[:, 1:], (0, 1)).flatten()
        for tau in taus:
            packing = packing_of(
                batch.lengths, batch.prompts, n, tau, mask_counts(*batch.sizes, tau), c.device
            )
            h = stack.late(c, thought, packing, layers, shared)
            count = packing.late + packing.heads
            for at in range(0, count, CHUNK):
                index = packing.index[at : min(at + CHUNK, count)]
                weight = (index % n < batch.lengths[index // n] - 1).float()
                late = (torch.arange(at, at + len(index), device=c.device) < packing.late) * weight
                head = weight - late
                ours, own = (stack.logits(x) for x in (h[at : at + len(index)], teacher[index]))
                same = (ours.argmax(-1) == own.argmax(-1)).float()
                next_token = following[index][:, None]
                nats = [
                    -x.float().log_softmax(-1).gather(-1, next_token)[:, 0] for x in (ours, own)
                ]
                sums[tau] += torch.stack(
                    [
                        (same * late).sum(),
                        late.sum(),
                        (same * head).sum(),
                        head.sum(),
                        (nats[0] * head).sum(),
                        (nats[1] * head).sum(),
                    ]
                )
    found = {}
    for tau, values in sums.items():
        right, late, right_full, full, nats, own = values.tolist()
        found[f"C{tau}"] = {
            "late": round(right / late, 4) if late else None,
            "full": round(right_full / max(full, 1), 4),
            "nats": round(nats / max(full, 1), 4),
            "nats_own": round(own / max(full, 1), 4),
            "late_positions": int(late),
        }
    return found


@torch.no_grad()
def rounded(delta: Tensor, bits: int, group: int = 32) -> tuple[Tensor, Tensor]:
    """Symmetric levels and one float16 step for each group of a row: levels int8, steps."""
    most = 2 ** (bits - 1) - 1
    parts = delta.reshape(delta.shape[0], -1, group)
    step = (parts.abs().amax(-1, keepdim=True) / most).clamp(min=1e-8).half()
    levels = (parts / step.float()).round().clamp(-most - 1, most).to(torch.int8)
    return levels.reshape(delta.shape), step[..., 0]


@torch.no_grad()
def restored(levels: Tensor, step: Tensor, group: int = 32) -> Tensor:
    parts = levels.reshape(levels.shape[0], -1, group).float() * step.float()[..., None]
    return parts.reshape(levels.shape)


@torch.no_grad()
def truncated(delta: Tensor, rank: int) -> Tensor:
    """The best approximation of that rank, by the eigenvectors of the smaller Gram matrix."""
    if delta.shape[0] < delta.shape[1]:
        return truncated(delta.T, rank).T
    exact = delta.double()
    basis = torch.linalg.eigh(exact.T @ exact).eigenvectors[:, -rank:]
    return (exact @ basis @ basis.T).float()


@torch.no_grad()
def compressed(
    trainer: Trainer, judged: list[Batch], taus: tuple[int, ...], ranks: tuple[int, ...]
) -> dict[str, Any]:
    """The figures of what could ship: the difference rounded, or of low rank."""
    adapted, deltas = trainer.adapted, trainer.adapted.deltas()
    forms: dict[str, Callable[[Tensor], Tensor]] = {
        "int8, groups of 32": lambda d: restored(*rounded(d, 8)),
        "int4, groups of 32": lambda d: restored(*rounded(d, 4)),
        **{f"rank {rank}": lambda d, rank=rank: truncated(d, rank) for rank in ranks},
    }
    found = {}
    for name, form in forms.items():
        values = {key: adapted.base[key] + form(delta) for key, delta in deltas.items()}
        found[name] = judge(
            trainer.stack,
            adapted.layers(values),
            trainer.way.split,
            trainer.way.shared,
            judged,
            taus,
        )
    return found


@torch.no_grad()
def own_text(
    stack: Stack,
    layers: list[Layer],
    split: Split,
    shared: bool,
    tau: int,
    prompts: list[np.ndarray],
    count: int,
    ends: tuple[int, ...],
    deadline: float = math.inf,
) -> dict[str, Any]:
    """Greedy texts by the formula without a cache, then judged by the model at tau = 1.

    tau = 1 with the model's own layers is `ar`. audit: the share of late-layer-only tokens that
    `ar` would have chosen after the same text; nats: the text's mean negative log-probability
    under `ar`, an end mark that ends it included.
    """
    device = stack.weights.embedding.device
    room = max(map(len, prompts)) + count
    ids = torch.full((len(prompts), -(-room // 8) * 8), 2, dtype=torch.long, device=device)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.from_numpy(prompt.astype(np.int64)).to(device)
    begin = np.array([len(p) for p in prompts])
    first = torch.from_numpy(begin).to(device)
    lengths, rows = first.clone(), torch.arange(len(prompts), device=device)
    done, finals = torch.zeros_like(lengths, dtype=torch.bool), torch.tensor(ends, device=device)
    for i in range(count):
        n = min(ids.shape[1], -(-int(begin.max() + i + 1) // 8) * 8)
        c, thought = stack.frozen_part(ids[:, :n], split)
        sizes = (begin + i, begin)
        packing = packing_of(first + i, first, n, tau, mask_counts(*sizes, tau), device)
        h = packing.unpack(stack.late(c, thought, packing, layers, shared), len(prompts))
        token = stack.logits(h[rows, first + i - 1]).argmax(-1)
        ids[rows, first + i] = torch.where(done, 2, token)
        lengths += (~done).long()
        done |= (token[:, None] == finals).any(-1)
        if time.monotonic() > deadline:
            break
    n, written = ids.shape[1], i + 1
    same = late = nats = total = full_same = 0.0
    for at in range(0, len(prompts), 32):
        part = slice(at, at + 32)
        logits = stack.logits(stack.hidden(ids[part])[:, :-1])
        following = ids[part, 1:]
        place = torch.arange(1, n, device=device) - first[part, None]
        inside = (place >= 0) & (place < (lengths - first)[part, None])
        # the input before the answer's token j + 1 is at phase j: the first one is the prompt's
        is_late = inside & (place > 0) & ((place - 1) % tau != 0)
        right = logits.argmax(-1) == following
        log = torch.stack(
            [
                x.float().log_softmax(-1).gather(-1, y[:, None])[:, 0]
                for x, y in zip(logits, following)
            ]
        )
        same += (right & is_late).sum().item()
        late += is_late.sum().item()
        full_same += (right & inside & ~is_late).sum().item()
        total += inside.sum().item()
        nats -= (log * inside).sum().item()
    texts = [ids[r, b : int(end)].cpu().numpy() for r, b, end in zip(rows, begin, lengths)]
    return {
        "tau": tau,
        "texts": len(prompts),
        "steps": written,
        "tokens": int(total),
        "audit_late": round(same / late, 4) if late else None,
        "audit_full": round(full_same / max(total - late, 1), 4),
        "nats": round(nats / max(total, 1), 4),
        "repetition": round(float(np.mean([repetition(t) for t in texts])), 4),
        "first_text": texts[0].tolist(),
    }
