"""The tensors of a folder's safetensors files against what its config.json asks for."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

from dmtd_demo.errors import UserError, is_out_of_memory
from dmtd_demo.models import recognition
from dmtd_demo.models.causes import in_one_line, not_whole
from dmtd_demo.models.json_file import read_json
from dmtd_demo.models.silence import silenced

INDEX = "model.safetensors.index.json"
LAYER = re.compile(r"^layers\.(\d+)\.")
# By the end of a matrix' name: the field that its rows follow from, and the one of its columns.
FIELDS = {
    "embed_tokens.weight": ("vocab_size", "hidden_size"),
    "lm_head.weight": ("vocab_size", "hidden_size"),
    "mlp.gate_proj.weight": ("intermediate_size", "hidden_size"),
    "mlp.up_proj.weight": ("intermediate_size", "hidden_size"),
    "mlp.down_proj.weight": ("hidden_size", "intermediate_size"),
    "norm.weight": ("hidden_size",),
    "layernorm.weight": ("hidden_size",),
}
TABLE = {"embed_tokens.weight": "the table", "lm_head.weight": "the LM head"}


def check(folder: Path, config: Any, cls: type[PreTrainedModel]) -> None:
    """Compare headers alone, before any weight is read. Raises UserError.

    Tensors that nothing reads, and those that are missing one by one, are the loading's to tell.
    """
    held, dtypes = _held(folder)
    recognition.check_tensors(dtypes, folder)
    layers = 1 + max((int(m[1]) for name in held if (m := LAYER.match(name))), default=-1)
    if 0 < layers < config.num_hidden_layers:
        raise UserError(
            f"the weights in {folder} do not fit its config.json: num_hidden_layers says "
            f"{config.num_hidden_layers:,}, the files hold {layers:,} layers"
        )
    for name, wanted in _wanted(folder, config, cls).items():
        got = held.get(name)
        if got is not None and got != wanted:
            raise UserError(
                f"the weights in {folder} do not fit its config.json: "
                f"{_difference(name, wanted, got, config)}"
            )


def _held(folder: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """Shapes by the name inside the text model, dtypes by the name in the files."""
    files = sorted(folder.glob("*.safetensors"))
    index = folder / INDEX
    recognition.check_marks(folder)
    if index.exists():
        named = read_json(index, str(folder)).get("weight_map")
        if not isinstance(named, dict) or not all(isinstance(v, str) for v in named.values()):
            raise UserError(f"{index} needs an object weight_map, with a file for each tensor")
        gone = sorted(set(named.values()) - {path.name for path in files})
        if gone:
            raise UserError(
                f"{index} names {len(set(named.values()))} files; {gone[0]} is not there: the "
                "download was not finished, fetch it again"
            )
    elif not files:
        other = [
            p.name for p in (*folder.glob("*.bin"), *folder.glob("*.pth"), *folder.glob("*.pt"))
        ]
        are = f"they are in {min(other)}: convert them" if other else "none are there"
        raise UserError(f"the model in {folder} needs its weights in safetensors files; {are}")
    shapes, dtypes = {}, {}
    for path in files:
        if recognition.is_pointer(path):
            raise UserError(
                f"{path} is Git LFS's pointer to the file, not the file: fetch it by `git lfs pull`"
            )
        try:
            with safe_open(path, "pt") as file:
                for name in file.keys():
                    part = file.get_slice(name)
                    shapes[_inside(name)] = tuple(part.get_shape())
                    dtypes[name] = part.get_dtype()
        except (SafetensorError, OSError, ValueError, MemoryError) as error:
            raise not_whole(path, error) from None
    return shapes, dtypes


def _inside(name: str) -> str:
    """A tensor's name inside the text model, however the files' model wraps it."""
    for prefix in ("model.language_model.", "language_model.model.", "model."):
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    return name


def _wanted(folder: Path, config: Any, cls: type[PreTrainedModel]) -> dict[str, tuple[int, ...]]:
    try:
        with silenced(), torch.device("meta"):
            module = cls._from_config(config, attn_implementation="sdpa")
    except Exception as error:
        if is_out_of_memory(error) or isinstance(error, UserError):
            raise
        raise UserError(
            f"{folder / 'config.json'} does not describe a {config.model_type} model: "
            f"{in_one_line(error)}"
        ) from None
    return {_inside(name): tuple(t.shape) for name, t in module.state_dict().items()}


def _difference(name: str, wanted: tuple[int, ...], got: tuple[int, ...], config: Any) -> str:
    """Say which field differs from a tensor, where one alone does, else both shapes."""
    fields = next((fields for end, fields in FIELDS.items() if name.endswith(end)), ())
    if len(wanted) == len(got) == len(fields):
        differ = [i for i in range(len(got)) if wanted[i] != got[i]]
        if len(differ) == 1:
            at = differ[0]
            of = ("rows" if at == 0 else "columns") if len(got) == 2 else "values"
            what = TABLE.get(name, name)
            return f"{fields[at]} says {wanted[at]:,}, {what} has {got[at]:,} {of}"
    return f"the tensor {name} needs the shape {list(wanted)}; the files have {list(got)}"
