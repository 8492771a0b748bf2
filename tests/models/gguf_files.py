"""GGUF files as llama.cpp's converter writes them, from tiny modules and tokenizers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFWriter
from gguf.quants import quant_shape_to_byte_shape, quantize

from dmtd_demo.models.gguf import GLOBAL, IN_LAYER


def stored_name(name: str) -> str:
    """A parameter's name in the file."""
    if name in GLOBAL:
        return GLOBAL[name]
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{IN_LAYER[rest]}"


def pairs_together(weight: np.ndarray, head_dim: int) -> np.ndarray:
    """The rows of a Llama's queries or keys as llama.cpp rotates them."""
    parts = weight.reshape(-1, 2, head_dim // 2, *weight.shape[1:])
    return parts.swapaxes(1, 2).reshape(weight.shape)


def k_blocks(kind: Kind, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Random blocks of a K type, which gguf-py cannot write: bytes with sane scales."""
    rng = np.random.default_rng(seed)
    size = quant_shape_to_byte_shape(shape, kind)
    raw = rng.integers(0, 256, size, np.uint8).reshape(-1, {Kind.Q4_K: 144, Kind.Q6_K: 210}[kind])
    # d and dmin of a Q4_K block come first, d of a Q6_K block last
    for at in (0, 2) if kind == Kind.Q4_K else (208,):
        scale = rng.uniform(0.0005, 0.002, (len(raw), 1)).astype(np.float16)
        raw[:, at : at + 2] = scale.view(np.uint8)
    return raw.reshape(size)


def write(
    path: Path,
    module: Any,
    architecture: str,
    *,
    tokenizer: Any = None,
    pre: str = "qwen2",
    kinds: Callable[[str], Kind] = lambda name: Kind.F32,
    metadata: dict[str, Any] | None = None,
    tensors: dict[str, np.ndarray | None] | None = None,
) -> Path:
    """Write the module. kinds: of each matrix by its name in the file. metadata, tensors: what
    replaces, adds or, where it is None, leaves out."""
    config = module.config
    rope = config.rope_parameters
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    own = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.freq_base": float(rope["rope_theta"]),
    }
    values: dict[str, Any] = {f"{architecture}.{key}": value for key, value in own.items()}
    if tokenizer is not None:
        values |= tokenizer_metadata(tokenizer, config.vocab_size, pre)
    values |= metadata or {}
    writer = GGUFWriter(path, architecture)
    for key, value in values.items():
        if value is not None:
            _put(writer, key, value)
    arrays: dict[str, np.ndarray | None] = {}
    for name, tensor in module.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        array = tensor.float().numpy()
        if architecture == "llama" and (".q_proj." in name or ".k_proj." in name):
            array = pairs_together(array, head_dim)
        arrays[stored_name(name)] = array
    for name, array in {**arrays, **(tensors or {})}.items():
        if array is None:
            continue
        kind = kinds(name) if array.ndim > 1 else Kind.F32
        if kind in (Kind.Q4_K, Kind.Q6_K):
            writer.add_tensor(name, k_blocks(kind, array.shape), raw_dtype=kind)
        else:
            writer.add_tensor(name, quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tokenizer_metadata(tokenizer: Any, vocabulary: int, pre: str) -> dict[str, Any]:
    """As the converter writes it: rows without a token are unused ones."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    by_id = {id_: token for token, id_ in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder
    tokens = [by_id.get(id_, f"[PAD{id_}]") for id_ in range(vocabulary)]
    types = [
        (3 if added[id_].special else 4) if id_ in added else 1 if id_ in by_id else 5
        for id_ in range(vocabulary)
    ]
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.eos_token_id": tokenizer.eos_token_id,
        "tokenizer.ggml.padding_token_id": tokenizer.pad_token_id,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": tokenizer.chat_template,
    }


def _put(writer: GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
