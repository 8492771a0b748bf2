"""The add-on `dmtd_layers`: what late-layer-only passes add to the late layers' weights *(ours)*.

`addons.json` says the split, tau, bits and the number of files `dmtd_layers-0.safetensors` ….
They hold, for every late layer i and each of PARTS, W' - W in groups of GROUP of a row:
`layers.i.PART.levels`, [out, in] int8, or in 4 bits [out, in / 2] uint8 with level + 8, even
columns in the low half; and `layers.i.PART.step`, [out, in / GROUP] float16.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from dmtd_demo.backbone.qwen import Backbone
from dmtd_demo.backbone.split import Split
from dmtd_demo.errors import UserError
from dmtd_demo.models.addon_file import addon_tensors

NAME = "dmtd_layers"
GROUP = 32
# linears of the same input, one above the other
PARTS = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "o": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}


@torch.no_grad()
def rounded(difference: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Levels as they are stored, and steps; difference [out, in], in a multiple of GROUP."""
    most = 2 ** (bits - 1) - 1
    groups = difference.float().unflatten(1, (-1, GROUP))
    step = (groups.abs().amax(-1, keepdim=True) / most).clamp(min=1e-7).half()
    levels = (groups / step.float()).round().clamp(-most - 1, most).to(torch.int8).flatten(1)
    if bits == 4:
        levels = (levels + 8).to(torch.uint8)
        levels = levels[:, ::2] | levels[:, 1::2] << 4
    return levels, step[..., 0]


@torch.no_grad()
def restored(levels: Tensor, step: Tensor, bits: int) -> Tensor:
    """The difference, float32 [out, in]."""
    if bits == 4:
        levels = torch.stack([levels & 15, levels >> 4], -1).flatten(1).to(torch.int8) - 8
    return (levels.float().unflatten(1, (-1, GROUP)) * step.float()[..., None]).flatten(1)


def save(
    folder: Path, split: Split, differences: list[dict[str, Tensor]], bits: int, files: int = 1
) -> None:
    """Write the files of differences by a linear's name, for each late layer; the card is the
    caller's (`addons.json`: split, tau, bits, files)."""
    tensors: dict[str, Tensor] = {}
    for i, of_layer in enumerate(differences, split.late_start):
        for part, names in PARTS.items():
            whole = torch.cat([of_layer[name] for name in names])
            for kind, tensor in zip(("levels", "step"), rounded(whole, bits)):
                tensors[f"layers.{i}.{part}.{kind}"] = tensor.contiguous()
    keys = list(tensors)
    for n in range(files):
        held = keys[n * len(keys) // files : (n + 1) * len(keys) // files]
        save_file({key: tensors[key] for key in held}, folder / f"{NAME}-{n}.safetensors")


def take(folder: Path, facts: dict[str, Any], backbone: Backbone) -> Split:
    """Give the backbone the late layers of a folder; facts: the card's. Returns their split.
    Raises UserError where anything does not fit."""
    for name, kind in (("split", str), ("tau", int), ("bits", int), ("files", int)):
        if type(facts.get(name)) is not kind:
            raise UserError(
                f"{folder / 'addons.json'}: {NAME} needs {name}, {kind.__name__}; "
                f"got {facts.get(name)!r}"
            )
    if facts["bits"] not in (4, 8) or not 1 <= facts["files"] <= 64 or not 1 <= facts["tau"] <= 16:
        raise UserError(
            f"{folder / 'addons.json'}: {NAME} needs bits of 4 or 8, 1 to 64 files and tau from 1 "
            f"to 16; got {facts['bits']}, {facts['files']} and {facts['tau']}"
        )
    split = Split.parse(facts["split"], backbone.layers, "replace")
    tensors: dict[str, Tensor] = {}
    for n in range(facts["files"]):
        tensors |= addon_tensors(folder, NAME, f"-{n}")[1]
    backbone.adapt(split, _differences(folder, split, facts["bits"], tensors, backbone))
    return split


def _differences(
    folder: Path, split: Split, bits: int, tensors: dict[str, Tensor], backbone: Backbone
) -> list[dict[str, Tensor]]:
    """Restore the differences by a linear's name, for each late layer; `tensors` is emptied."""
    shapes = backbone.linear_shapes()
    found = []
    for i in range(split.late_start, split.layers):
        of_layer: dict[str, Tensor] = {}
        for part, names in PARTS.items():
            rows = [shapes[name][0] for name in names]
            out, columns = sum(rows), shapes[names[0]][1]
            wanted = {
                "levels": (
                    (out, columns // 2 if bits == 4 else columns),
                    torch.uint8 if bits == 4 else torch.int8,
                ),
                "step": ((out, columns // GROUP), torch.float16),
            }
            held = {}
            for kind, (shape, dtype) in wanted.items():
                name = f"layers.{i}.{part}.{kind}"
                tensor = tensors.pop(name, None)
                if tensor is None or tensor.shape != shape or tensor.dtype != dtype:
                    got = "nothing" if tensor is None else f"{list(tensor.shape)} {tensor.dtype}"
                    raise UserError(
                        f"the {NAME} in {folder} need the tensor {name}, {list(shape)} {dtype}, "
                        f"for this model; got {got}"
                    )
                held[kind] = tensor
            if not torch.isfinite(held["step"]).all():
                raise UserError(f"the {NAME} in {folder}: layers.{i}.{part}.step is not finite")
            whole = restored(held["levels"], held["step"], bits)
            of_layer |= dict(zip(names, whole.split(rows)))
        found.append(of_layer)
    if tensors:
        raise UserError(f"the {NAME} in {folder} hold what nothing reads: {', '.join(tensors)}")
    return found
