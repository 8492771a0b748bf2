"""A catalog entry or a folder to a Model: weights, quantization, device and dtype, each with the reason as text."""
from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoTokenizer, BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM
from transformers.utils import logging as transformers_logging

from dmtd_demo.addons import load_addons
from dmtd_demo.backbone import MODEL_TYPES, Backbone, parameters
from dmtd_demo.catalog import CATALOG, Entry
from dmtd_demo.errors import UserError
from dmtd_demo.memory import Sizes, taken
from dmtd_demo.placement import SMALL, Placement, place
from dmtd_demo.split import Split

CLASSES: dict[str, tuple[type, type[PreTrainedModel]]] = {"qwen2": (Qwen2Config, Qwen2ForCausalLM), "qwen3": (Qwen3Config, Qwen3ForCausalLM)}


@dataclass(eq=False)
class Model:
    """A loaded checkpoint with its add-ons. reasons: why this device, dtype, quantization and thread count."""
    name: str
    label: str
    backbone: Backbone
    tokenizer: PreTrainedTokenizerBase | None
    split: Split | None   # what the checkpoint says of itself; None where it was never trained for DMTD
    tau: int | None
    eos_ids: frozenset[int]
    trained_length: int | None
    quantization: str
    reasons: list[str]
    addons: dict[str, nn.Module] = field(default_factory=dict)
    addon_facts: dict[str, dict] = field(default_factory=dict)
    warmed: set[str] = field(default_factory=set)

    @property
    def context(self) -> int:
        return self.backbone.context

    @property
    def layers(self) -> int:
        return self.backbone.layers

    @property
    def device(self) -> str:
        return str(self.backbone.device)

    @property
    def dtype(self) -> str:
        return str(self.backbone.dtype).removeprefix("torch.")

    @property
    def parameters(self) -> int:
        return parameters(self.backbone.module)

    @property
    def memory(self) -> int:
        """Bytes that the weights hold, the add-ons' included."""
        return taken(self.backbone.module) + sum(taken(module) for module in self.addons.values())

    def has(self, need: str) -> bool:
        """Whether a decoder's need is met."""
        return self.layers > 1 if need == "split" else need in self.addons


def load(name: str = "classroom", *, quantization: str | None = None, dtype: str | None = None, device: str | None = None, threads: int | None = None,
         addons: str | None = None) -> Model:
    """Load a catalog model or a local folder in Hugging Face format. Raises UserError where anything the user supplied does not fit."""
    entry = CATALOG.get(name)
    folder = Path(entry.source) if entry and entry.is_local else Path(name)
    if entry and not entry.is_local:
        folder = _download(entry)
    elif not folder.is_dir():
        what = "is a file" if folder.is_file() else "is neither"
        raise UserError(f"the model needs to be a folder in Hugging Face format, or one of {', '.join(CATALOG)}; {name!r} {what}")
    raw = _read_json(folder / "config.json", f"the folder {folder} is no model: it")
    config, cls = _config(raw, folder)
    placement = place(Sizes.of(config.model_type, config.to_dict()), config.max_position_embeddings, quantization=quantization, dtype=dtype, device=device)
    module = _weights(folder, config, cls, placement)
    model = _model(entry.name if entry else folder.name, entry.label if entry else str(folder), module, _tokenizer(folder, config), raw, _eos_ids(folder, raw), placement)
    _threads(model, threads)
    own = folder / "addons"
    if addons or own.is_dir():
        model.addons, model.addon_facts = load_addons(Path(addons) if addons else own, model.backbone.hidden_size, model.backbone.dtype, model.backbone.device)
    return model


def load_random(name: str, *, dtype: str | None = None, device: str | None = None, threads: int | None = None, quantization: str | None = None) -> Model:
    """A catalog model's shape with random weights, no download and no tokenizer: for benchmarks."""
    if name not in CATALOG:
        raise UserError(f"--random-weights needs one of {', '.join(CATALOG)}; got {name!r}")
    entry = CATALOG[name]
    config_cls, cls = CLASSES[entry.family]
    config = config_cls(**entry.shape, eos_token_id=None, pad_token_id=None, bos_token_id=None)
    placement = place(Sizes.of(entry.family, entry.shape), config.max_position_embeddings, quantization=quantization, dtype=dtype, device=device)
    torch.manual_seed(0)
    previous = torch.get_default_dtype()
    torch.set_default_dtype(placement.dtype)
    try:
        with torch.device(placement.device if placement.device.startswith("cuda") else "cpu"):
            module = cls._from_config(config, attn_implementation="sdpa")
    finally:
        torch.set_default_dtype(previous)
    if placement.quantization != "none" or placement.device == "auto":
        module = _weights(None, config, cls, placement, module.state_dict())
    model = _model(f"{name} (random weights)", f"{entry.label}, random weights", module, None, {}, frozenset(), placement)
    _threads(model, threads)
    return model


def _model(name: str, label: str, module: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, raw: dict, eos_ids: frozenset[int], placement: Placement) -> Model:
    module.eval().requires_grad_(False)
    backbone = Backbone(module)
    trained = raw.get("trained_length")
    tau = raw.get("mtp_horizon")
    return Model(name, label, backbone, tokenizer, Split.from_config(raw, backbone.layers), tau if isinstance(tau, int) and tau >= 1 else None, eos_ids,
                 trained if isinstance(trained, int) else None, placement.quantization, placement.reasons)


