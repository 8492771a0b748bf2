"""The layers of a small Qwen3.5 for training: packed rows, plain functions of a dict of weights.

tests/training/test_train_hybrid.py holds them against transformers' own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import Qwen3_5TextConfig

from dmtd_demo.training.hybrid.checkpoint import Weights
from dmtd_demo.training.hybrid.delta_rule import gated_delta_rule, short_convolution

FORGET = -60.0  # added to a gate: what came before counts e^-60 from here on


@dataclass(frozen=True)
class Sizes:
    """What the layers need of the config, as plain numbers."""

    heads: int
    kv_heads: int
    width: int
    rotary: int
    theta: float
    linear_heads: int
    key_width: int
    value_width: int
    eps: float
    chunk: int

    @classmethod
    def of(cls, config: Qwen3_5TextConfig, chunk: int = 64) -> Sizes:
        if config.linear_num_key_heads != config.linear_num_value_heads:
            raise ValueError(
                "this training pass needs as many key heads as value heads; got "
                f"{config.linear_num_key_heads} and {config.linear_num_value_heads}"
            )
        rope: Any = config.rope_parameters
        return cls(
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            int(config.head_dim * rope["partial_rotary_factor"]),
            rope["rope_theta"],
            config.linear_num_key_heads,
            config.linear_key_head_dim,
            config.linear_value_head_dim,
            config.rms_norm_eps,
            chunk,
        )


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return x / rms(x) (1 + weight), the RMSNorm of Qwen3.5."""
    return F.rms_norm(x, weight.shape, (1 + weight).to(x.dtype), eps)


def mlp(x: Tensor, w: Weights, s: Sizes) -> Tensor:
    """Apply the second half of any layer, its residual included."""
    y = norm(x, w["post_attention_layernorm.weight"], s.eps)
    both = torch.cat([w["mlp.gate_proj.weight"], w["mlp.up_proj.weight"]])
    gate, up = F.linear(y, both).chunk(2, -1)
    return x + F.linear(F.silu(gate) * up, w["mlp.down_proj.weight"])


def linear_layer(x: Tensor, w: Weights, same: list[Tensor], forget: Tensor, s: Sizes) -> Tensor:
    """Apply a recurrent layer.

    x [rows, n, hidden]; same: see short_convolution; forget [rows, n, 1]: FORGET where a text
    begins, else 0.
    """
    dtype, h = x.dtype, s.linear_heads
    k, v = h * s.key_width, h * s.value_width
    y = norm(x, w["input_layernorm.weight"], s.eps)
    parts = [w[f"linear_attn.in_proj_{name}.weight"].to(dtype) for name in ("qkv", "z", "b", "a")]
    mixed, z, b, a = F.linear(y, torch.cat(parts)).split((2 * k + v, v, h, h), -1)
    q, key, value = short_convolution(
        mixed, w["linear_attn.conv1d.weight"][:, 0].to(dtype), same
    ).split((k, k, v), -1)
    g = -w["linear_attn.A_log"].exp() * F.softplus(a.float() + w["linear_attn.dt_bias"]) + forget
    out = gated_delta_rule(
        q.unflatten(-1, (h, -1)),
        key.unflatten(-1, (h, -1)),
        value.unflatten(-1, (h, -1)),
        g,
        b.sigmoid(),
        s.chunk,
    )
    out = F.rms_norm(out, (s.value_width,), w["linear_attn.norm.weight"], s.eps) * F.silu(
        z.float().unflatten(-1, (h, -1))
    )
    return mlp(x + F.linear(out.to(dtype).flatten(2), w["linear_attn.out_proj.weight"]), w, s)


def rotary(s: Sizes, n: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return cosines and sines for positions 0..n-1, [n, 1, rotary].

    For text the three axes of Qwen3.5's positions are one.
    """
    powers = torch.arange(0, s.rotary, 2, device=device) / s.rotary
    angles = torch.arange(n, device=device)[:, None] / s.theta**powers
    angles = torch.cat([angles, angles], -1)[:, None]
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the first cos.shape[-1] of each head; x [rows, n, heads, width]."""
    turned, rest = x.split((cos.shape[-1], x.shape[-1] - cos.shape[-1]), -1)
    first, second = turned.chunk(2, -1)
    return torch.cat([turned * cos + torch.cat([-second, first], -1) * sin, rest], -1)


def queries_keys_values(
    x: Tensor, w: Weights, cos: Tensor, sin: Tensor, s: Sizes
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return queries, their gates, keys and values of a full-attention layer.

    All of them [rows, heads, n, width], but the gates [rows, n, heads * width].
    """
    y = norm(x, w["input_layernorm.weight"], s.eps)
    q_width, kv = 2 * s.heads * s.width, s.kv_heads * s.width
    parts = torch.cat([w[f"self_attn.{name}_proj.weight"] for name in "qkv"])
    q, k, v = F.linear(y, parts).split((q_width, kv, kv), -1)
    q, gate = q.unflatten(-1, (s.heads, 2 * s.width)).chunk(2, -1)
    q = rotated(norm(q, w["self_attn.q_norm.weight"], s.eps), cos, sin)
    k, v = k.unflatten(-1, (s.kv_heads, -1)), v.unflatten(-1, (s.kv_heads, -1))
    k = rotated(norm(k, w["self_attn.k_norm.weight"], s.eps), cos, sin)
    each = s.heads // s.kv_heads
    k, v = (t.repeat_interleave(each, 2).transpose(1, 2) for t in (k, v))
    return q.transpose(1, 2), gate.flatten(2), k, v


def attention_end(x: Tensor, out: Tensor, gate: Tensor, w: Weights, s: Sizes) -> Tensor:
    """Apply what follows the attention itself; out [rows, heads, n, width]."""
    out = out.transpose(1, 2).flatten(2) * gate.sigmoid()
    return mlp(x + F.linear(out, w["self_attn.o_proj.weight"]), w, s)


def mtp_input(m: Tensor, embedded: Tensor, w: Weights, s: Sizes) -> Tensor:
    """Return u = fc [N(E[x]); N(m)], which the MTP module's layer reads."""
    token = norm(embedded, w["pre_fc_norm_embedding.weight"], s.eps)
    state = norm(m, w["pre_fc_norm_hidden.weight"], s.eps)
    return F.linear(torch.cat([token, state], -1), w["fc.weight"])
