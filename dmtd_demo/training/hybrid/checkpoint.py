"""The shape of `classroom-hybrid`, the weights that a run begins with, and the folder it becomes.

Weights are a plain dict under the published names, so a checkpoint is what is trained.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase, Qwen3_5TextConfig

from dmtd_demo.backbone.split import Split

NAME = "classroom-hybrid"
# the late layers are one whole period: linear, linear, linear, full
SPLIT = Split(layers=12, early=0, late=4, head_input="replace")
CONTEXT = 8192
SHARD_BYTES = 9_000_000
FLOAT32 = ("A_log", "linear_attn.norm.weight")  # as in published checkpoints
Weights = dict[str, Tensor]


def new_config(
    vocabulary: int, end: int, pad: int, layers: int = SPLIT.layers
) -> Qwen3_5TextConfig:
    """Return the config: 9.8 million parameters with the MTP module, tied head."""
    return Qwen3_5TextConfig(
        vocab_size=vocabulary,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        linear_num_key_heads=4,
        linear_num_value_heads=4,
        linear_key_head_dim=64,
        linear_value_head_dim=64,
        linear_conv_kernel_dim=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        rms_norm_eps=1e-6,
        pad_token_id=pad,
        bos_token_id=None,
        eos_token_id=end,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10_000.0,
            "partial_rotary_factor": 0.5,
            "mrope_section": [3, 3, 2],
            "mrope_interleaved": True,
        },
    )


def shapes(config: Qwen3_5TextConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of the checkpoint, `mtp.*` among them."""
    h, width, heads = config.hidden_size, config.head_dim, config.linear_num_value_heads
    k = config.linear_num_key_heads * config.linear_key_head_dim
    v = heads * config.linear_value_head_dim
    full = {
        "self_attn.q_proj.weight": (2 * config.num_attention_heads * width, h),
        "self_attn.k_proj.weight": (config.num_key_value_heads * width, h),
        "self_attn.v_proj.weight": (config.num_key_value_heads * width, h),
        "self_attn.o_proj.weight": (h, config.num_attention_heads * width),
        "self_attn.q_norm.weight": (width,),
        "self_attn.k_norm.weight": (width,),
    }
    linear = {
        "linear_attn.in_proj_qkv.weight": (2 * k + v, h),
        "linear_attn.in_proj_z.weight": (v, h),
        "linear_attn.in_proj_b.weight": (heads, h),
        "linear_attn.in_proj_a.weight": (heads, h),
        "linear_attn.conv1d.weight": (2 * k + v, 1, config.linear_conv_kernel_dim),
        "linear_attn.A_log": (heads,),
        "linear_attn.dt_bias": (heads,),
        "linear_attn.norm.weight": (config.linear_value_head_dim,),
        "linear_attn.out_proj.weight": (h, v),
    }
    rest = {
        "mlp.gate_proj.weight": (config.intermediate_size, h),
        "mlp.up_proj.weight": (config.intermediate_size, h),
        "mlp.down_proj.weight": (h, config.intermediate_size),
        "input_layernorm.weight": (h,),
        "post_attention_layernorm.weight": (h,),
    }
    named: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config.vocab_size, h),
        "model.norm.weight": (h,),
    }
    for i, kind in enumerate(config.layer_types or []):
        named |= {
            f"model.layers.{i}.{name}": shape
            for name, shape in ((full if kind == "full_attention" else linear) | rest).items()
        }
    named |= {
        "mtp.fc.weight": (h, 2 * h),
        "mtp.norm.weight": (h,),
        "mtp.pre_fc_norm_embedding.weight": (h,),
        "mtp.pre_fc_norm_hidden.weight": (h,),
    }
    return named | {f"mtp.layers.0.{name}": shape for name, shape in (full | rest).items()}


def new_weights(config: Qwen3_5TextConfig, seed: int) -> Weights:
    """Return random weights, in float32.

    Residual branches start small, as in GPT-2; gates as in Mamba-2, so that a state lasts from ten
    to a thousand positions.
    """
    generator = torch.Generator().manual_seed(seed)
    weights: Weights = {}
    for name, shape in shapes(config).items():
        if name.endswith("linear_attn.norm.weight"):
            weights[name] = torch.ones(shape)
        elif name.endswith("A_log"):
            weights[name] = (1 + 15 * torch.rand(shape, generator=generator)).log()
        elif name.endswith("dt_bias"):
            # from 0.001 to 0.1; softplus of the bias is dt
            dt = torch.exp(torch.rand(shape, generator=generator) * 4.605 - 6.908)
            weights[name] = dt + torch.log(-torch.expm1(-dt))
        elif name.endswith("conv1d.weight"):
            weights[name] = (torch.rand(shape, generator=generator) * 2 - 1) * shape[-1] ** -0.5
        elif len(shape) == 1:
            weights[name] = torch.zeros(shape)
        else:
            weights[name] = 0.02 * torch.randn(shape, generator=generator)
            if name.endswith(("o_proj.weight", "out_proj.weight", "down_proj.weight")):
                weights[name] *= (2 * config.num_hidden_layers) ** -0.5
    return weights


def stored(weights: Weights) -> Weights:
    """Return the weights as a checkpoint holds them.

    In bfloat16, but for what published checkpoints hold in float32.
    """
    out = {}
    for name, t in weights.items():
        dtype = torch.float32 if name.endswith(FLOAT32) else torch.bfloat16
        out[name] = t.detach().to("cpu", dtype).contiguous()
    return out


def save_model(
    config: Qwen3_5TextConfig,
    weights: Weights,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    split: Split = SPLIT,
    trained_length: int = 512,
) -> None:
    """Write a sharded folder that transformers loads as a Qwen3.5, `mtp.*` as published.

    All files are written aside first and then moved, so that a killed run leaves a folder that
    loads.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[Weights] = [{}]
    size = 0
    for name, t in stored(weights).items():
        if size + t.nbytes > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = t
        size += t.nbytes
    total = sum(t.nbytes for shard in shards for t in shard.values())
    where: dict[str, str] = {}
    for i, shard in enumerate(shards, 1):
        file = f"model-{i:05}-of-{len(shards):05}.safetensors"
        save_file(shard, folder / f"{file}.part", metadata={"format": "pt"})
        where |= dict.fromkeys(shard, file)
    raw = config.to_dict() | {
        "architectures": ["Qwen3_5ForCausalLM"],
        "dtype": "bfloat16",
        "num_encoding_layers": split.early,
        "num_thinking_layers": split.middle,
        "num_decoding_layers": split.late,
        "mtp_horizon": 4,
        "dmtd_head_input": split.head_input,
        "trained_length": trained_length,
        "mtp_num_hidden_layers": 1,
        "mtp_use_dedicated_embeddings": False,
    }
    generation = {
        "do_sample": False,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.pad_token_id,
    }
    index = {"metadata": {"total_size": total}, "weight_map": where}
    for file, value in (
        ("config.json", raw),
        ("generation_config.json", generation),
        ("model.safetensors.index.json", index),
    ):
        (folder / f"{file}.part").write_text(json.dumps(value, indent=2) + "\n")
    for part in sorted(folder.glob("*.part"), reverse=True):
        part.replace(part.with_suffix(""))
    if not (folder / "tokenizer.json").exists():
        tokenizer.save_pretrained(folder)