def _read_json(path: Path, complaint: str) -> dict:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{complaint} needs {path.name}, which is not there") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} needs to be JSON; reading it gave: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} needs to be a JSON object; got {type(value).__name__}")
    return value


def _config(raw: dict, folder: Path) -> tuple[Any, type[PreTrainedModel]]:
    """transformers' config for the folder. A DMTD checkpoint has its authors' own model type and is a Qwen3 otherwise; no remote code is ever run."""
    kind = raw.get("model_type")
    if kind not in MODEL_TYPES:
        if "num_thinking_layers" not in raw:
            raise UserError(f"the model in {folder} needs one of the model types {', '.join(MODEL_TYPES)}, or the fields of a DMTD checkpoint; got {kind!r}")
        kind = "qwen3"
    config_cls, cls = CLASSES[kind]
    fields = {k: v for k, v in raw.items() if k not in ("model_type", "auto_map", "architectures", "quantization_config")}
    try:
        return config_cls.from_dict(fields), cls
    except Exception as error:   # transformers' strict configs raise several kinds for a wrong field
        raise UserError(f"{folder / 'config.json'} does not describe a {kind} model: {str(error).splitlines()[0]}") from None


def _weights(folder: Path | None, config: Any, cls: type[PreTrainedModel], placement: Placement, state: dict[str, torch.Tensor] | None = None) -> PreTrainedModel:
    """The checkpoint's weights (or `state`), strictly: a missing or misshapen tensor is an error."""
    files = sorted(folder.glob("*.safetensors")) if folder else []
    if folder and not files:
        raise UserError(f"the model in {folder} needs its weights in safetensors files; none are there")
    for path in files:   # a file cut short says so here, by its own header, before anything is allocated
        try:
            with safe_open(path, "pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} needs to be a whole safetensors file; reading it gave: {error}") from None
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()   # what it would warn of is checked below
    transformers_logging.disable_progress_bar()
    try:
        module, info = cls.from_pretrained(folder, config=config, dtype=placement.dtype, attn_implementation="sdpa", use_safetensors=True, local_files_only=True,
                                           output_loading_info=True, device_map="auto" if placement.device == "auto" else {"": placement.device},
                                           quantization_config=_bitsandbytes(placement), state_dict=state)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"the weights in {folder} do not fit its config.json: {' '.join(str(error).split())[:300]}") from None
    finally:
        transformers_logging.set_verbosity(verbosity)
    missing = sorted(info["missing_keys"])
    misshapen = sorted(str(key) for key in info.get("mismatched_keys", ()))
    if missing or misshapen:
        what = f"the tensor {missing[0]} is missing" if missing else f"a tensor has the wrong shape: {misshapen[0]}"
        raise UserError(f"the weights in {folder} do not fit its config.json: {what} ({len(missing) + len(misshapen)} such in all)")
    return module


def _bitsandbytes(placement: Placement) -> BitsAndBytesConfig | None:
    if placement.quantization == "none":
        return None
    if placement.quantization == "int8":
        # with another dtype it would say, for every layer of every step, that activations are cast to float16
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=placement.quantization == "nf4", bnb_4bit_compute_dtype=placement.dtype)


def _tokenizer(folder: Path, config: Any) -> PreTrainedTokenizerBase | None:
    """config: given, so that transformers never follows an `auto_map` in the folder, which it would offer to run."""
    if not any((folder / name).exists() for name in ("tokenizer.json", "vocab.json")):
        return None
    try:
        return AutoTokenizer.from_pretrained(folder, config=config, local_files_only=True)
    except Exception as error:   # tokenizer files fail in many ways; all of them are the folder's
        raise UserError(f"the tokenizer in {folder} cannot be read: {' '.join(str(error).split())[:200]}") from None


def _eos_ids(folder: Path, raw: dict) -> frozenset[int]:
    """generation_config's, else config's."""
    path = folder / "generation_config.json"
    value = _read_json(path, str(folder)).get("eos_token_id") if path.exists() else None
    if value is None:
        value = raw.get("eos_token_id")
    return frozenset() if value is None else frozenset([value] if isinstance(value, int) else value)


def _threads(model: Model, threads: int | None) -> None:
    if threads is not None:
        if not 1 <= threads <= 1024:
            raise UserError(f"threads needs a whole number from 1 to 1024; got {threads}")
        torch.set_num_threads(threads)
    elif model.device == "cpu" and model.parameters < SMALL:
        torch.set_num_threads(1)
        model.reasons.append("1 thread: for matrices this small, handing work to a second thread costs more than it saves")


def _download(entry: Entry) -> Path:
    from huggingface_hub import snapshot_download
    try:
        return Path(snapshot_download(entry.source, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.jinja"]))
    except Exception as error:   # network, hub and disk errors alike: what matters is that the model is not there
        raise UserError(f"{entry.name} needs to be fetched from the hub ({entry.source}) and is not in the local cache; the hub answered: {' '.join(str(error).split())[:200]}") from None
