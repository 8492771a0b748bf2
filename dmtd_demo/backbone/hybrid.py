"""The layers of Qwen3.5 over the new positions of one text: three of four are recurrent.

Written over the parameters of transformers' own modules, whose protocol for recurrent caches has
changed between its versions; the functions are those of its `qwen3_5` (Gated DeltaNet, attention
with an output gate, RoPE over a part of each head).
"""

from __future__ import annotations

from typing import Any, Sequence, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dmtd_demo.backbone.cache import KVCache
from dmtd_demo.backbone.fused import GroupedAttention
from dmtd_demo.backbone.linears import Several, together
from dmtd_demo.backbone.norms import CentredNorm, FusedNorm
from dmtd_demo.backbone.recurrent import RecurrentState, Write, chunk, step

# inside the root over a key's or a query's squares
L2_EPS = 1e-6

# a decoder layer of transformers' `qwen3_5`, whose parts have no types that could be named
Qwen35Layer: TypeAlias = Any


class HybridCache(KVCache):
    """A cache of one text whose entries are keys and values, or a recurrent layer's state."""

    def __init__(self, recurrent: Sequence[bool], capacity: int = 256) -> None:
        super().__init__(len(recurrent), capacity)
        self.states = {i: RecurrentState() for i, is_one in enumerate(recurrent) if is_one}

    def length(self, layer: int) -> int:
        """Return how many positions this layer has taken in."""
        state = self.states.get(layer)
        return super().length(layer) if state is None else state.length

    def keep(self, length: int | None) -> None:
        """Make a rewind to `length` or a later position possible, for recurrent layers too."""
        for state in self.states.values():
            state.keep(length)

    def crop(self, length: int, start: int = 0, stop: int | None = None) -> None:
        """Forget every position from `length` on, in the layers [start, stop).

        Recurrent layers run their rule again over what is kept of the pass that is cut. Raises
        ValueError where `keep` was not told before the passes that are cropped.
        """
        super().crop(length, start, stop)
        for layer in range(start, len(self._lengths) if stop is None else stop):
            if layer in self.states:
                self.states[layer].rewind(length)

    def nbytes(self) -> int:
        """Return the bytes of keys, values, states and logs."""
        return super().nbytes() + sum(state.nbytes() for state in self.states.values())


class _HybridLayer:
    """The norms and the MLP of either kind of layer, and the device on which they lie.

    group: query heads that share a key in attention.
    """

    def __init__(self, module: Qwen35Layer, index: int, group: int) -> None:
        before, after, mlp = module.input_layernorm, module.post_attention_layernorm, module.mlp
        self.index, self.group = index, group
        self.device = before.weight.device
        self.before = CentredNorm(before.weight, before.eps)
        self.before_mlp = CentredNorm(after.weight, after.eps)
        self.gate_up = together(mlp.gate_proj, mlp.up_proj, gated=True)
        self.down = together(mlp.down_proj)

    def _mlp(self, h: Tensor) -> Tensor:
        inner = self.gate_up(self.before_mlp(h))
        if not self.gate_up.gated:
            gate, up = inner.chunk(2, dim=-1)
            inner = F.silu(gate).mul_(up)
        return self.down.add_to(h, inner)


