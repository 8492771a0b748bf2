"""A config.json to transformers' config and its class of models, each field checked first.

Whatever is wrong with it is a UserError that says what was needed and what was got.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import (
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3_5ForCausalLM,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from dmtd_demo.backbone.supported import MODEL_TYPES, check_config
from dmtd_demo.errors import UserError
from dmtd_demo.models.causes import in_one_line
from dmtd_demo.models.ends import ids_of
from dmtd_demo.models.recognition import check_unquantized
from dmtd_demo.models.silence import silenced

CLASSES: dict[str, tuple[type[PretrainedConfig], type[PreTrainedModel]]] = {
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "qwen3_5_text": (Qwen3_5TextConfig, Qwen3_5ForCausalLM),
}
# by a part of their model type: the Qwen variants whose layers are others
VARIANTS = {
    "moe": "a mixture of experts",
    "vl": "a model of images and text",
    "omni": "a model of sound, images and text",
    "audio": "a model of sound and text",
    "next": "a mixture of experts",
    "exp": "of a design that is not read here",
}
# the model type of a text model wrapped with a vision tower and an MTP head
WRAPPER = "qwen3_5"

# Fields that are whole numbers from 1, and the most that any of them can be: beyond it a config is
# damaged, and what is made of it would fill the memory.
MOST = {
    "hidden_size": 2**17,
    "intermediate_size": 2**20,
    "num_hidden_layers": 2**20,
    "num_attention_heads": 2**14,
    "num_key_value_heads": 2**14,
    "head_dim": 2**14,
    "vocab_size": 2**24,
    "max_position_embeddings": 2**31,
    "linear_num_key_heads": 2**14,
    "linear_num_value_heads": 2**14,
    "linear_key_head_dim": 2**14,
    "linear_value_head_dim": 2**14,
    "linear_conv_kernel_dim": 2**8,
    "full_attention_interval": 2**20,
}
# those that may be null: they follow from others
MAY_BE_NULL = ("num_key_value_heads", "head_dim", "full_attention_interval")
# of classifiers, and the dtype, which is chosen here: transformers makes tables of the former
UNREAD = frozenset(
    "model_type auto_map architectures num_labels id2label label2id problem_type dtype "
    "torch_dtype transformers_version _name_or_path name_or_path".split()
)


def text_of(raw: dict, folder: Path) -> dict:
    """The fields of a config.json as those of the text model alone, where it wraps one.

    Raises UserError.
    """
    if raw.get("model_type") != WRAPPER:
        return raw
    text = raw.get("text_config")
    if not isinstance(text, dict):
        raise UserError(
            f"the {WRAPPER} model in {folder} needs an object text_config in its config.json, with "
            f"its text model's sizes; got {type(text).__name__}"
        )
    outer = {
        name: value
        for name, value in raw.items()
        if name not in ("text_config", "vision_config", "architectures")
    }
    return {**outer, **text, "model_type": f"{WRAPPER}_text"}


def config_of(raw: dict, folder: Path) -> tuple[Any, type[PreTrainedModel]]:
    """transformers' config for the folder, and its class of models. Raises UserError.

    A DMTD checkpoint has its authors' own model type and is a Qwen3 otherwise; no remote code is
    ever run.
    """
    check_unquantized(raw, folder)
    kind = _kind(raw, folder)
    path = folder / "config.json" if folder.is_dir() else folder
    config_cls, cls = CLASSES[kind]
    fields = {
        name: value
        for name, value in raw.items()
        # a field of a method's name would take its place
        if name not in UNREAD
        and not callable(getattr(config_cls, name, None))
        # an empty one, which says nothing, transformers would ask for its method
        and (value or name != "quantization_config")
    }
    _check_fields(fields, path, kind)
    try:
        with silenced():
            config = config_cls.from_dict(fields)
    except Exception as error:
        # transformers' strict configs raise several kinds for a wrong field
        raise _refused(path, kind, in_one_line(error)) from None
    try:
        _check_whole(config, path, kind)
        check_config(config)
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        if isinstance(error, UserError):
            raise
        # a list where a number belongs, which transformers lets pass in some fields
        words = f"a field has a value of another kind: {in_one_line(error)}"
        raise _refused(path, kind, words) from None
    return config, cls


def _kind(raw: Mapping[str, Any], folder: Path) -> str:
    kind = raw.get("model_type")
    if isinstance(kind, str) and kind in MODEL_TYPES:
        return kind
    if "num_thinking_layers" in raw:
        return "qwen3"
    variant = next((f", {words}" for part, words in VARIANTS.items() if part in str(kind)), "")
    raise UserError(
        "a model needs to be a dense text model of the Qwen2, Qwen3 or Qwen3.5 family "
        f"({', '.join(MODEL_TYPES)}, {WRAPPER}), or a DMTD checkpoint; the one in {folder} is "
        f"{str(kind)[:80]!r}{variant}: take another, such as Qwen3-0.6B"
    )


def _refused(path: Path, kind: str, words: str) -> UserError:
    return UserError(f"{path} does not describe a {kind} model: {words}")


def _check_fields(fields: Mapping[str, Any], path: Path, kind: str) -> None:
    """Check the fields that are there. Raises UserError."""
    for name, most in MOST.items():
        value = fields.get(name, 1)
        if value is None and name in MAY_BE_NULL:
            continue
        if type(value) is not int or not 1 <= value <= most:
            raise _refused(
                path, kind, f"{name} needs a whole number from 1 to {most:,}; got {_shown(value)}"
            )
    ids_of(fields.get("eos_token_id"), path, fields.get("vocab_size", MOST["vocab_size"]))
    for name in ("rms_norm_eps", "rope_theta"):
        value = fields.get(name, 1)
        if type(value) not in (int, float) or not 0 < value < math.inf:
            raise _refused(path, kind, f"{name} needs a number above 0; got {_shown(value)}")


def _check_whole(config: Any, path: Path, kind: str) -> None:
    """Check the fields against each other, those that were left out at their defaults."""
    hidden, heads, rows = config.hidden_size, config.num_attention_heads, config.vocab_size
    keys, head = config.num_key_value_heads or heads, getattr(config, "head_dim", None)
    if heads % keys:
        raise _refused(
            path,
            kind,
            f"num_attention_heads needs to be a multiple of num_key_value_heads, {keys}; "
            f"got {heads}",
        )
    if head is None and hidden % heads:
        raise _refused(
            path,
            kind,
            f"hidden_size needs to be a multiple of num_attention_heads, {heads}, where there is "
            f"no head_dim; got {hidden:,}",
        )
    if (head or hidden // heads) % 2:
        raise _refused(path, kind, f"heads need an even size; got {head or hidden // heads}")
    types = getattr(config, "layer_types", None)
    if types is not None and len(types) != config.num_hidden_layers:
        raise _refused(
            path,
            kind,
            f"layer_types needs an entry for each of the {config.num_hidden_layers} layers; got "
            f"{len(types)}",
        )
    pad = config.pad_token_id
    if pad is not None and (type(pad) is not int or not -rows <= pad < rows):
        raise _refused(
            path,
            kind,
            f"pad_token_id needs to be a token id from 0 to {rows - 1:,}, or null; got "
            f"{_shown(pad)}",
        )
    ids_of(config.eos_token_id, path, rows)


def _shown(value: object) -> str:
    return f"{value:,}" if type(value) is int else repr(value)[:80]
