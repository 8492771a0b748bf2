"""A Qwen layer in few operations: what one position costs on a CPU is mostly the number of them.

Linears of the same input are joined where they are of one kind and not quantized by bitsandbytes. Joined matrices take the place of the layer's own, which become (transposed) views or rows
of them: nothing is held twice, and transformers' module stays usable as it is; whoever saves it takes `onednn.plain` of it. Others run as the modules that they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import ModuleType
from typing import Protocol, Union

import torch
from torch import Tensor, nn
from torch.backends.cuda import SDPAParams, can_use_cudnn_attention
from torch.nn import functional as F

from dmtd_demo.backbone import cpu_packed, cuda_packed, onednn
from dmtd_demo.backbone.cpu_packed import PackedLinear
from dmtd_demo.backbone.cuda_packed import CudaLinear
from dmtd_demo.backbone.onednn import BlockedLinear

# bytes up to which matrices in oneDNN's layout are joined: the call costs as much as it reads. Each
# of them alone would compute all
JOINED = 2**22
# keys from which on one float32 position on a CPU attends by two products: 3 to 14 % of a whole
# step of `classroom` after 1,024 tokens, nothing after 500
LONG = 512
# up to so many, the query heads of a group stand in line as positions: the mask is as many times as
# large
POSITIONS = 16


@dataclass(frozen=True)
class LayerParts:
    """The modules of one layer. q_norm, k_norm: per-head norm weights, [head size], or None (Qwen2). eps: of every RMSNorm."""

    index: int
    head_size: int
    eps: float
    q: nn.Module
    k: nn.Module
    v: nn.Module
    o: nn.Module
    gate: nn.Module
    up: nn.Module
    down: nn.Module
    before_attention: Tensor
    before_mlp: Tensor
    q_norm: Tensor | None
    k_norm: Tensor | None


class Appending(Protocol):
    """What a layer needs of a cache: `KVCache.append`. kernels: None, or `kernels.py`, and then the cache is a Placing."""

    kernels: ModuleType | None

    def append(self, new: Tensor, layer: int) -> tuple[Tensor, Tensor]: ...


class Placing(Protocol):
    """What the kernels need of one: they write keys and values to the places `at`, [q], of a layer's entries, [2 x kv heads, capacity, head size]; `held` returns what `append` would."""

    at: Tensor

    def entries(self, layer: int) -> Tensor: ...

    def held(self, layer: int) -> tuple[Tensor, Tensor]: ...


def can_attend_apart(queries: Tensor, keys: Tensor, mask: Tensor) -> bool:
    """Whether cuDNN takes the positions as a batch over the same keys: shapes as in FusedLayer._attention."""
    if not queries.is_cuda:
        return False
    keys = keys.expand(queries.shape[0], -1, -1, -1)
    return can_use_cudnn_attention(
        SDPAParams(queries[:, :, None], keys, keys, mask, 0.0, False, True)
    )


def can_fuse(parts: LayerParts) -> bool:
    """Linears of known kinds on one device, none of them wrapped by hooks."""
    linears = (parts.q, parts.k, parts.v, parts.o, parts.gate, parts.up, parts.down)
    return (
        all(_is_known(type(linear)) and not hasattr(linear, "_hf_hook") for linear in linears)
        and len({(linear.weight.device, linear.weight.dtype) for linear in linears}) == 1
        and parts.o.bias is None
        and parts.gate.bias is None
        and parts.down.bias is None
    )


def _is_known(kind: type) -> bool:
    return (
        kind is nn.Linear
        or issubclass(kind, (PackedLinear, BlockedLinear))
        or kind.__module__.startswith("bitsandbytes.")
    )


