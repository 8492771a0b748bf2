"""A thin view over transformers' own Qwen2 and Qwen3 modules: embed, run_layers, final_norm, logits.

Everything that depends on transformers' internals lies in this file; their modules are called, never patched or copied, so that
quantized linears and accelerate's hooks work as they are.
"""
from __future__ import annotations

import math

import torch
import transformers
from torch import Tensor, nn

from dmtd_demo.cache import KVCache
from dmtd_demo.errors import ModelError, UserError

TRIED = "5.13 to 5.23"
MODEL_TYPES = ("qwen2", "qwen3")
STATIC_ROPE = ("default", "linear", "yarn", "llama3")


class Backbone:
    """The Qwen decoder stack of a `Qwen2ForCausalLM` or `Qwen3ForCausalLM`.

    Hidden states are [batch, positions, hidden size]; with a cache the batch is 1 and positions continue where its layers end.
    """

    def __init__(self, module: transformers.PreTrainedModel) -> None:
        config = module.config
        if config.model_type not in MODEL_TYPES:
            raise UserError(f"a backbone needs one of the model types {', '.join(MODEL_TYPES)}; got {config.model_type}")
        rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
        if rope not in STATIC_ROPE:
            raise UserError(f"a backbone needs a RoPE that does not depend on the text's length ({', '.join(STATIC_ROPE)}); got {rope}")
        try:
            inner = module.model
            self._embed, self._layers, self._norm, self._rotary = inner.embed_tokens, list(inner.layers), inner.norm, inner.rotary_emb
            self._head = module.lm_head
        except AttributeError as error:
            raise _does_not_fit(error) from error
        self.module = module
        self.config = config
        self.layers: int = len(self._layers)
        self.hidden_size: int = config.hidden_size
        self.vocab_size: int = config.vocab_size
        self.context: int = config.max_position_embeddings
        if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
            # run_layers builds plain causal masks: inside the window the two are the same
            self.context = min(self.context, config.sliding_window)
        self._tables: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    @property
    def device(self) -> torch.device:
        return self._embed.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the hidden states."""
        return self._embed.weight.dtype

    def new_cache(self, capacity: int = 256) -> KVCache:
        return KVCache(self.layers, capacity)

    def embed(self, ids: Tensor | list[int]) -> Tensor:
        """Token ids, a list or [batch, positions], to hidden states."""
        if not isinstance(ids, Tensor):
            ids = torch.tensor([ids], dtype=torch.long, device=self.device)
        return self._embed(ids)

    def run_layers(self, h: Tensor, start: int, stop: int, cache: KVCache | None = None) -> Tensor:
        """Run layers [start, stop) over h, [batch, q, hidden], causally after what these layers hold in the cache.

        Without a cache the positions are 0 .. q-1: the whole text. The final norm is not included.
        """
        if start >= stop:
            return h
        q = h.shape[1]
        past = 0 if cache is None else cache.length(start)
        position_embeddings = self._rope(h, past, past + q)
        mask = None   # one position sees everything; with nothing before it transformers' SDPA is causal by itself
        if q > 1 and past:
            mask = torch.ones((q, past + q), dtype=torch.bool, device=h.device).tril(past)[None, None]
        try:
            for layer in self._layers[start:stop]:
                h = layer(h, attention_mask=mask, position_embeddings=position_embeddings, past_key_values=cache)
        except (TypeError, AttributeError) as error:
            raise _does_not_fit(error) from error
        return h.to(self.device)   # where the layers lie on several devices

    def compile_layers(self) -> None:
        """torch.compile each layer, for training on a few fixed shapes; the layers share what is compiled for a shape."""
        torch._dynamo.config.recompile_limit = 64
        for layer in self._layers:
            layer.compile(dynamic=False)

    def final_norm(self, h: Tensor) -> Tensor:
        """The last hidden state, as the LM head, MTP heads and predictors read it."""
        return self._norm(h).to(self.device)

    def logits(self, normed: Tensor) -> Tensor:
        """LM head over hidden states after the final norm: [..., hidden] to [..., vocabulary]."""
        return self._head(normed.to(self.dtype)).to(self.device)

    def _rope(self, h: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """cos and sin of the positions [start, stop), each [1, q, head size], from a table that grows by doubling."""
        key = (h.device, h.dtype)
        table = self._tables.get(key)
        if table is None or table[0].shape[1] < stop:
            size = 256
            while size < stop:
                size *= 2
            with torch.inference_mode(False), torch.no_grad():
                positions = torch.arange(size, device=h.device)[None]
                table = self._rotary(torch.empty(0, device=h.device, dtype=h.dtype), positions)
            self._tables[key] = table
        return table[0][:, start:stop], table[1][:, start:stop]


def _does_not_fit(error: Exception) -> ModelError:
    return ModelError(f"the Qwen modules of transformers {transformers.__version__} are not as expected ({error}); tried versions: {TRIED}")


def parameters(module: nn.Module) -> int:
    """How many parameters a module has, shared ones counted once, those packed into 4 bits unpacked."""
    return sum(math.prod(p.quant_state.shape) if hasattr(p, "quant_state") else p.numel() for p in module.parameters())
