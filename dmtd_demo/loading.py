"""A catalog entry or a folder to a Model: weights, quantization, device and dtype, each with the reason as text."""
from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from dmtd_demo import checkpoint, hub
from dmtd_demo.addons import Base, load_addons
from dmtd_demo.backbone import Backbone, parameters
from dmtd_demo.catalog import CATALOG
from dmtd_demo.checkpoint import CLASSES
from dmtd_demo.errors import UserError
from dmtd_demo.memory import Sizes, taken
from dmtd_demo.placement import SMALL, Placement, place
from dmtd_demo.split import Split


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
    base: Base = Base("")
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
    """Load a catalog model, a local folder in Hugging Face format or a hub id. addons: a folder or hub id. Raises UserError where anything the user supplied does not fit."""
    entry = CATALOG.get(name)
    source = None   # on the hub
    folder = Path(entry.source) if entry and entry.is_local else Path(name)
    if entry and not entry.is_local:
        source = entry.source
    elif not folder.is_dir():
        if folder.is_file() or not hub.is_id(name):
            what = "is a file" if folder.is_file() else "is none of them"
            raise UserError(f"the model needs to be a folder in Hugging Face format, a hub id such as Qwen/Qwen3-0.6B, or one of {', '.join(CATALOG)}; {name!r} {what}")
        source = name
    if source:   # what cannot run is refused before gigabytes are fetched
        folder = hub.fetch(source, ["config.json"])
    raw = checkpoint.read_json(folder / "config.json", f"the folder {folder} is no model: it")
    config, cls = checkpoint.config_of(raw, folder)
    placement = place(Sizes.of(config.model_type, config.to_dict()), config.max_position_embeddings, quantization=quantization, dtype=dtype, device=device)
    if source:
        folder = hub.fetch(source, hub.MODEL_FILES)
    base = Base(source or (entry.name if entry else folder.name), hub.revision(folder), checkpoint.check_weights(folder))
    module = _weights(folder, config, cls, placement)
    label = entry.label if entry else source or str(folder)
    model = _model(entry.name if entry else source or folder.name, label, module, checkpoint.tokenizer(folder, config), raw, checkpoint.eos_ids(folder, raw), placement, base)
    if entry and entry.note:
        model.reasons.append(entry.note)
    _threads(model, threads)
    own = folder / "addons"
    if addons:
        given = hub.fetch(addons, hub.ADDON_FILES) if hub.is_id(addons) and not Path(addons).exists() else Path(addons)
        model.addons, model.addon_facts = load_addons(given, model.backbone.hidden_size, model.backbone.dtype, model.backbone.device, base)
    elif own.is_dir():   # they came with these weights
        model.addons, model.addon_facts = load_addons(own, model.backbone.hidden_size, model.backbone.dtype, model.backbone.device)
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
    model = _model(f"{name} (random weights)", f"{entry.label}, random weights", module, None, {}, frozenset(), placement, Base(f"{name} (random weights)"))
    _threads(model, threads)
    return model


def _model(name: str, label: str, module: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, raw: dict, eos_ids: frozenset[int], placement: Placement, base: Base) -> Model:
    module.eval().requires_grad_(False)
    backbone = Backbone(module)
    trained = raw.get("trained_length")
    tau = raw.get("mtp_horizon")
    return Model(name, label, backbone, tokenizer, Split.from_config(raw, backbone.layers), tau if isinstance(tau, int) and tau >= 1 else None, eos_ids,
                 trained if isinstance(trained, int) else None, placement.quantization, placement.reasons, base)


def _weights(folder: Path | None, config: Any, cls: type[PreTrainedModel], placement: Placement, state: dict[str, torch.Tensor] | None = None) -> PreTrainedModel:
    """The checkpoint's weights (or `state`), strictly: a missing or misshapen tensor is an error."""
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
    if info["unexpected_keys"]:
        placement.reasons.append(f"{len(info['unexpected_keys'])} of the tensors in the files are not read, {sorted(info['unexpected_keys'])[0]} among them")
    return module


def _bitsandbytes(placement: Placement) -> BitsAndBytesConfig | None:
    if placement.quantization == "none":
        return None
    if placement.quantization == "int8":
        # with another dtype it would say, for every layer of every step, that activations are cast to float16
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=placement.quantization == "nf4", bnb_4bit_compute_dtype=placement.dtype)


def _threads(model: Model, threads: int | None) -> None:
    if threads is not None:
        if not 1 <= threads <= 1024:
            raise UserError(f"threads needs a whole number from 1 to 1024; got {threads}")
        torch.set_num_threads(threads)
    elif model.device == "cpu" and model.parameters < SMALL:
        torch.set_num_threads(1)
        model.reasons.append("1 thread: for matrices this small, handing work to a second thread costs more than it saves")
