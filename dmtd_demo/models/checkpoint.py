"""The files of a folder in Hugging Face format: config.json, weights, tokenizer.

Whatever is wrong with them is a UserError that says what to do.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3_5ForCausalLM,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from dmtd_demo.backbone.qwen import MODEL_TYPES
from dmtd_demo.errors import UserError, is_out_of_memory
from dmtd_demo.progress import Progress, no_progress
from dmtd_demo.text_files import parsed, read_text

CLASSES: dict[str, tuple[type[PretrainedConfig], type[PreTrainedModel]]] = {
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "qwen3_5_text": (Qwen3_5TextConfig, Qwen3_5ForCausalLM),
}
SAMPLE = 64  # values of each tensor that the fingerprint is made from
# by a part of their model type: the Qwen variants whose layers are others
VARIANTS = {
    "moe": "a mixture of experts",
    "vl": "a model of images and text",
    "omni": "a model of sound, images and text",
    "audio": "a model of sound and text",
    "next": "a mixture of experts",
    "exp": "of a design that is not read here",
}
WRAPPER = "qwen3_5"  # of a text model, a vision tower and an MTP head
# tensors of such a checkpoint that are no part of its text model
UNREAD = re.compile(r"(^|\.)visual\.|^mtp\.")


def read_json(path: Path, complaint: str) -> dict:
    try:
        value = parsed(read_text(path))
    except FileNotFoundError:
        raise UserError(f"{complaint} needs {path.name}, which is not there") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} needs to be JSON; reading it gave: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} needs to be a JSON object; got {type(value).__name__}")
    return value


def text_of(raw: dict, folder: Path) -> dict:
    """The fields of a config.json as those of the text model alone, where it wraps one."""
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


def names(folder: Path) -> dict[str, Path]:
    """The tensors in a folder's safetensors files, and the file of each."""
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found |= dict.fromkeys(file.keys(), path)
    return found


def config_of(raw: dict, folder: Path) -> tuple[Any, type[PreTrainedModel]]:
    """transformers' config for the folder, and its class of models. Raises UserError.

    A DMTD checkpoint has its authors' own model type and is a Qwen3 otherwise; no remote code is
    ever run.
    """
    kind = raw.get("model_type")
    if raw.get("quantization_config"):
        method = (
            raw["quantization_config"].get("quant_method", "unknown")
            if isinstance(raw["quantization_config"], dict)
            else "unknown"
        )
        raise UserError(
            f"a model needs to come unquantized; the one in {folder} is quantized already "
            f"({method}): take the plain checkpoint, and quantize it here by --quantization"
        )
    if kind not in MODEL_TYPES:
        if "num_thinking_layers" not in raw:
            variant = next(
                (f", {words}" for part, words in VARIANTS.items() if part in str(kind)), ""
            )
            raise UserError(
                "a model needs to be a dense text model of the Qwen2, Qwen3 or Qwen3.5 family "
                f"({', '.join(MODEL_TYPES)}, {WRAPPER}), or a DMTD checkpoint; the one in {folder} "
                f"is {kind!r}{variant}: take another, such as Qwen3-0.6B"
            )
        kind = "qwen3"
    config_cls, cls = CLASSES[kind]
    fields = {k: v for k, v in raw.items() if k not in ("model_type", "auto_map", "architectures")}
    try:
        return config_cls.from_dict(fields), cls
    except Exception as error:
        # transformers' strict configs raise several kinds for a wrong field
        raise UserError(
            f"{folder / 'config.json'} does not describe a {kind} model: "
            f"{str(error).splitlines()[0]}"
        ) from None


def check_weights(folder: Path, progress: Progress = no_progress) -> str:
    """Read every weight once: whole files, finite values. progress hears of bytes.

    Returns a fingerprint of the checkpoint, whatever it is quantized to later: a hash of the first
    values of every tensor; not of the LM head, which a tied model's files may hold or not. Raises
    UserError.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(
            f"the model in {folder} needs its weights in safetensors files; none are there"
        )
    samples: dict[str, bytes] = {}
    done, size = 0, sum(path.stat().st_size for path in files)
    for path in files:
        try:
            with safe_open(path, "pt") as file:
                for name in file.keys():
                    tensor = file.get_tensor(name)
                    if (
                        tensor.is_floating_point()
                        and tensor.numel()
                        and not all(map(torch.isfinite, torch.aminmax(tensor)))
                    ):
                        raise UserError(
                            f"weights need to be finite; the tensor {name} in {path} holds NaN or "
                            "infinity: the file is damaged or its training failed, fetch it again "
                            "or take another"
                        )
                    if name != "lm_head.weight":
                        samples[name] = tensor.flatten()[:SAMPLE].float().numpy().tobytes()
                    done += tensor.numel() * tensor.element_size()
                    progress("Checking the weights", done, size)
        except (SafetensorError, OSError, MemoryError) as error:
            if is_out_of_memory(error):
                raise UserError(
                    f"reading {path} ran out of memory: close what else runs here, or take a "
                    "smaller model"
                ) from None
            raise UserError(
                f"{path} needs to be a whole safetensors file; reading it gave: {error}"
            ) from None
    return hashlib.sha256(
        b"".join(name.encode() + samples[name] for name in sorted(samples))
    ).hexdigest()[:16]


def tokenizer(folder: Path, config: Any) -> PreTrainedTokenizerBase | None:
    """Read the folder's tokenizer; None where it has none. Raises UserError.

    config: given, so that transformers never follows an `auto_map` in the folder, which it would
    offer to run.
    """
    if not any((folder / name).exists() for name in ("tokenizer.json", "vocab.json")):
        return None
    try:
        return AutoTokenizer.from_pretrained(folder, config=config, local_files_only=True)
    except Exception as error:  # tokenizer files fail in many ways; all of them are the folder's
        raise UserError(
            f"the tokenizer in {folder} cannot be read: {' '.join(str(error).split())[:200]}"
        ) from None


def eos_ids(folder: Path, raw: dict) -> frozenset[int]:
    """generation_config's, else config's."""
    path = folder / "generation_config.json"
    value = read_json(path, str(folder)).get("eos_token_id") if path.exists() else None
    if value is None:
        value = raw.get("eos_token_id")
    return frozenset() if value is None else frozenset([value] if isinstance(value, int) else value)
