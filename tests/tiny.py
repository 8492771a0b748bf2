"""Tiny random models, made on the spot: no download, no GPU, no network."""

from __future__ import annotations

import torch
from transformers import (
    GenerationConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3_5ForCausalLM,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from dmtd_demo.backbone.qwen import Backbone
from dmtd_demo.backbone.split import Split
from dmtd_demo.models.addons import ADDONS
from dmtd_demo.models.model import Model
from dmtd_demo.models.native_mtp import random_native

VOCABULARY = 97
ATTENTION = ("qwen2", "qwen3")  # families without recurrent layers
SHAPE = dict(
    vocab_size=VOCABULARY,
    hidden_size=32,
    intermediate_size=48,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    pad_token_id=None,
    bos_token_id=None,
    eos_token_id=None,
    initializer_range=0.3,
)

HYBRID = dict(
    head_dim=16,
    linear_key_head_dim=8,
    linear_value_head_dim=8,
    linear_num_key_heads=2,
    linear_num_value_heads=4,
    linear_conv_kernel_dim=4,
    rope_parameters={
        "rope_type": "default",
        "rope_theta": 10_000.0,
        "partial_rotary_factor": 0.5,
        "mrope_section": [2, 1, 1],
        "mrope_interleaved": True,
    },
)


def tiny_module(family: str, tied: bool = True, layers: int = 4, seed: int = 0, **changes):
    """A random Qwen2 (with biases that are not zero) or Qwen3 with grouped-query attention."""
    torch.manual_seed(seed)
    config_cls, cls = {
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
        "qwen3": (Qwen3Config, Qwen3ForCausalLM),
        "qwen3_5_text": (Qwen3_5TextConfig, Qwen3_5ForCausalLM),
    }[family]
    own = {"qwen2": {}, "qwen3": {"head_dim": 16}, "qwen3_5_text": HYBRID}[family]
    shape = {**SHAPE, **own, **changes}
    module = cls._from_config(
        config_cls(**shape, num_hidden_layers=layers, tie_word_embeddings=tied),
        attn_implementation="sdpa",
    ).eval()
    with torch.no_grad():
        for name, p in module.named_parameters():
            if name.endswith("bias"):
                p.normal_(std=0.5)
            elif name.endswith("A_log"):
                p.uniform_(-3, 1)  # some heads remember long
            elif "norm" in name:
                p.add_(torch.randn_like(p) * 0.2)
    module.generation_config = GenerationConfig()
    return module.requires_grad_(False)


def tiny_model(
    family: str = "qwen3",
    *,
    tied: bool = True,
    layers: int = 4,
    split: Split | None = None,
    eos: frozenset[int] = frozenset(),
    seed: int = 0,
    addons: bool = False,
    tokenizer=None,
    dtype: torch.dtype = torch.float32,
    **changes,
) -> Model:
    module = tiny_module(family, tied, layers, seed, **changes).to(dtype)
    model = Model(
        "tiny", "tiny random model", Backbone(module), tokenizer, split, None, eos, None, "none", []
    )
    if family == "qwen3_5_text":
        torch.manual_seed(seed + 2)
        head = random_native(model.backbone)
        with torch.no_grad():
            for p in head.parameters():
                p.normal_(std=0.2)
        model.addons["native_mtp"] = head
    if addons:
        torch.manual_seed(seed + 1)
        k = {
            "mtp_heads": 4,
            "head0": 1,
            "clp": 4,
            "native_clp": 4,
            "gate": 4,
            "adaptive": 5,
            "mixed": 2,
        }
        for method, n in k.items():
            module = ADDONS[method](model.backbone.hidden_size, n)
            with torch.no_grad():
                for p in module.parameters():
                    p.normal_(std=0.3)
            model.addons[method] = module.to(dtype).eval().requires_grad_(False)
            model.addon_facts[method] = {"k": n, "threshold": 0.5}
    return model


def fused_layers(backbone: Backbone) -> list:
    """The layers that passes with a cache run, of either kind."""
    return backbone._hybrid_layers if backbone.hybrid else backbone._fused


def sums_alike() -> bool:
    """Whether this CPU's bfloat16 products of a row are the same beside few and many others."""
    weight, x = torch.randn(64, 1536).bfloat16(), torch.randn(16, 1536).bfloat16()
    whole = torch.nn.functional.linear(x, weight)
    return all(
        torch.equal(torch.nn.functional.linear(x[:n], weight), whole[:n]) for n in range(2, 17)
    )
