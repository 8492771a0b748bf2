"""MTP heads on the frozen model's last hidden states: Medusa's form, and one fed with drafts.

The second kind has the form and the tensor names of Qwen3.5's own MTP module: a projection of
[norm(E[token]); norm(state)], one decoder layer with its own keys and values, a norm; it is applied
k times, each time on its last output and the token drafted before.
"""

from __future__ import annotations

import math
import time
from typing import Any, Callable

import torch
from corpus import Batch, Batches
from model import Stack, rotate, swiglu
from torch import Tensor, nn
from torch.nn import functional as F

from dmtd_demo.models.addons import CollocationLengthPredictor, MTPHeads, SpanGate

K = 4
# relative weight of depth i: FALL ** (i - 1)
FALL = 0.8
CHUNK = 8192


class FeedBackHead(nn.Module):
    """Drafts tokens n + 2 … n + 1 + K; norms are plain weights (not 1 + weight).

    ffn: its width.
    """

    def __init__(self, stack: Stack, ffn: int = 1280) -> None:
        super().__init__()
        self.shape = s = stack.shape
        ffn = min(ffn, s.ffn)
        last, table = stack.weights.layers[-1], stack.weights.embedding

        def weight(value: Tensor) -> nn.Module:
            holder = nn.Module()
            holder.weight = nn.Parameter(value.detach().float().clone())
            return holder

        one = torch.ones(s.hidden, device=table.device)
        eye = torch.eye(s.hidden, device=table.device)
        self.pre_fc_norm_embedding, self.pre_fc_norm_hidden = weight(one), weight(one)
        # begins as the hidden state alone, through the model's own last layer
        self.fc = weight(torch.cat([eye * 0.1, eye], 1))
        q = s.heads * s.head_dim
        kv = s.kv_heads * s.head_dim
        layer, attention, mlp = nn.Module(), nn.Module(), nn.Module()
        attention.q_proj, attention.k_proj = weight(last.qkv[:q]), weight(last.qkv[q : q + kv])
        attention.v_proj, attention.o_proj = weight(last.qkv[q + kv :]), weight(last.o)
        mlp.gate_proj = weight(last.gate_up[:ffn])
        mlp.up_proj = weight(last.gate_up[s.ffn : s.ffn + ffn])
        mlp.down_proj = weight(last.down[:, :ffn])
        layer.input_layernorm = weight(last.norm1)
        layer.post_attention_layernorm = weight(last.norm2)
        layer.self_attn, layer.mlp = attention, mlp
        self.layers = nn.ModuleList([layer])
        self.norm = weight(stack.weights.norm)

    def forward(self, stack: Stack, ids: Tensor, h: Tensor, k: int = K) -> list[Tensor]:
        """ids, h of whole rows; states m_1..m_k [rows, n, hidden]: m_d at t reads token t + d (the
        text's own) and predicts token t + d + 1. Tokens past the row's end read as 0."""
        s, dtype = self.shape, h.dtype
        rows, n, _ = h.shape
        w = {name: p.to(dtype) for name, p in self.named_parameters()}
        at = torch.arange(n, device=h.device)
        hidden = at[:, None] < at

        def norm(x: Tensor, name: str) -> Tensor:
            return F.rms_norm(x, (s.hidden,), w[name + ".weight"], s.eps)

        qkv_weight = torch.cat([w[f"layers.0.self_attn.{x}_proj.weight"] for x in "qkv"])
        gate_up = torch.cat([w["layers.0.mlp.gate_proj.weight"], w["layers.0.mlp.up_proj.weight"]])
        state, states, chain = h, [], []
        for d in range(1, k + 1):
            token = stack.embed(F.pad(ids[:, d:], (0, d)))
            pair = [norm(token, "pre_fc_norm_embedding"), norm(state, "pre_fc_norm_hidden")]
            u = F.linear(torch.cat(pair, -1), w["fc.weight"])
            qkv = F.linear(norm(u, "layers.0.input_layernorm"), qkv_weight)
            qkv = qkv.view(rows, n, -1, s.head_dim)
            turned = s.heads + s.kv_heads
            place = slice(d - 1, d - 1 + n)
            qk = rotate(
                qkv[:, :, :turned], stack.rotary.cos[place, None], stack.rotary.sin[place, None]
            )
            q = qk[:, :, : s.heads].transpose(1, 2)
            key, value = (
                x.repeat_interleave(s.heads // s.kv_heads, 2).transpose(1, 2)
                for x in (qk[:, :, s.heads :], qkv[:, :, turned:])
            )
            if d == 1:
                mixed = F.scaled_dot_product_attention(q, key, value, is_causal=True)
                first = (key, value)
            else:
                chain.append((key, value))
                scores = (q @ first[0].transpose(2, 3)).masked_fill(hidden, -1e30)
                more = [(q * its).sum(-1, keepdim=True) for its, _ in chain]
                share = (torch.cat([scores, *more], -1) * s.head_dim**-0.5).softmax(-1)
                mixed = share[..., :n] @ first[1]
                for j, (_, its) in enumerate(chain):
                    mixed = mixed + share[..., n + j, None] * its
            x = u + F.linear(
                mixed.transpose(1, 2).flatten(2), w["layers.0.self_attn.o_proj.weight"]
            )
            inner = F.linear(norm(x, "layers.0.post_attention_layernorm"), gate_up)
            x = x + F.linear(swiglu(inner), w["layers.0.mlp.down_proj.weight"])
            state = norm(x, "norm")
            states.append(state)
        return states


class HeadTrainer:
    """Medusa's heads, head 0 and the feed-back head, each update on the same positions.

    vocabulary: the ids that the training's softmax ranges over, the frequent ones; judged over all.
    """

    def __init__(
        self, stack: Stack, batches: Batches, vocabulary: Tensor, share: float = 0.5, seed: int = 2
    ) -> None:
        self.stack = stack
        device = stack.weights.embedding.device
        self.medusa = MTPHeads(stack.shape.hidden, K).to(device)
        self.head0 = MTPHeads(stack.shape.hidden, 1).to(device)
        self.fed = FeedBackHead(stack).to(device)
        self.table = stack.weights.embedding[vocabulary]
        self.place = torch.full((stack.shape.vocabulary,), -100, device=device)
        self.place[vocabulary] = torch.arange(len(vocabulary), device=device)
        self.share, self.stream = share, batches.endless(seed)
        small = [*self.medusa.parameters(), *self.head0.parameters()]
        self.groups = [
            {"params": small, "lr": 2e-3, "base": 2e-3},
            {"params": [*self.fed.parameters()], "lr": 1e-3, "base": 1e-3},
        ]
        self.optimizer = torch.optim.AdamW(
            self.groups, betas=(0.9, 0.95), weight_decay=0.01, fused=device.type == "cuda"
        )
        self.steps = self.seen = 0

    def step(self, share: float) -> Tensor:
        """share: of the run that is done: 3 % warm-up, then a cosine."""
        factor = min(
            1.0, (share + 1e-3) / 0.03, 0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * share))
        )
        for group in self.optimizer.param_groups:
            group["lr"] = group["base"] * factor
        batch = next(self.stream)
        h = self.stack.hidden(batch.ids)
        rows, n = batch.ids.shape
        device = h.device
        at = torch.arange(n, device=device)
        answer = (at >= batch.prompts[:, None] - 1) & (at < batch.lengths[:, None] - 1)
        # a fixed count of positions, so that nothing waits for the device
        count = max(1, int(batch.answers * self.share))
        order = torch.rand(rows * n, device=device) + (~answer).flatten() * 2
        index = order.topk(count, largest=False).indices
        wanted = F.pad(batch.ids, (0, K + 2))
        row, column = index // n, index % n

        def targets(by: int) -> Tensor:
            found = self.place[wanted[row, column + by]]
            return torch.where(column + by < batch.lengths[row], found, -100)

        flat = h.flatten(0, 1)[index]
        with torch.autocast(device.type, dtype=h.dtype, enabled=h.dtype != torch.float32):
            medusa, head0 = self.medusa(flat), self.head0(flat)
        fed = [m.flatten(0, 1)[index] for m in self.fed(self.stack, batch.ids, h)]
        total = self._loss(head0[:, 0], targets(1))
        for i in range(1, K + 1):
            goal, part = targets(1 + i), FALL ** (i - 1)
            total = total + part * self._loss(medusa[:, i - 1], goal)
            total = total + part * self._loss(fed[i - 1], goal)
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        for group in self.optimizer.param_groups:
            torch.nn.utils.clip_grad_norm_(group["params"], 1.0)
        self.optimizer.step()
        self.steps += 1
        self.seen += count
        return total.detach()

    def _loss(self, state: Tensor, goal: Tensor) -> Tensor:
        logits = F.linear(state.to(self.table.dtype), self.table)
        return F.cross_entropy(logits.float(), goal, ignore_index=-100)

    def run(
        self,
        seconds: float,
        tell: Callable[[dict[str, Any]], None],
        judged: list[Batch],
        every: float,
        steps: int | None = None,
    ) -> dict[str, Any]:
        began, paused, due, loss = time.monotonic(), 0.0, every, 0.0
        while True:
            spent = time.monotonic() - began - paused
            if spent >= seconds or (steps is not None and self.steps >= steps):
                break
            last = self.step(min(1.0, spent / seconds if steps is None else self.steps / steps))
            if self.steps % 8 == 0:
                loss = last.item()
            if spent > due and spent < seconds * 0.9:
                pause = time.monotonic()
                tell(self._figures(judged, spent, loss))
                paused += time.monotonic() - pause
                due += every
        spent = time.monotonic() - began - paused
        figures = {**self._figures(judged, spent, loss), "last": True}
        tell(figures)
        return figures

    def _figures(self, judged: list[Batch], seconds: float, loss: float) -> dict[str, Any]:
        return {
            "heads_steps": self.steps,
            "answer_positions": self.seen,
            "seconds": round(seconds, 1),
            "loss": loss,
            "positions_per_s": round(self.seen / max(seconds, 1e-3)),
            **judge_heads(self, judged),
        }

    @torch.no_grad()
    def right(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """At every answer position: h; which guesses of Medusa's heads are the text's own tokens,
        [.., K + 1], head 0's last; the same of the feed-back head, [.., K]; whether all K + 1 next
        tokens are in the text. Over the whole vocabulary; past the end every guess is right."""
        h = self.stack.hidden(batch.ids)
        rows, n = batch.ids.shape
        at = torch.arange(n, device=h.device)
        answer = (at >= batch.prompts[:, None] - 1) & (at < batch.lengths[:, None] - 1)
        index = answer.flatten().nonzero()[:, 0]
        row, column = index // n, index % n
        wanted = F.pad(batch.ids, (0, K + 2))
        fed = [m.flatten(0, 1)[index] for m in self.fed(self.stack, batch.ids, h)]
        flat = h.flatten(0, 1)[index]
        with torch.autocast(h.device.type, dtype=h.dtype, enabled=h.dtype != torch.float32):
            medusa = [*self.medusa(flat).unbind(1), self.head0(flat)[:, 0]]

        def check(state: Tensor, by: int) -> Tensor:
            guess = torch.cat(
                [self.stack.logits(x.to(h.dtype)).argmax(-1) for x in state.split(CHUNK)]
            )
            past = column + by >= batch.lengths[row]
            return (guess == wanted[row, column + by]) | past

        offsets = [*range(2, K + 2), 1]
        return (
            flat,
            torch.stack([check(x, by) for x, by in zip(medusa, offsets)], -1),
            torch.stack([check(x, by) for x, by in zip(fed, offsets)], -1),
            (column + K + 1 < batch.lengths[row]),
        )


@torch.no_grad()
def judge_heads(trainer: HeadTrainer, judged: list[Batch]) -> dict[str, Any]:
    """Accuracy by depth and the mean length of the right prefix, at positions whose K + 1 next
    tokens are all in the text."""
    parts: dict[str, list[Tensor]] = {"medusa": [], "fed_back": [], "head0": []}
    for batch in judged:
        _, medusa, fed, inside = trainer.right(batch)
        parts["medusa"].append(medusa[inside, :K])
        parts["fed_back"].append(fed[inside])
        parts["head0"].append(medusa[inside, K:])
    found = {}
    for name, kept in parts.items():
        right = torch.cat(kept).float()
        found[name] = {
            "accuracy": [round(x, 4) for x in right.mean(0).tolist()],
            "prefix": round(right.cumprod(-1).sum(-1).mean().item(), 4),
        }
    return found


def train_small(
    trainer: HeadTrainer,
    batches: list[Batch],
    judged: list[Batch],
    seconds: float,
    steps: int | None = None,
) -> tuple[dict[str, nn.Module], dict[str, Any]]:
    """CLP for k = 4 and 2, and the gate, on Medusa's heads, in this project's recipe."""

    def gathered(found: list[Batch]) -> tuple[Tensor, Tensor]:
        pairs = [trainer.right(batch)[:2] for batch in found]
        return tuple(torch.cat(column) for column in zip(*pairs))

    h, right = gathered(batches)
    h_held, right_held = gathered(judged)
    hidden, device = h.shape[1], h.device
    modules: dict[str, nn.Module] = {
        "clp": CollocationLengthPredictor(hidden, 4),
        "clp2": CollocationLengthPredictor(hidden, 2),
        "gate": SpanGate(hidden, 4),
    }
    facts: dict[str, Any] = {"positions": len(h)}
    for name, module in modules.items():
        module.to(device)
        rate, k = (2e-3 if name == "gate" else 5e-3), module.k
        optimizer = torch.optim.AdamW(
            module.parameters(), lr=rate, weight_decay=0.01 if name == "gate" else 0.0
        )
        labels = right[:, :k].long().cumprod(-1).sum(-1)
        held = right_held[:, :k].long().cumprod(-1).sum(-1)
        counts = torch.bincount(labels, minlength=k + 1) + 1
        weight = (counts.sum() / counts) ** 0.1
        began, done = time.monotonic(), 0
        total = seconds / len(modules)
        while (spent := time.monotonic() - began) < total and (steps is None or done < steps):
            share = spent / total if steps is None else done / steps
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1.0, 20 * share + 0.01, 5.05 * (1 - share) + 0.01)
            chosen = torch.randint(len(h), (8192,), device=device)
            out = module(h[chosen].float())
            if name == "gate":
                loss = F.binary_cross_entropy_with_logits(out, right[chosen, :4].float())
            else:
                loss = F.cross_entropy(out, labels[chosen], weight=weight)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            done += 1
            if done % 16 == 0:
                loss.item()
        with torch.no_grad():
            out = module(h_held.float())
            if name == "gate":
                same = ((out > 0) == right_held[:, :4]).float().mean().item()
                facts[name] = {"updates": done, "accuracy": round(same, 4)}
                continue
            chance = out.softmax(-1).flip(-1).cumsum(-1).flip(-1)[:, 1:]
            facts[name] = {
                "updates": done,
                "accuracy": round((out.argmax(-1) == held).float().mean().item(), 4),
            }
            # what a threshold would accept, and how much of it is right
            for threshold in (0.5, 0.7, 0.8, 0.9, 0.95, 0.97, 0.99):
                taken = (chance >= threshold).long().cumprod(-1).sum(-1)
                good = torch.minimum(taken, held).sum() / taken.sum().clamp(min=1)
                facts[name][f"at {threshold}"] = [
                    round(1 + taken.float().mean().item(), 4),
                    round(good.item(), 4),
                ]
    return modules, facts
