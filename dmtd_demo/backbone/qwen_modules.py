"""What is read of transformers' own layers of Qwen2 and Qwen3, by the names that it has there."""

from __future__ import annotations

from typing import Protocol, Sequence, cast

import transformers
from torch import Tensor, nn

from dmtd_demo.backbone.fused import LayerParts
from dmtd_demo.backbone.linears import Linear
from dmtd_demo.errors import ModelError

# versions of transformers that were tried
TRIED = "5.13 to 5.24"


class Norm(Protocol):
    """What is read of transformers' RMSNorm of Qwen2 and Qwen3."""

    weight: Tensor
    variance_epsilon: float


class Attention(Protocol):
    """What is read of transformers' attention; Qwen3's has q_norm and k_norm beside it."""

    head_dim: int
    q_proj: Linear
    k_proj: Linear
    v_proj: Linear
    o_proj: Linear


class MLP(Protocol):
    """What is read of transformers' MLP."""

    gate_proj: Linear
    up_proj: Linear
    down_proj: Linear


class DecoderLayer(Protocol):
    """What is read of a decoder layer of transformers' Qwen2 and Qwen3."""

    self_attn: Attention
    mlp: MLP
    input_layernorm: Norm
    post_attention_layernorm: Norm


def parts_of(first: int, layers: Sequence[nn.Module]) -> list[LayerParts]:
    """Name the parts of the layers. first: the index of the first of them."""
    try:
        return [
            LayerParts(
                i,
                layer.self_attn.head_dim,
                layer.input_layernorm.variance_epsilon,
                layer.self_attn.q_proj,
                layer.self_attn.k_proj,
                layer.self_attn.v_proj,
                layer.self_attn.o_proj,
                layer.mlp.gate_proj,
                layer.mlp.up_proj,
                layer.mlp.down_proj,
                layer.input_layernorm.weight,
                layer.post_attention_layernorm.weight,
                *(
                    getattr(getattr(layer.self_attn, name, None), "weight", None)
                    for name in ("q_norm", "k_norm")
                ),
            )
            for i, layer in enumerate(cast(Sequence[DecoderLayer], layers), first)
        ]
    except AttributeError as error:
        raise does_not_fit(error) from error


def does_not_fit(error: Exception) -> ModelError:
    return ModelError(
        f"the Qwen modules of transformers {transformers.__version__} are not as expected "
        f"({error}); tried versions: {TRIED}"
    )
