"""The configs that a backbone runs rightly: whatever else one asks for is refused before loading.

The fast paths compute what transformers does for these (tests/backbone/test_supported.py). Some of
what is refused transformers leaves out without a word, too: a model that was trained with it would
write something else than it learned.
"""

from __future__ import annotations

import math
from typing import Any, Iterator

from dmtd_demo.errors import UserError

MODEL_TYPES = ("qwen2", "qwen3", "qwen3_5_text")
HYBRID = "qwen3_5_text"
# kinds of RoPE whose angles do not depend on the text's length
STATIC_ROPE = ("default", "linear", "yarn", "llama3")
# names of SiLU, which fused layers compute
SILU = ("silu", "swish")
# kinds of layers, by whether the model has recurrent ones
LAYER_TYPES = {
    False: ("full_attention", "sliding_attention"),
    True: ("full_attention", "linear_attention"),
}
# fields that change other families' functions, and that no Qwen of transformers reads, with the
# value that changes nothing
UNREAD = {
    "mlp_bias": False,
    "is_causal": True,
    "use_bidirectional_attention": False,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "embedding_multiplier": 1,
    "residual_multiplier": 1,
    "logits_scaling": 1,
}


def check_config(config: Any) -> None:
    """Refuse what a backbone would compute wrongly. config: transformers'. Raises UserError.

    The error is one sentence: what was needed, and what the config says.
    """
    kind = config.model_type
    if kind not in MODEL_TYPES:
        raise UserError(
            f"a backbone needs one of the model types {', '.join(MODEL_TYPES)}; got {kind}"
        )
    for found in (_sizes(config), _rope(config), _layers(config), _functions(config)):
        for needed, got in found:
            raise UserError(f"a {kind} model needs {needed}; its config says {got}")


def rotated_size(config: Any) -> int:
    """Return how many dimensions of each head RoPE turns."""
    share = config.rope_parameters.get("partial_rotary_factor", 1.0)
    return int(head_size(config) * share)


def head_size(config: Any) -> int:
    """Return the size of a query's head, which a config may leave to the hidden size."""
    return getattr(config, "head_dim", config.hidden_size // config.num_attention_heads)


def _sizes(config: Any) -> Iterator[tuple[str, str]]:
    heads, shared = config.num_attention_heads, config.num_key_value_heads
    if not (heads >= 1 and shared >= 1 and heads % shared == 0):
        yield (
            "query heads in whole groups, one for each key head",
            f"num_attention_heads {heads} and num_key_value_heads {shared}",
        )
    if hasattr(config, "head_dim") and not (config.head_dim and config.head_dim > 0):
        yield "a head_dim of 1 or more", f"{config.head_dim}"
    eps = config.rms_norm_eps
    if not (math.isfinite(eps) and eps >= 0):
        yield "an rms_norm_eps of 0 or more", f"{eps}"
    if config.model_type == HYBRID:
        keys, values = config.linear_num_key_heads, config.linear_num_value_heads
        if not (keys >= 1 and values >= 1 and values % keys == 0):
            yield (
                "value heads in whole groups, one for each key head of its recurrent layers",
                f"linear_num_value_heads {values} and linear_num_key_heads {keys}",
            )


def _rope(config: Any) -> Iterator[tuple[str, str]]:
    rope = getattr(config, "rope_parameters", None) or {}
    if any(isinstance(value, dict) for value in rope.values()):
        yield "one RoPE for all of its layers", f"one each for {', '.join(rope)}"
    kind = rope.get("rope_type", "default")
    if kind not in STATIC_ROPE:
        yield (
            f"a RoPE that does not depend on the text's length ({', '.join(STATIC_ROPE)})",
            f"{kind!r}",
        )
    for name in ("rope_theta", "factor", "partial_rotary_factor"):
        value = rope.get(name, 1)
        if not (isinstance(value, (int, float)) and 0 < value < math.inf):
            yield f"a {name} above 0 in its RoPE", f"{value!r}"
    size, turned = head_size(config), rotated_size(config)
    if config.model_type == HYBRID:
        if not (0 < turned <= size and turned % 2 == 0):
            yield "an even number of each head's dimensions for RoPE", f"{turned} of {size}"
    elif turned != size or size % 2:
        yield "RoPE over whole heads of an even size", f"{turned} of {size} dimensions"


def _layers(config: Any) -> Iterator[tuple[str, str]]:
    known = LAYER_TYPES[config.model_type == HYBRID]
    types = list(getattr(config, "layer_types", None) or ())
    odd = sorted(set(types) - set(known))
    if odd:
        yield f"layer_types of {' and '.join(known)}", f"{', '.join(odd)}"
    if len(types) not in (0, config.num_hidden_layers):
        yield "one of layer_types for each layer", f"{len(types)} for {config.num_hidden_layers}"
    if config.model_type == HYBRID and types and "full_attention" not in types:
        yield "a layer of full attention", "that all are recurrent"
    if "sliding_attention" in types and not (config.sliding_window or 0) > 0:
        yield "a sliding_window of 1 or more for its sliding layers", f"{config.sliding_window}"


def _functions(config: Any) -> Iterator[tuple[str, str]]:
    # without SiLU the layers of Qwen2 and Qwen3 run as transformers' own, those of Qwen3.5 cannot
    if config.model_type == HYBRID and config.hidden_act not in SILU:
        yield "SiLU as its hidden_act", f"{config.hidden_act!r}"
    for name, neutral in UNREAD.items():
        value = getattr(config, name, neutral)
        if value is not None and value != neutral:
            yield f"{name} to be {neutral}, since its layers have no such part", f"{value!r}"
