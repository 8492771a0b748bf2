"""Slow, obvious decoders: each token recomputes its method's formula over the whole text, without a
cache.

They call transformers' layers with masks of their own and share nothing with the package but the
modules' weights.
"""

from __future__ import annotations

import torch
from torch import Tensor


def layers(module, h: Tensor, start: int, stop: int) -> Tensor:
    """Layers [start, stop) over the whole text h [1, n, hidden], with an explicit causal mask."""
    n = h.shape[1]
    positions = torch.arange(n)[None]
    if module.config.model_type == "qwen3_5_text":
        positions = positions.expand(3, 1, -1)
    mask = torch.full((n, n), torch.finfo(h.dtype).min, dtype=h.dtype).triu(1)[None, None]
    cos_sin = module.model.rotary_emb(h, positions)
    for layer in module.model.layers[start:stop]:
        h = layer(
            h,
            attention_mask=None if hasattr(layer, "linear_attn") else mask,
            position_embeddings=cos_sin,
        )
    return h


def hidden(
    module, ids: list[int], heads: list[bool], early: int, late: int, head_input: str
) -> Tensor:
    """Last hidden states [n, hidden] by the formula of docs/methods.md, section 2; heads says which
    positions have m = 1.
    """
    n = module.config.num_hidden_layers
    c = layers(module, module.model.embed_tokens(torch.tensor([ids])), 0, early)
    thought = layers(module, c, early, n - late)
    m = torch.tensor(heads)[None, :, None]
    u = c + m * thought if head_input == "sum" else torch.where(m, thought, c)
    return module.model.norm(layers(module, u, n - late, n))[0]


def dmtd(
    module, prompt: list[int], tau: int, early: int, late: int, head_input: str, new: int
) -> list[int]:
    """Greedy DMTD: the prompt all heads, then position prompt + 0, tau, 2 tau … are heads."""
    ids = list(prompt)
    for _ in range(new):
        heads = [i < len(prompt) or (i - len(prompt)) % tau == 0 for i in range(len(ids))]
        ids.append(
            int(module.lm_head(hidden(module, ids, heads, early, late, head_input)[-1]).argmax())
        )
    return ids[len(prompt) :]


def dmtd_would_go_on(
    module, prompt: list[int], written: list[int], tau: int, early: int, late: int, head_input: str
) -> list[int]:
    """What `dmtd` writes after each beginning of `written`, in one pass: a position's state depends
    on none after it. Equal to `written` where `dmtd` is.
    """
    ids = [*prompt, *written[:-1]]
    heads = [i < len(prompt) or (i - len(prompt)) % tau == 0 for i in range(len(ids))]
    return (
        module.lm_head(hidden(module, ids, heads, early, late, head_input)[len(prompt) - 1 :])
        .argmax(-1)
        .tolist()
    )


def clp(module, addons, prompt: list[int], k: int, threshold: float, new: int) -> list[list[int]]:
    """Greedy CLP, one list per step: P(length >= s) >= threshold by a sum over the classes, largest
    such s.
    """
    heads, predictor = addons["mtp_heads"], addons["clp"]
    ids = list(prompt)
    steps: list[list[int]] = []
    while sum(map(len, steps)) < new:
        h = hidden(module, ids, [True] * len(ids), 0, 1, "replace")[-1]
        tokens = [int(module.lm_head(h).argmax())]
        if steps:  # the prefill emits exactly one token
            p = torch.softmax(predictor.linear.weight @ h + predictor.linear.bias, -1)
            s = max((s for s in range(1, k + 1) if float(p[s:].sum()) >= threshold), default=0)
            for i in range(s):
                x = heads.weight[i] @ h + heads.bias[i]
                tokens.append(int(module.lm_head(h + x * torch.sigmoid(x)).argmax()))
        steps.append(tokens)
        ids += tokens
    return steps


def _rotated(x: Tensor, theta: float) -> Tensor:
    """x [n, heads, size] turned by its positions 0 .. n-1, the halves of a head in pairs."""
    n, _, size = x.shape
    rates = theta ** -(torch.arange(0, size, 2) / size)
    angles = (torch.arange(n)[:, None] * rates)[:, None]
    a, b = x[..., : size // 2], x[..., size // 2 :]
    return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], -1)


def _one_layer(config, own, more: dict[str, Tensor], x: Tensor, heads: list[bool]) -> Tensor:
    """A decoder layer over a whole text, x [n, hidden], position by position: W where heads says
    so, W + more elsewhere; every position attends to the keys and values as they were made."""

    def norm(t: Tensor, weight: Tensor) -> Tensor:
        return t * (t.pow(2).mean(-1, keepdim=True) + config.rms_norm_eps).rsqrt() * weight

    def linear(name: str, t: Tensor) -> Tensor:
        part = own.get_submodule(name)
        bias = 0 if part.bias is None else part.bias
        return torch.stack(
            [
                (part.weight if head else part.weight + more[name]) @ row + bias
                for head, row in zip(heads, t)
            ]
        )

    attention, n = own.self_attn, len(x)
    size = attention.head_dim
    t = norm(x, own.input_layernorm.weight)
    q, k, v = (linear(f"self_attn.{p}_proj", t).view(n, -1, size) for p in "qkv")
    if hasattr(attention, "q_norm"):
        q, k = norm(q, attention.q_norm.weight), norm(k, attention.k_norm.weight)
    theta = config.rope_parameters["rope_theta"]
    q, k = _rotated(q, theta), _rotated(k, theta)
    group = q.shape[1] // k.shape[1]
    mixed = torch.empty_like(q)
    for i in range(n):
        for h in range(q.shape[1]):
            share = (k[: i + 1, h // group] @ q[i, h] / size**0.5).softmax(0)
            mixed[i, h] = share @ v[: i + 1, h // group]
    x = x + linear("self_attn.o_proj", mixed.flatten(1))
    t = norm(x, own.post_attention_layernorm.weight)
    gate = linear("mlp.gate_proj", t)
    return x + linear("mlp.down_proj", gate * torch.sigmoid(gate) * linear("mlp.up_proj", t))


def gated_hidden(
    module, more: list[dict[str, Tensor]], ids: list[int], heads: list[bool], early: int
) -> Tensor:
    """Last hidden states [n, hidden] of a model whose late layers add `more` to their weights at
    late-layer-only positions; the form of the head input that replaces."""
    n, late = module.config.num_hidden_layers, len(more)
    c = layers(module, module.model.embed_tokens(torch.tensor([ids])), 0, early)
    thought = layers(module, c, early, n - late)
    x = torch.where(torch.tensor(heads)[:, None], thought[0], c[0])
    for own, of_layer in zip(module.model.layers[n - late :], more):
        x = _one_layer(module.config, own, of_layer, x, heads)
    return module.model.norm(x)


def gated_would_go_on(
    module,
    more: list[dict[str, Tensor]],
    prompt: list[int],
    written: list[int],
    tau: int,
    early: int,
) -> list[int]:
    """What DMTD with such layers writes after each beginning of `written`."""
    ids = [*prompt, *written[:-1]]
    heads = [i < len(prompt) or (i - len(prompt)) % tau == 0 for i in range(len(ids))]
    h = gated_hidden(module, more, ids, heads, early)[len(prompt) - 1 :]
    return module.lm_head(h).argmax(-1).tolist()
