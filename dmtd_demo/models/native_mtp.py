"""The multi-token prediction module that Qwen3.5's own checkpoints carry, read from their `mtp.*`.

With h_t the backbone's state after its final norm, which predicted x_(t+1), and N an RMSNorm,

    u_t = fc [N_emb(E[x_(t+1)]); N_hid(h_t)],   m_t = N(layer(u)_t),   logits for x_(t+2) = LM(m_t)

The layer is one of full attention, causal over u_1 .. u_t; embedding and LM head are the
backbone's. Applied again to m_t and a draft for x_(t+2), it drafts x_(t+3), and so on.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from dmtd_demo.backbone.cache import KVCache
from dmtd_demo.backbone.hybrid import GatedAttention
from dmtd_demo.backbone.linears import together
from dmtd_demo.backbone.norms import CentredNorm
from dmtd_demo.backbone.qwen import Backbone
from dmtd_demo.errors import UserError
from dmtd_demo.models import checkpoint

PREFIX = "mtp."


class NativeMTP(nn.Module):
    """The module of one backbone, with the names and shapes of the checkpoints."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        config, norm = backbone.config, type(backbone.module.model.norm)
        full = backbone.recurrent.index(False)  # an index at which the config says full attention
        size, eps = config.hidden_size, config.rms_norm_eps
        self.fc = nn.Linear(2 * size, size, bias=False)
        self.pre_fc_norm_embedding, self.pre_fc_norm_hidden = norm(size, eps), norm(size, eps)
        self.layers = nn.ModuleList([type(backbone.module.model.layers[full])(config, full)])
        self.norm = norm(size, eps)
        self._own: _Own | None = None

    def forward(
        self,
        states: Tensor,
        embedded: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        mask: Tensor | None = None,
    ) -> Tensor:
        """All pairs of whole texts at once, without a cache: states h_t and embeddings of x_(t+1),
        [batch, n, hidden], to m_t. mask: of attention; None: causal. For training and tests."""
        u = self.fc(
            torch.cat(
                (self.pre_fc_norm_embedding(embedded), self.pre_fc_norm_hidden(states)), dim=-1
            )
        )
        return self.norm(
            self.layers[0](u, attention_mask=mask, position_embeddings=position_embeddings)
        )

    @torch.no_grad()
    def guesses(self, states: Tensor, ids: Tensor, k: int) -> Tensor:
        """Draft k tokens, greedy, after each position of a text whose next token is known.

        states [n, hidden] and ids [n] of the text; returns [n - 1, k]: row t, column i is for
        position t + 2 + i. All positions at once: each chain of drafts sees the true pairs up to
        its own and itself.
        """
        backbone, n = self.backbone, len(ids) - 1
        columns, found = torch.arange(n, device=ids.device), []
        u, following = states[:-1], backbone.embed(ids[None, 1:])[0]
        for depth in range(k):
            before = columns[:, None] >= columns  # a row of the mask for each chain
            mask = torch.zeros((depth + 1, n, depth + 1, n), dtype=torch.bool, device=ids.device)
            mask[:, :, 0] = before
            for later in range(1, depth + 1):
                mask[later:, columns, later, columns] = True
            rope = backbone.rope.at(u, torch.cat([columns + d for d in range(depth + 1)]))
            side = n * (depth + 1)
            m = self(u[None], following[None], rope, mask.view(1, 1, side, side))[0, -n:]
            found.append(backbone.logits(m).argmax(-1))
            u = torch.cat((u, m))
            following = torch.cat((following, backbone.embed(found[-1][None])[0]))
        return torch.stack(found, dim=-1)

    @torch.no_grad()
    def run(self, states: Tensor, embedded: Tensor, cache: KVCache) -> Tensor:
        """Take the next pairs of one text into the cache, states and embeddings [n, hidden], and
        return the last one's m, [1, hidden]."""
        if self._own is None:
            with torch.inference_mode(self.fc.weight.is_inference()):
                self._own = _Own(self)
        own, q = self._own, states.shape[0]
        u = own.fc(torch.cat((own.of_embedding(embedded), own.of_state(states)), dim=-1))
        cos, sin, mask = self.backbone.attending(u, cache.length(0), q)
        return own.norm(own.layer(u, cos, sin, mask, cache, last=True))


class _Own:
    """The parts of the module in the form of the fused layers."""

    def __init__(self, module: NativeMTP) -> None:
        config = module.backbone.config
        group = config.num_attention_heads // config.num_key_value_heads
        self.fc = together(module.fc)
        self.of_embedding, self.of_state, self.norm = (
            CentredNorm(norm.weight, norm.eps)
            for norm in (module.pre_fc_norm_embedding, module.pre_fc_norm_hidden, module.norm)
        )
        self.layer = GatedAttention(module.layers[0], 0, group)


def read_native(folder: Path, backbone: Backbone) -> NativeMTP | None:
    """The module of the checkpoint in a folder; None where its files hold none, whatever its config
    says. Raises UserError where they hold it in part, or another one."""
    names = {
        name: path for name, path in checkpoint.names(folder).items() if name.startswith(PREFIX)
    }
    if not names:
        return None
    with torch.device("meta"):
        module = NativeMTP(backbone)
    wanted = {PREFIX + name: t.shape for name, t in module.state_dict().items()}
    odd = sorted(set(wanted) ^ set(names))
    if odd:
        what = "is missing" if odd[0] in wanted else "is of no part of it"
        raise UserError(
            f"the MTP head in {folder} needs the {len(wanted)} tensors of one layer of "
            f"full attention with its norms; {odd[0]} {what}"
        )
    tensors = {}
    for name, path in names.items():
        with safe_open(path, "pt") as file:
            tensors[name.removeprefix(PREFIX)] = file.get_tensor(name)
        if tensors[name.removeprefix(PREFIX)].shape != wanted[name]:
            got = list(tensors[name.removeprefix(PREFIX)].shape)
            raise UserError(
                f"the MTP head in {folder} needs {name} in the shape "
                f"{list(wanted[name])}; got {got}"
            )
    module.load_state_dict(tensors, assign=True)
    return module.to(device=backbone.device, dtype=backbone.dtype).eval().requires_grad_(False)


def random_native(backbone: Backbone) -> NativeMTP:
    """Make a module with random weights on the backbone's own device, for benchmarks."""
    previous = torch.get_default_dtype()
    torch.set_default_dtype(backbone.dtype)
    try:
        with torch.device(backbone.device):
            return NativeMTP(backbone).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(previous)


def parameters_of(config: dict) -> int:
    """Count the parameters of such a module for a config's sizes."""
    hidden, head = config["hidden_size"], config["head_dim"]
    queries, keys = (config[name] * head for name in ("num_attention_heads", "num_key_value_heads"))
    attention = 3 * hidden * queries + 2 * hidden * keys + 2 * head
    layer = attention + 3 * hidden * config["intermediate_size"] + 2 * hidden
    return layer + 2 * hidden**2 + 3 * hidden
