"""The forward pass of `classroom-hybrid` in training: cyclical masks, every draft depth at once."""

from __future__ import annotations

from typing import Any, Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import Qwen3_5TextConfig

from dmtd_demo.backbone.split import Split
from dmtd_demo.training.hybrid.checkpoint import SPLIT, Weights
from dmtd_demo.training.hybrid.layers import (
    FORGET,
    Sizes,
    attention_end,
    linear_layer,
    mtp_input,
    norm,
    queries_keys_values,
    rotary,
)


def of_layer(weights: Weights, prefix: str) -> Weights:
    """Return the weights whose names begin so, by what follows."""
    return {name.removeprefix(prefix): t for name, t in weights.items() if name.startswith(prefix)}


class Hybrid:
    """The model over packed rows.

    compiled: its parts by torch.compile, one graph for all layers of a kind; the attention itself,
    which sees more at every depth of the drafts, is not.
    """

    def __init__(
        self,
        config: Qwen3_5TextConfig,
        weights: Weights,
        compiled: bool = False,
        split: Split = SPLIT,
        chunk: int = 64,
    ) -> None:
        self.config, self.split, self.weights = config, split, weights
        self.sizes = Sizes.of(config, chunk)
        self.layers = [
            of_layer(weights, f"model.layers.{i}.") for i in range(config.num_hidden_layers)
        ]
        around = of_layer(weights, "mtp.")
        self.mtp = {name: t for name, t in around.items() if not name.startswith("layers.")}
        self.mtp_layer = of_layer(weights, "mtp.layers.0.")
        self.kinds = config.layer_types or []

        def made(part: Callable[..., Any]) -> Callable[..., Any]:
            return torch.compile(part, dynamic=False) if compiled else part

        self._linear, self._mtp_input = made(linear_layer), made(mtp_input)
        self._before, self._after = made(queries_keys_values), made(attention_end)

    @property
    def table(self) -> Tensor:
        """The embeddings, [vocabulary, hidden]."""
        return self.weights["model.embed_tokens.weight"]

    def logits(self, h: Tensor) -> Tensor:
        """Return the LM head's logits; h [..., hidden] after a final norm."""
        return F.linear(h, self.table.to(h.dtype))

    def _full(
        self,
        x: Tensor,
        w: Weights,
        turned: tuple[Tensor, Tensor],
        mask: Tensor,
        keys: Sequence[Tensor] = (),
        values: Sequence[Tensor] = (),
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Apply a full-attention layer over x, and over keys and values that lie before its own.

        Its own come back too. turned: the cosines and sines of its positions. mask [rows, 1, n, all
        of them], added to the scores.
        """
        q, gate, k, v = self._before(x, w, *turned, self.sizes)
        seen, read = (torch.cat([*keys, k], 2), torch.cat([*values, v], 2)) if keys else (k, v)
        wide = mask.expand(-1, self.sizes.heads, -1, -1)
        out = F.scaled_dot_product_attention(q, seen, read, wide)
        return self._after(x, out, gate, w, self.sizes), k, v

    def hidden(
        self, ids: Tensor, texts: Tensor, heads: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return states after the final norm, the embedded ids, and the attention's mask.

        ids, texts (which text of its row a position belongs to) and heads (m = 1) [rows, n].
        """
        s, n = self.sizes, ids.shape[1]
        starts = F.pad(texts[:, 1:] != texts[:, :-1], (1, 0), value=True)
        forget = starts[..., None].float() * FORGET
        same = [
            F.pad(texts[:, back:] == texts[:, :-back], (back, 0))[..., None].to(dtype)
            for back in range(1, self.config.linear_conv_kernel_dim)
        ]
        past = torch.ones(n, n, dtype=torch.bool, device=ids.device).tril()
        seen = (texts[:, :, None] == texts[:, None, :]) & past
        mask = torch.zeros_like(seen, dtype=dtype).masked_fill_(~seen, float("-inf"))[:, None]
        cos, sin = rotary(s, n, ids.device, dtype)
        # its gradient is one addition in place: nothing that a CUDA graph could not hold
        embedded = self.table.index_select(0, ids.flatten()).to(dtype).unflatten(0, ids.shape)
        x = c = embedded
        for i, (kind, w) in enumerate(zip(self.kinds, self.layers)):
            if i == self.split.early:
                c = x
            if i == self.split.late_start:
                x = torch.where(heads[..., None], x, c)
            if kind == "linear_attention":
                x = self._linear(x, w, same, forget, s)
            else:
                x = self._full(x, w, (cos, sin), mask)[0]
        return norm(x, self.weights["model.norm.weight"], s.eps), embedded, mask

    def drafts(self, h: Tensor, embedded: Tensor, mask: Tensor, depth: int) -> list[Tensor]:
        """Return m after 1..depth applications of the MTP module, each [rows, n, hidden].

        Fed with the true tokens: from h at position t the i-th predicts token t + 1 + i. The first
        one attends over the pairs of the backbone's own states; each later one over those, and over
        the drafts that led to it, as when it decodes.
        """
        s, n = self.sizes, h.shape[1]
        cos, sin = rotary(s, n + depth, h.device, h.dtype)
        own = torch.full((n, n), float("-inf"), dtype=mask.dtype, device=mask.device)
        own = own.fill_diagonal_(0).expand_as(mask)
        m = h
        keys: list[Tensor] = []
        values: list[Tensor] = []
        made: list[Tensor] = []
        for i in range(depth):
            shown = F.pad(embedded[:, i + 1 :], (0, 0, 0, i + 1))
            u = self._mtp_input(m, shown, self.mtp, s)
            at = slice(i, i + n)
            out, k, v = self._full(u, self.mtp_layer, (cos[at], sin[at]), mask, keys, values)
            m = norm(out, self.mtp["norm.weight"], s.eps)
            keys, values, mask = [*keys, k], [*values, v], torch.cat([mask, own], -1)
            made.append(m)
        return made
