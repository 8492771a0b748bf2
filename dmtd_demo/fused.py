"""A Qwen layer over dense or packed weights in few operations: what one position costs on a CPU is mostly the number of them.

The fused matrices take the place of the layer's own, whose parameters become views of them: nothing is held twice, and transformers' module
stays usable as it is. Layers that bitsandbytes quantized cannot be fused and run as transformers' own.
"""
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dmtd_demo.cache import KVCache
from dmtd_demo.packed import PackedLinear, joined

POSITIONS = 16   # up to so many at once; longer passes are bound by arithmetic


@dataclass(frozen=True)
class LayerParts:
    """The modules of one layer. q_norm, k_norm: per-head norm weights, [head size], or None (Qwen2). eps: of every RMSNorm."""
    index: int
    head_size: int
    eps: float
    q: nn.Linear | PackedLinear
    k: nn.Linear | PackedLinear
    v: nn.Linear | PackedLinear
    o: nn.Linear | PackedLinear
    gate: nn.Linear | PackedLinear
    up: nn.Linear | PackedLinear
    down: nn.Linear | PackedLinear
    before_attention: Tensor
    before_mlp: Tensor
    q_norm: Tensor | None
    k_norm: Tensor | None


def can_fuse(parts: LayerParts) -> bool:
    """Dense or packed linears on one device, none of them wrapped by hooks."""
    linears = (parts.q, parts.k, parts.v, parts.o, parts.gate, parts.up, parts.down)
    return (type(parts.q) in (nn.Linear, PackedLinear) and all(type(linear) is type(parts.q) and not hasattr(linear, "_hf_hook") for linear in linears)
            and len({(linear.weight.device, linear.weight.dtype) for linear in linears}) == 1 and parts.o.bias is None and parts.gate.bias is None and parts.down.bias is None)


class FusedLayer:
    """The same function as transformers' decoder layer, over the new positions of one text with a cache."""

    @torch.no_grad()
    def __init__(self, parts: LayerParts) -> None:
        self.index, self.head_size, self.eps = parts.index, parts.head_size, parts.eps
        self.query_heads = parts.q.out_features // parts.head_size
        self.kv_heads = parts.k.out_features // parts.head_size
        self.group = self.query_heads // self.kv_heads
        self.packed = type(parts.q) is PackedLinear
        if self.packed:
            self.qkv, self.gate_up, self.o, self.down = joined(parts.q, parts.k, parts.v), joined(parts.gate, parts.up), parts.o, parts.down
        else:
            self.qkv, self.qkv_bias = _joined(parts.q, parts.k, parts.v)
            self.gate_up, _ = _joined(parts.gate, parts.up)
            self.o, self.down = parts.o.weight.t(), parts.down.weight.t()
        self.before_attention, self.before_mlp = parts.before_attention, parts.before_mlp
        self.qk_norm = None
        if parts.q_norm is not None and parts.k_norm is not None:   # one weight for each head's norm, queries first, [heads, head size]
            self.qk_norm = torch.cat([parts.q_norm.expand(self.query_heads, -1), parts.k_norm.expand(self.kv_heads, -1)])

    def __call__(self, h: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: KVCache) -> Tensor:
        """h [q, hidden]; cos, sin [q, 1, head size], sin with its first half negated; mask [group x q, past + q] bool, True where seen; None: everything."""
        positions = h.shape[0]
        rotated_heads = self.query_heads + self.kv_heads
        x = F.rms_norm(h, h.shape[-1:], self.before_attention, self.eps)
        heads = (self.qkv(x) if self.packed else F.linear(x, self.qkv, self.qkv_bias)).view(positions, -1, self.head_size)
        qk = heads[:, :rotated_heads]
        if self.qk_norm is not None:
            qk = F.rms_norm(qk, qk.shape[-1:], None, self.eps) * self.qk_norm
        half = self.head_size // 2
        qk = torch.addcmul(qk * cos, torch.cat((qk[..., half:], qk[..., :half]), dim=-1), sin)
        keys, values = cache.update(qk[:, self.query_heads:].transpose(0, 1)[None], heads[:, rotated_heads:].transpose(0, 1)[None], self.index)
        # the query heads of a group share their keys: they stand in line as positions, [1, kv heads, group x q, head size]
        queries = qk[:, :self.query_heads].view(positions, self.kv_heads, self.group, self.head_size).permute(1, 2, 0, 3).reshape(1, self.kv_heads, -1, self.head_size)
        seen = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        seen = seen.view(self.kv_heads, self.group, positions, self.head_size).permute(2, 0, 1, 3).reshape(positions, -1)
        h = h + self.o(seen) if self.packed else torch.addmm(h, seen, self.o)
        x = F.rms_norm(h, h.shape[-1:], self.before_mlp, self.eps)
        gate, up = (self.gate_up(x) if self.packed else F.linear(x, self.gate_up)).chunk(2, dim=-1)
        inner = F.silu(gate).mul_(up)
        return h + self.down(inner) if self.packed else torch.addmm(h, inner, self.down)


def _joined(*linears: nn.Linear) -> tuple[Tensor, Tensor | None]:
    """One matrix (and bias) for all of them, of which their own parameters become views."""
    weight = torch.cat([linear.weight for linear in linears])
    bias = torch.cat([linear.bias for linear in linears]) if linears[0].bias is not None else None
    start = 0
    for linear in linears:
        stop = start + linear.out_features
        linear.weight.data = weight[start:stop]
        if bias is not None:
            linear.bias.data = bias[start:stop]
        start = stop
    return weight, bias