class FusedLayer:
    """The same function as transformers' decoder layer, over the new positions of one text with a cache."""

    @torch.no_grad()
    def __init__(self, parts: LayerParts) -> None:
        self.index, self.head_size = parts.index, parts.head_size
        self.query_heads = parts.q.out_features // parts.head_size
        self.kv_heads = parts.k.out_features // parts.head_size
        self.rotated_heads = self.query_heads + self.kv_heads
        self.group = self.query_heads // self.kv_heads
        self.qkv, self.o, self.gate_up, self.down = (
            _joined(parts.q, parts.k, parts.v),
            _joined(parts.o),
            _joined(parts.gate, parts.up, gated=True),
            _joined(parts.down),
        )
        self.before_attention, self.before_mlp = (
            FusedNorm(parts.before_attention, parts.eps),
            FusedNorm(parts.before_mlp, parts.eps),
        )
        self.by_products = (
            parts.q.weight.dtype == torch.float32 and parts.q.weight.device.type == "cpu"
        )
        self.qk_norm = None
        # one weight for each head's norm, queries first, [heads, head size]
        if parts.q_norm is not None and parts.k_norm is not None:
            self.qk_norm = FusedNorm(
                torch.cat(
                    [
                        parts.q_norm.expand(self.query_heads, -1),
                        parts.k_norm.expand(self.kv_heads, -1),
                    ]
                ),
                parts.eps,
            )

    def __call__(
        self, h: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: Appending
    ) -> Tensor:
        """h [q, hidden]; cos, sin [q, 1, head size], sin with its first half negated. mask, -inf where not seen: [group x q, past + q] up to POSITIONS, then [q, past + q];
        [q, 1, 1, past + q] where positions attend apart (`can_attend_apart`); None: one position, or nothing came before them."""
        if cache.kernels is not None:
            return self._by_kernels(h, cos, sin, mask, cache, cache.kernels)
        positions = h.shape[0]
        heads = self.qkv(self.before_attention(h)).view(positions, -1, self.head_size)
        rotated = heads[:, : self.rotated_heads]
        qk = rotated if self.qk_norm is None else self.qk_norm(rotated)
        turned = qk.roll(self.head_size // 2, -1).mul_(sin)  # its halves exchanged
        # in place, so that keys and values lie side by side
        torch.addcmul(turned, qk, cos, out=rotated)
        keys, values = cache.append(heads[:, self.query_heads :], self.index)
        h = self.o.add_to(h, self._attention(heads[:, : self.query_heads], keys, values, mask))
        inner = self.gate_up(self.before_mlp(h))
        if not self.gate_up.gated:
            gate, up = inner.chunk(2, dim=-1)
            inner = F.silu(gate).mul_(up)
        return self.down.add_to(h, inner)

    def _by_kernels(
        self,
        h: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor | None,
        cache: Placing,
        kernels: ModuleType,
    ) -> Tensor:
        """The same, with what lies between the products done by them."""
        before, norm, after = self.before_attention, self.qk_norm, self.before_mlp
        heads = self.qkv(kernels.normed(h, before.weight, before.eps)).view(
            h.shape[0], -1, self.head_size
        )
        queries = kernels.rotate(
            heads,
            cos,
            sin,
            norm and norm.weight,
            before.eps,
            self.query_heads,
            cache.entries(self.index),
            cache.at,
        )
        h = self.o.add_to(h, self._attention(queries, *cache.held(self.index), mask))
        inner = self.gate_up(kernels.normed(h, after.weight, after.eps))
        return self.down.add_to(h, inner if self.gate_up.gated else kernels.gated(inner))

    def _attention(
        self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None
    ) -> Tensor:
        """queries [q, heads, head size]; keys, values [1, kv heads, past + q, head size]. Returns [q, heads x head size]."""
        positions = queries.shape[0]
        if positions > POSITIONS:
            keys, values = (
                keys.repeat_interleave(self.group, dim=1),
                values.repeat_interleave(self.group, dim=1),
            )
            seen = F.scaled_dot_product_attention(
                queries.transpose(0, 1)[None], keys, values, attn_mask=mask, is_causal=mask is None
            )
            return seen[0].transpose(0, 1).reshape(positions, -1)
        # a batch over the same keys: cuDNN then divides those among its blocks
        if mask is not None and mask.dim() == 4:
            keys, values = keys.expand(positions, -1, -1, -1), values.expand(positions, -1, -1, -1)
            return torch.ops.aten._scaled_dot_product_cudnn_attention(
                queries[:, :, None], keys, values, mask, False
            )[0].reshape(positions, -1)
        # the query heads of a group share their keys: they stand in line as positions, [1, kv heads, group x q, head size]
        queries = queries.view(positions, self.kv_heads, self.group, self.head_size)
        if positions == 1 and mask is None and self.by_products and keys.shape[2] >= LONG:
            weights = torch.bmm(queries[0] * self.head_size**-0.5, keys[0].transpose(1, 2)).softmax(
                -1
            )
            return torch.bmm(weights, values[0]).view(1, -1)
        if positions > 1:
            queries = queries.permute(1, 2, 0, 3).reshape(1, self.kv_heads, -1, self.head_size)
        seen = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        if positions > 1:
            seen = seen.view(self.kv_heads, self.group, positions, self.head_size).permute(
                2, 0, 1, 3
            )
        return seen.reshape(positions, -1)


_Linear = Union["_Dense", "_Kernel", "_Several"]


def _joined(*linears: nn.Module, gated: bool = False) -> _Linear:
    """One for linears of the same input. gated: a gate and its up, which some kinds apply by the way."""
    kinds = {type(linear) for linear in linears}
    if kinds == {nn.Linear}:
        return _Dense(*linears)
    whole: nn.Module | None = None
    if len(linears) == 1 and isinstance(linears[0], (PackedLinear, BlockedLinear)):
        whole = linears[0]
    elif len(kinds) == 1 and isinstance(linears[0], CudaLinear):
        whole = cuda_packed.joined(*linears, gated=gated)
    elif len(kinds) == 1 and isinstance(linears[0], PackedLinear):
        whole = cpu_packed.joined(*linears)
    elif (
        kinds == {BlockedLinear}
        and sum(linear.weight.numel() * linear.weight.element_size() for linear in linears)
        <= JOINED
    ):
        whole = onednn.joined(*linears)
    return _Several(*linears) if whole is None else _Kernel(whole)


class _Dense:
    """One matrix for dense linears. In float32 on a CPU [in, out], which one position reads from memory in 1.4 ms where [out, in] took 2.4
    (docs/performance.md); otherwise [out, in]."""

    gated = False

    def __init__(self, *linears: nn.Linear) -> None:
        weight = linears[0].weight
        turned = weight.dtype == torch.float32 and weight.device.type == "cpu"
        joined = (
            torch.cat([linear.weight.t() for linear in linears], dim=1)
            if turned
            else torch.cat([linear.weight for linear in linears]).t()
        )
        self.weight = joined  # [in, out] to who multiplies by it
        self.bias = (
            torch.cat([linear.bias for linear in linears]) if linears[0].bias is not None else None
        )
        start = 0
        for linear in linears:  # their own parameters become views
            stop = start + linear.out_features
            linear.weight.data = joined[:, start:stop].t()
            if self.bias is not None:
                linear.bias.data = self.bias[start:stop]
            start = stop

    def __call__(self, x: Tensor) -> Tensor:
        return (
            torch.mm(x, self.weight)
            if self.bias is None
            else torch.addmm(self.bias, x, self.weight)
        )

    def add_to(self, h: Tensor, x: Tensor) -> Tensor:
        # as a bias, which cuBLAS adds by the way; a matrix would be copied first
        if h.is_cuda and h.shape[0] == 1:
            h = h[0]
        return torch.addmm(h, x, self.weight)


class _Kernel:
    """A packed or laid-out linear by its kernel alone: as a module it would take 3 to 5 µs more, with every call."""

    def __init__(self, linear: PackedLinear | BlockedLinear) -> None:
        self.weight = linear.weight
        self._kernel = linear.kernel()
        self._added = linear.added if isinstance(linear, CudaLinear) else None  # with a residual
        self.gated = isinstance(linear, CudaLinear) and linear.gated

    def __call__(self, x: Tensor) -> Tensor:
        return self._kernel(x)

    def add_to(self, h: Tensor, x: Tensor) -> Tensor:
        return self._kernel(x).add_(h) if self._added is None else self._added(x, h)


class _Several:
    """Linears of the same input that cannot be joined, one after another."""

    gated = False

    def __init__(self, *linears: nn.Module) -> None:
        self.linears = linears

    def __call__(self, x: Tensor) -> Tensor:
        return torch.cat([linear(x) for linear in self.linears], dim=-1)

    def add_to(self, h: Tensor, x: Tensor) -> Tensor:
        return h + self.linears[0](x)


class FusedNorm:
    """RMSNorm over the last dimension. On a CPU in float32, by the vector norm of x with one more entry for eps: a third to half of the time of F.rms_norm, which is many operations there."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        size = weight.shape[-1]
        self.weight, self.eps, self.size = weight, eps, (size,)
        self.scaled = weight.float() * math.sqrt(size) if weight.device.type == "cpu" else None
        self.least = torch.tensor(math.sqrt(size * eps), device=weight.device)

    def __call__(self, x: Tensor) -> Tensor:
        if self.scaled is None:
            return F.rms_norm(x, self.size, None, self.eps) * self.weight
        # asked, since a conversion that changes nothing takes half a microsecond: one hundredth of
        # a step of `classroom`
        if x.dtype != torch.float32:
            return self(x.float()).to(x.dtype)
        return torch.mul(x, self.scaled).div_(
            torch.linalg.vector_norm(x, 2, -1, True).hypot_(self.least)
        )
