"""A second kind of MTP head for models that bring none: it reads the token that it drafted last.

In the form of Qwen3.5's own module (`native_mtp`), with the norms and the attention of the
backbone's family: with h_t the backbone's state after its final norm, which predicted x_(t+1),

    u_t = fc [N_emb(E[x_(t+1)]); N_hid(h_t)],   m_t = N(layer(u)_t),   logits for x_(t+2) = LM(m_t)

Applied again to m_t and a draft for x_(t+2), it drafts x_(t+3), and so on. The decoders of models
with an MTP head of their own run it. EAGLE (arXiv 2401.15077) and Hydra (arXiv 2402.05109) draft
in this way.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from dmtd_demo.backbone.cache import KVCache
from dmtd_demo.backbone.cpu_packed import in_eight_bits
from dmtd_demo.backbone.fused import FusedLayer, LayerParts
from dmtd_demo.backbone.linears import Linear, Product, together
from dmtd_demo.backbone.norms import FusedNorm
from dmtd_demo.backbone.qwen import Backbone
from dmtd_demo.backbone.row_blocks import laid_out_like
from dmtd_demo.backbone.tree import Tree
from dmtd_demo.errors import UserError
from dmtd_demo.models.addon_file import addon_tensors

NAME = "fed_back"
LINEARS = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}


class FedBackHead(nn.Module):
    """The head of one backbone. width: of its layer's MLP."""

    def __init__(self, backbone: Backbone, width: int) -> None:
        super().__init__()
        self.backbone = backbone
        shapes, size = backbone.linear_shapes(), backbone.hidden_size
        of = {key: shapes[name] for key, name in LINEARS.items()}
        of |= {"gate": (width, size), "up": (width, size), "down": (size, width)}
        of["fc"] = (size, 2 * size)
        self.linears = nn.ModuleDict(
            {key: nn.Linear(columns, rows, bias=False) for key, (rows, columns) in of.items()}
        )
        self.norms = nn.ParameterDict({key: torch.ones(size) for key in NORMS})
        self._fused: tuple[FusedNorm, FusedNorm, Product, FusedLayer, FusedNorm] | None = None

    @torch.no_grad()
    def run(
        self, states: Tensor, embedded: Tensor, cache: KVCache, tree: Tree | None = None
    ) -> Tensor:
        """Take the next pairs of one text into the cache, states and embeddings [n, hidden], and
        return the last one's m, [1, hidden]; of the last n places of a tree all, [n, hidden]."""
        if self._fused is None:
            with torch.inference_mode(states.is_inference()):
                self._fused = self._parts()
        of_embedding, of_state, fc, layer, norm = self._fused
        u = fc(torch.cat((of_embedding(embedded), of_state(states)), dim=-1))
        cos, sin, mask = self.backbone.attending(u, cache.length(0), len(u), tree)
        out = layer(u, cos, sin, mask, cache, tree)
        return norm(out[-1:] if tree is None else out)

    def pack(self) -> None:
        """Hold the linears as the backbone's are on a CPU: in 8 bits where those are packed, in
        blocks of rows where they are.

        Once, before the first run. In 4 bits, which the backbone's may have, 6 % fewer drafts are
        right.
        """
        other = self.backbone.linears()[LINEARS["gate"]]
        for key, linear in self.linears.items():
            dense = cast(nn.Linear, linear)
            packed = in_eight_bits(dense, other)
            self.linears[key] = laid_out_like(dense, other) if packed is dense else packed

    def _parts(self) -> tuple[FusedNorm, FusedNorm, Product, FusedLayer, FusedNorm]:
        config, norms = self.backbone.config, self.norms
        linears = {key: cast(Linear, linear) for key, linear in self.linears.items()}
        eps = config.rms_norm_eps
        head_size = linears["q"].out_features // config.num_attention_heads
        layer = FusedLayer(
            LayerParts(
                0,
                head_size,
                eps,
                linears["q"],
                linears["k"],
                linears["v"],
                linears["o"],
                linears["gate"],
                linears["up"],
                linears["down"],
                norms["before_attention"],
                norms["before_mlp"],
                None,
                None,
            )
        )
        # the masks that it reads are the backbone's
        layer.in_line = layer.in_line and self.backbone.in_line
        of_embedding, of_state, after = (
            FusedNorm(norms[key], eps) for key in ("of_embedding", "of_state", "after")
        )
        return of_embedding, of_state, together(linears["fc"]), layer, after


# by the names of Qwen3.5's files
NORMS = {
    "of_embedding": "pre_fc_norm_embedding",
    "of_state": "pre_fc_norm_hidden",
    "before_attention": "layers.0.input_layernorm",
    "before_mlp": "layers.0.post_attention_layernorm",
    "after": "norm",
}


def names_of(head: FedBackHead) -> dict[str, str]:
    """Each tensor's name in a file, by its name in the module."""
    named = {
        f"linears.{key}.weight": f"mtp.layers.0.{name}.weight" for key, name in LINEARS.items()
    }
    named["linears.fc.weight"] = "mtp.fc.weight"
    return named | {f"norms.{key}": f"mtp.{name}.weight" for key, name in NORMS.items()}


def load(folder: Path, width: int, backbone: Backbone) -> FedBackHead:
    """The head of a folder of add-ons. Raises UserError where it does not fit the backbone."""
    path, tensors = addon_tensors(folder, NAME)
    head = FedBackHead(backbone, width)
    state = {}
    for name, wanted in head.state_dict().items():
        file_name = names_of(head)[name]
        tensor = tensors.pop(file_name, None)
        if tensor is None or tensor.shape != wanted.shape or not torch.isfinite(tensor).all():
            got = "nothing" if tensor is None else list(tensor.shape)
            raise UserError(
                f"{path} needs {file_name}, {list(wanted.shape)}, finite, for this model; got {got}"
            )
        state[name] = tensor
    if tensors:
        raise UserError(f"{path} holds tensors that nothing reads: {', '.join(sorted(tensors))}")
    head.load_state_dict(state)
    head.to(device=backbone.device, dtype=backbone.dtype).eval().requires_grad_(False)
    head.pack()
    return head
