"""Weights to transformers' module: of a folder, a GGUF file or a state dict, strictly."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from transformers import BitsAndBytesConfig, GenerationConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from dmtd_demo.backbone import cpu_packed, cuda_packed, integers
from dmtd_demo.backbone.bitsandbytes_4bit import choose_layout
from dmtd_demo.backbone.packed import DENSE, Held
from dmtd_demo.errors import Cancelled, UserError, is_out_of_memory
from dmtd_demo.models import checkpoint, gguf_weights
from dmtd_demo.models.causes import in_one_line
from dmtd_demo.models.config import WRAPPER
from dmtd_demo.models.gguf_header import File
from dmtd_demo.models.placement import FAST, Placement
from dmtd_demo.models.silence import silenced
from dmtd_demo.progress import Progress, no_progress


@dataclass(frozen=True, eq=False)
class Source:
    """The source of weights: a folder, a GGUF file's header, or a state dict alone.

    config, module: transformers' own, which the weights have to fit.
    """

    config: Any
    module: type[PreTrainedModel]
    folder: Path | None = None
    file: File | None = None
    state: dict[str, Any] | None = None

    @property
    def hybrid(self) -> bool:
        return self.config.model_type == f"{WRAPPER}_text"


def read(source: Source, placement: Placement, progress: Progress = no_progress) -> PreTrainedModel:
    """Read the weights into a module on its device, quantized as the placement says.

    What else there is to know of them goes into the placement's reasons. Raises UserError where a
    tensor is missing or has another shape, and what `progress` raises.
    """
    module, info = _module_of(source, placement, progress)
    _check_all_read(source, info, placement)
    file = source.file
    if placement.quantization in FAST:
        pack(module, placement, gguf_weights.held_by_name(file) if file else None)
    if file is not None:
        placement.reasons.append(gguf_weights.in_words(file, placement.quantization == "fast-int4"))
    choose_layout(module, placement.dtype)
    return module


def _module_of(
    source: Source, placement: Placement, progress: Progress
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """transformers' module, and what it says of missing and misshapen tensors."""
    state = source.state
    if source.file is not None:
        state = gguf_weights.state(source.file, placement.dtype)
    transformers_logging.disable_progress_bar()
    previous = transformers_logging.set_tqdm_hook(partial(_told, progress))
    dense = ["lm_head", *DENSE] if source.hybrid else None
    on_one = "cpu" if placement.quantization in FAST else placement.device
    try:
        # what it would warn of is checked afterwards
        with silenced():
            loaded = source.module.from_pretrained(
                source.folder if state is None else None,
                config=source.config,
                # not read from the folder: what ends a text is known already (ends.py)
                generation_config=GenerationConfig.from_model_config(source.config),
                dtype=placement.dtype,
                attn_implementation="sdpa",
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                device_map="auto" if placement.device == "auto" else {"": on_one},
                quantization_config=_bitsandbytes(placement, dense),
                state_dict=state,
            )
    except Exception as error:
        # of the many kinds that transformers raises for files that do not fit
        if is_out_of_memory(error) or isinstance(error, (UserError, Cancelled)):
            raise
        raise UserError(
            f"the weights in {source.folder} do not fit its config.json: {in_one_line(error)}"
        ) from None
    finally:
        transformers_logging.set_tqdm_hook(previous)
    # a pair, because of output_loading_info, which its annotations do not know
    return cast("tuple[PreTrainedModel, dict[str, Any]]", loaded)


def _check_all_read(source: Source, info: dict[str, Any], placement: Placement) -> None:
    """Refuse weights that are no whole model; tell of tensors that nothing reads."""
    missing = sorted(info["missing_keys"])
    misshapen = sorted(str(key) for key in info.get("mismatched_keys", ()))
    if missing or misshapen:
        what = (
            f"the tensor {missing[0]} is missing"
            if missing
            else f"a tensor has the wrong shape: {misshapen[0]}"
        )
        raise UserError(
            f"the weights in {source.folder} do not fit its config.json: {what} "
            f"({len(missing) + len(misshapen)} such in all)"
        )
    unexpected = sorted(
        name for name in info["unexpected_keys"] if not checkpoint.UNREAD.search(name)
    )
    biases = [name for name in unexpected if name.endswith(".bias")]
    if biases:
        raise UserError(
            f"the weights in {source.folder} hold biases that its layers do not add: {biases[0]} "
            f"({len(biases)} such in all)"
        )
    if unexpected and source.hybrid:
        raise UserError(
            f"the weights in {source.folder} do not fit its config.json: {unexpected[0]} is of no "
            f"part of a Qwen3.5 ({len(unexpected)} such in all)"
        )
    if unexpected:
        placement.reasons.append(
            f"{len(unexpected)} of the tensors in the files are not read, {unexpected[0]} among "
            "them"
        )


def pack(module: PreTrainedModel, placement: Placement, held: Held | None = None) -> None:
    """Pack dense weights in the format of their device, wherever they lie."""
    if placement.device == "cpu":
        kinds = cpu_packed.Kinds()
        chosen = integers.choose(module) if placement.quantization == "fast-int4" else None
        if chosen is not None:
            kinds, found = chosen
            placement.reasons.append(found)
        cpu_packed.pack(module, placement.quantization, held, kinds)
    else:
        cuda_packed.pack(module, placement.quantization, placement.device, held)


def _told(
    progress: Progress, bar: Callable[..., Any], args: tuple[Any, ...], settings: dict[str, Any]
) -> Any:
    """transformers' progress bar over the weights that it loads, each of which `progress` hears of.

    Other bars stay as they are.
    """
    if settings.get("desc") != "Loading weights" or not args:
        return bar(*args, **settings)

    def each() -> Iterator[Any]:
        for done, item in enumerate(args[0]):
            progress("Loading the weights", done, len(args[0]))
            yield item

    return each()


def _bitsandbytes(placement: Placement, dense: list[str] | None) -> BitsAndBytesConfig | None:
    """bitsandbytes' settings, where it quantizes. dense: names of linears that stay as they are;
    None: the LM head alone."""
    if placement.quantization in ("none", *FAST):
        return None
    # it misses an optional package, whose kernels it would fetch from the hub
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    if placement.quantization == "int8":
        # with another dtype it would say, for every layer of every step, that activations are cast
        # to float16
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=dense)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=placement.quantization == "nf4",
        bnb_4bit_compute_dtype=placement.dtype,
        llm_int8_skip_modules=dense,
    )


def random(source: Source, placement: Placement) -> PreTrainedModel:
    """A module of the source's shape with random weights, the same at every call."""
    torch.manual_seed(0)
    previous = torch.get_default_dtype()
    torch.set_default_dtype(placement.dtype)
    try:
        with torch.device(placement.device if placement.device.startswith("cuda") else "cpu"):
            module = source.module._from_config(source.config, attn_implementation="sdpa")
    finally:
        torch.set_default_dtype(previous)
    if placement.quantization in FAST:
        pack(module, placement)
    elif placement.quantization != "none" or placement.device == "auto":
        state = module.state_dict()
        module = read(Source(source.config, source.module, state=state), placement)
    return module