class RecurrentLayer(_HybridLayer):
    """A layer of Gated DeltaNet and an MLP."""

    @torch.no_grad()
    def __init__(self, module: Qwen35Layer, index: int, group: int) -> None:
        super().__init__(module, index, group)
        mixer = module.linear_attn
        self.key_heads, self.key_size = mixer.num_k_heads, mixer.head_k_dim
        self.heads, self.value_size = mixer.num_v_heads, mixer.head_v_dim
        self.channels = 2 * self.key_heads * self.key_size + self.heads * self.value_size
        small, large = (mixer.in_proj_b, mixer.in_proj_a), (mixer.in_proj_qkv, mixer.in_proj_z)
        # quantization leaves the two small projections as they are
        one_kind = len({type(linear) for linear in (*small, *large)}) == 1
        self.projections = (
            [together(*large, *small)] if one_kind else [together(*large), together(*small)]
        )
        self.out = together(mixer.out_proj)
        self.kernel = mixer.conv1d.weight[:, 0].t().float().contiguous()  # [taps, channels]
        self.decay = -mixer.A_log.float().exp()
        self.dt_bias = mixer.dt_bias.float()
        self.norm_weight = mixer.norm.weight.float()
        eps = mixer.norm.variance_epsilon
        self.norm = FusedNorm(self.norm_weight, eps)
        self.query_scale = self.key_size**-0.5

    def __call__(
        self, h: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: HybridCache
    ) -> Tensor:
        """Run the layer over h [q, hidden], and take the positions into its state.

        cos, sin and mask are what attention needs; nothing here reads them.
        """
        h = h.to(self.device)
        state = cache.states[self.index]
        n = h.shape[0]
        inputs, z, strengths, decays = self._projected(self.before(h))
        if state.window is None or state.state is None:
            state.window = inputs.new_zeros((self.kernel.shape[0] - 1, self.channels))
            state.state = self.kernel.new_zeros((self.heads, self.key_size, self.value_size))
        extended = torch.cat((state.window, inputs))
        queries, write = self._read(self._convolved(extended, n), strengths, decays)
        out, after = (
            step(state.state, queries, write, in_place=state.floor is None)
            if n == 1
            else chunk(state.state, queries, write)
        )
        state.advance(inputs, extended, write, after)
        normed = self.norm(out.transpose(0, 1)).mul_(F.silu(z.float()))  # [q, heads, value size]
        return self._mlp(self.out.add_to(h, normed.reshape(n, -1).to(h.dtype)))

    def _projected(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Project x [q, hidden].

        Returns the convolution's inputs [q, channels], the gate z [q, heads, value size], strengths
        and decays in float32, [q, heads].
        """
        values = self.heads * self.value_size
        if len(self.projections) == 1:
            inputs, z, b, a = self.projections[0](x).split(
                (self.channels, values, self.heads, self.heads), dim=-1
            )
        else:
            inputs, z = self.projections[0](x).split((self.channels, values), dim=-1)
            b, a = self.projections[1](x).chunk(2, dim=-1)
        decays = F.softplus(a.float() + self.dt_bias).mul_(self.decay)
        # the sigmoid in the dtype of the weights, as the module takes it
        return inputs, z.unflatten(-1, (self.heads, -1)), b.sigmoid().float(), decays

    def _convolved(self, extended: Tensor, n: int) -> Tensor:
        """Convolve [taps - 1 + n, channels] to [n, channels], float32, with SiLU."""
        if n == 1:
            return F.silu((extended * self.kernel).sum(0, keepdim=True))
        extended = extended.float()
        total = extended[:n] * self.kernel[0]
        for tap in range(1, self.kernel.shape[0]):
            total.addcmul_(extended[tap : tap + n], self.kernel[tap])
        return F.silu(total, inplace=True)

    def _read(self, mixed: Tensor, strengths: Tensor, decays: Tensor) -> tuple[Tensor, Write]:
        """Return the queries [heads, q, key size], and what the positions write."""
        n = mixed.shape[0]
        keys = self.key_heads * self.key_size
        both = mixed[:, : 2 * keys].view(n, 2, self.key_heads, self.key_size)
        both = both * (both * both).sum(-1, keepdim=True).add_(L2_EPS).rsqrt_()
        q, k = both.permute(1, 2, 0, 3)
        if self.heads != self.key_heads:
            q, k = (t.repeat_interleave(self.heads // self.key_heads, dim=0) for t in (q, k))
        values = mixed[:, 2 * keys :].view(n, self.heads, -1).transpose(0, 1)
        return q * self.query_scale, Write(k, values, decays.t(), strengths.t())


class GatedAttention(_HybridLayer, GroupedAttention):
    """A layer of attention with an output gate, and an MLP."""

    @torch.no_grad()
    def __init__(self, module: Qwen35Layer, index: int, group: int) -> None:
        super().__init__(module, index, group)
        mixer = module.self_attn
        self.head_size = mixer.head_dim
        # each with its gate
        self.query_heads = mixer.q_proj.out_features // (2 * self.head_size)
        self.kv_heads = mixer.k_proj.out_features // self.head_size
        self.qkv = together(mixer.q_proj, mixer.k_proj, mixer.v_proj)
        # a joined product takes the residual in the bias's place
        self.o = together(mixer.o_proj) if mixer.o_proj.bias is None else Several(mixer.o_proj)
        weights = (
            mixer.q_norm.weight.expand(self.query_heads, -1),
            mixer.k_norm.weight.expand(self.kv_heads, -1),
        )
        self.qk_norm = CentredNorm(torch.cat(weights), mixer.q_norm.eps)
        first = mixer.q_proj.weight
        self.by_products = first.dtype == torch.float32 and first.device.type == "cpu"

    def __call__(
        self,
        h: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor | None,
        cache: KVCache,
        last: bool = False,
    ) -> Tensor:
        """Run the layer over h [q, hidden], and append keys and values to the cache.

        cos, sin: [q, 1, rotated size], sin with its first half negated. mask: as in `FusedLayer`.
        last: the last position's output is all that is wanted, [1, hidden].
        """
        h = h.to(self.device)
        n, size = h.shape[0], self.head_size
        heads = self.qkv(self.before(h)).view(n, -1, size)
        queries, kv = heads.split((2 * self.query_heads, 2 * self.kv_heads), dim=1)
        queries, gate = queries.view(n, self.query_heads, 2, size).unbind(2)
        qk = self.qk_norm(torch.cat((queries, kv[:, : self.kv_heads]), dim=1))
        rotated = qk[..., : cos.shape[-1]]
        turned = rotated.roll(cos.shape[-1] // 2, -1).mul_(sin.to(self.device))
        torch.addcmul(turned, rotated, cos.to(self.device), out=rotated)
        kv[:, : self.kv_heads] = qk[:, self.query_heads :]
        keys, values = cache.append(kv, self.index)
        if last:  # it sees everything
            h, qk, gate, mask, n = h[-1:], qk[-1:], gate[-1:], None, 1
        mask = None if mask is None else mask.to(self.device)
        seen = self._attention(qk[:, : self.query_heads], keys, values, mask)
        return self._mlp(self.o.add_to(h, seen.mul_(gate.reshape(n, -1).sigmoid())))


HybridLayer: TypeAlias = RecurrentLayer | GatedAttention


def is_recurrent(module: nn.Module) -> bool:
    """Whether a layer of transformers' models has a recurrent state in place of keys and values."""
    return hasattr(module, "linear_attn")


def layers_of(modules: Sequence[nn.Module], group: int) -> list[HybridLayer]:
    """Return a layer for each of transformers' own, over its parameters.

    group: query heads that share a key in attention.
    """
    return [
        (RecurrentLayer if is_recurrent(module) else GatedAttention)(module, i, group)
        for i, module in enumerate(modules)
    ]
