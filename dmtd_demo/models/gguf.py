"""A GGUF file's header read as a model: the config, and each parameter by its transformers name.

GGUF is what llama.cpp, LM Studio and Ollama keep on disk.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from gguf import GGMLQuantizationType

from dmtd_demo.errors import UserError
from dmtd_demo.models.gguf_header import File, read_header

# By the file's architecture, the model type it loads as: a plain Llama is a Qwen2 whose query, key
# and value biases are zero.
ARCHITECTURES = {"qwen2": "qwen2", "qwen3": "qwen3", "llama": "qwen2"}

# Of the architecture's own metadata, what is read, and what changes nothing. Anything else could
# change what the model computes (scales, soft caps, windows by layer), and is refused.
READ = frozenset(
    "block_count context_length embedding_length feed_forward_length attention.head_count "
    "attention.head_count_kv attention.key_length attention.value_length expert_count "
    "attention.layer_norm_rms_epsilon attention.sliding_window rope.dimension_count "
    "rope.freq_base rope.scaling.type rope.scaling.factor "
    "rope.scaling.original_context_length".split()
)
NEUTRAL = frozenset(
    "vocab_size tensor_data_layout expert_used_count rope.scaling.finetuned".split()
)

GLOBAL = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
IN_LAYER = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.q_proj.bias": "attn_q.bias",
    "self_attn.k_proj.bias": "attn_k.bias",
    "self_attn.v_proj.bias": "attn_v.bias",
    "self_attn.q_norm.weight": "attn_q_norm.weight",
    "self_attn.k_norm.weight": "attn_k_norm.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}
ROPE_FACTORS = "rope_freqs.weight"  # of Llama 3.1 and later: what each frequency is divided by


def read(path: Path) -> File:
    """Read and check the header of the file. Raises UserError."""
    try:
        with path.open("rb") as stream:
            return read_stream(stream, path.stat().st_size, str(path), path)
    except OSError as error:
        raise UserError(f"{path} needs to be a file that can be read; it gave: {error}") from None


def read_stream(stream: BinaryIO, size: int, name: str, path: Path | None = None) -> File:
    """Read and check the header from the beginning of a stream. size: bytes of the whole file."""
    file = read_header(stream, size, name, path)
    _check_kind(file)
    _check_parameters(file, config_of(file))
    return file


def _check_kind(file: File) -> None:
    metadata = file.metadata
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
        raise file.refuse(
            f"needs one of the architectures {', '.join(ARCHITECTURES)}; got "
            f"{str(architecture)[:80]!r}"
        )
    kind = metadata.get("general.type", "model")
    if kind != "model":
        raise file.refuse(f"needs to hold a model; got {str(kind)[:80]!r}")
    if metadata.get("split.count", 1) != 1:
        raise file.refuse("is one part of several: join them first, by llama-gguf-split --merge")
    if file.own("expert_count", 0) != 0:
        raise file.refuse("is a mixture of experts: take a dense model")
    prefix = f"{architecture}."
    for key in metadata:
        if key.startswith(prefix) and key.removeprefix(prefix) not in READ | NEUTRAL:
            raise file.refuse(
                f"says {key[:80]!r}, which may change what the model computes and is not known here"
            )


def config_of(file: File) -> dict[str, Any]:
    """The config.json that transformers' model of the file would have. Raises UserError."""
    heads = _whole(file, "attention.head_count")
    hidden = _whole(file, "embedding_length")
    head_dim = _whole(file, "attention.key_length", hidden // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if _whole(file, key, head_dim) != head_dim:
            raise file.refuse(f"needs {key} to be the head size, {head_dim}; got {file.own(key)}")
    context = _whole(file, "context_length")
    if "token_embd.weight" not in file.tensors:
        raise file.refuse("needs the tensor token_embd.weight; it is not there")
    vocabulary = file.tensors["token_embd.weight"].shape[0]
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, list) and len(tokens) != vocabulary:
        raise file.refuse(f"needs a token for each of {vocabulary:,} rows; got {len(tokens):,}")
    return {
        "model_type": ARCHITECTURES[file.architecture],
        "hidden_size": hidden,
        "intermediate_size": _whole(file, "feed_forward_length"),
        "num_hidden_layers": _whole(file, "block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": _whole(file, "attention.head_count_kv", heads),
        "head_dim": head_dim,
        "vocab_size": vocabulary,
        # inside the window, where there is one, attention is what it is without
        "max_position_embeddings": min(context, _whole(file, "attention.sliding_window", context)),
        "rms_norm_eps": _positive(file, "attention.layer_norm_rms_epsilon"),
        "rope_parameters": _rope(file, head_dim, context),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }


def _rope(file: File, head_dim: int, context: int) -> dict[str, Any]:
    rope: dict[str, Any] = {
        "rope_type": "default",
        "rope_theta": _positive(file, "rope.freq_base", 10_000.0),
    }
    kind = file.own("rope.scaling.type", "none")
    if kind not in ("none", "linear", "yarn"):
        raise file.refuse(f"needs a RoPE scaling of none, linear or yarn; got {str(kind)[:80]!r}")
    if kind != "none":
        rope |= {"rope_type": kind, "factor": _positive(file, "rope.scaling.factor")}
    if kind == "yarn":
        original = _whole(file, "rope.scaling.original_context_length", context)
        rope["original_max_position_embeddings"] = original
    if ROPE_FACTORS in file.tensors and file.path is not None:
        rope |= _llama3(file, rope, head_dim)
    return rope


def _llama3(file: File, rope: dict[str, Any], head_dim: int) -> dict[str, Any]:
    """Llama 3's scaling, which the file holds as one factor a frequency, by transformers' names."""
    tensor = file.tensors[ROPE_FACTORS]
    if tensor.kind != GGMLQuantizationType.F32 or tensor.shape != (head_dim // 2,):
        raise file.refuse(f"needs {head_dim // 2} float32 values in {ROPE_FACTORS}")
    held = file.bytes_of(tensor).view("<f4").astype(np.float64).flatten()
    if np.all(held == 1):
        return {}
    scaling = {
        "rope_type": "llama3",
        "factor": float(np.round(held.max(), 3)),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    turns = 8192 * rope["rope_theta"] ** (-np.arange(0, head_dim, 2) / head_dim) / (2 * math.pi)
    smooth = np.clip((turns - 1) / 3, 0, 1)
    wanted = 1 / ((1 - smooth) / scaling["factor"] + smooth)
    if rope["rope_type"] != "default" or not np.allclose(held, wanted, rtol=1e-3):
        raise file.refuse(f"needs the RoPE factors of Llama 3 in {ROPE_FACTORS}; they are others")
    return scaling


def _whole(file: File, key: str, default: int | None = None) -> int:
    value = file.own(key, default)
    if type(value) is not int or not 1 <= value < 2**31:
        got = "none" if value is None else str(value)[:80]
        raise file.refuse(f"needs a whole number, 1 or more, for {key}; got {got}")
    return value


def _positive(file: File, key: str, default: float | None = None) -> float:
    value = file.own(key, default)
    if type(value) not in (int, float) or not 0 < value < math.inf:
        got = "none" if value is None else str(value)[:80]
        raise file.refuse(f"needs a number above 0 for {key}; got {got}")
    return float(value)


def parameters(file: File, config: dict[str, Any]) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Each parameter's name in transformers, its tensor's in the file, and its shape.

    A llama's biases are among them only where the file has them.
    """
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    size, family = config["head_dim"], config["model_type"]
    queries, keys = config["num_attention_heads"] * size, config["num_key_value_heads"] * size
    out = {"q_proj": queries, "k_proj": keys, "v_proj": keys, "o_proj": hidden,
           "gate_proj": inner, "up_proj": inner, "down_proj": hidden}  # fmt: skip
    into = {"o_proj": queries, "down_proj": inner}
    for name, stored in GLOBAL.items():
        if name != "lm_head.weight" or not config["tie_word_embeddings"]:
            matrix = name != "model.norm.weight"
            yield name, stored, (config["vocab_size"], hidden) if matrix else (hidden,)
    for layer in range(config["num_hidden_layers"]):
        for name, stored in IN_LAYER.items():
            part = name.split(".")[-2]
            stored = f"blk.{layer}.{stored}"
            if part in out:
                if name.endswith("bias") and (
                    family != "qwen2" or file.permuted and stored not in file.tensors
                ):
                    continue
                rows = out[part]
                shape: tuple[int, ...] = (rows, into.get(part, hidden))
                shape = (rows,) if name.endswith("bias") else shape
            elif part in ("q_norm", "k_norm"):
                if family != "qwen3":
                    continue
                shape = (size,)
            else:
                shape = (hidden,)
            yield f"model.layers.{layer}.{name}", stored, shape


def _check_parameters(file: File, config: dict[str, Any]) -> None:
    """Check that the file holds every parameter in its exact shape, and nothing else."""
    heads, keys = config["num_attention_heads"], config["num_key_value_heads"]
    if heads % keys or config["head_dim"] % 2:
        raise file.refuse(
            f"needs query heads that the {keys} key heads divide, of an even size; got {heads} of "
            f"{config['head_dim']}"
        )
    read = {ROPE_FACTORS}
    for _, stored, shape in parameters(file, config):
        if stored not in file.tensors:
            raise file.refuse(f"needs the tensor {stored} {list(shape)}; it is not there")
        got = file.tensors[stored].shape
        if got != shape:
            raise file.refuse(f"needs the tensor {stored} to be {list(shape)}; got {list(got)}")
        read.add(stored)
    extra = sorted(file.tensors.keys() - read)
    if extra:
        raise file.refuse(f"holds {len(extra)} tensors that nothing reads, {extra[0][:80]} first")
