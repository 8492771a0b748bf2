"""Slow, obvious decoders: each token recomputes its method's formula over the whole text, without a cache.

They call transformers' layers with masks of their own and share nothing with the package but the modules' weights.
"""

from __future__ import annotations

import torch
from torch import Tensor


def layers(module, h: Tensor, start: int, stop: int) -> Tensor:
    """Layers [start, stop) over the whole text h [1, n, hidden], with an explicit causal mask."""
    n = h.shape[1]
    positions = torch.arange(n)[None]
    mask = torch.full((n, n), torch.finfo(h.dtype).min, dtype=h.dtype).triu(1)[None, None]
    cos_sin = module.model.rotary_emb(h, positions)
    for layer in module.model.layers[start:stop]:
        h = layer(h, attention_mask=mask, position_embeddings=cos_sin)
    return h


def hidden(
    module, ids: list[int], heads: list[bool], early: int, late: int, head_input: str
) -> Tensor:
    """Last hidden states [n, hidden] by the formula of docs/methods.md, section 2; heads says which positions have m = 1."""
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
    """What `dmtd` writes after each beginning of `written`, in one pass: a position's state depends on none after it. Equal to `written` where `dmtd` is."""
    ids = [*prompt, *written[:-1]]
    heads = [i < len(prompt) or (i - len(prompt)) % tau == 0 for i in range(len(ids))]
    return (
        module.lm_head(hidden(module, ids, heads, early, late, head_input)[len(prompt) - 1 :])
        .argmax(-1)
        .tolist()
    )


def clp(module, addons, prompt: list[int], k: int, threshold: float, new: int) -> list[list[int]]:
    """Greedy CLP, one list per step: P(length >= s) >= threshold by a sum over the classes, largest such s."""
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
