"""The weights of a GGUF file: dequantized tensor by tensor, or the exact levels of its blocks."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import Q4_K, dequantize
from torch import Tensor

from dmtd_demo.backbone.packed import GROUP, Held, Levels
from dmtd_demo.models.checkpoint import SAMPLE
from dmtd_demo.models.gguf import config_of, parameters
from dmtd_demo.models.gguf_header import File
from dmtd_demo.models.gguf_header import Tensor as Stored

CHUNK = 2**17  # values that are dequantized at once: they stay in a processor's cache
EXACT = (GGMLQuantizationType.Q4_0, GGMLQuantizationType.Q4_1, GGMLQuantizationType.Q4_K)
# Of 5 to 8 bits: in 4 they would lose what their file kept. tests/models/test_smollm2.py prints how
# much that is for an LM head whose table is Q8_0.
FINER = (
    GGMLQuantizationType.Q5_0,
    GGMLQuantizationType.Q5_1,
    GGMLQuantizationType.Q5_K,
    GGMLQuantizationType.Q6_K,
    GGMLQuantizationType.Q8_0,
)


@dataclass(frozen=True, eq=False)
class Lazy:
    """A parameter that is dequantized when somebody takes `[...]` of it, as from safetensors."""

    file: File
    stored: Stored
    name: str
    dtype: torch.dtype

    def __getitem__(self, _: Any) -> Tensor:
        return dense(self.file, self.stored, self.name, self.dtype)


def state(file: File, dtype: torch.dtype) -> dict[str, Any]:
    """Every parameter by its name in transformers: Lazy, or zeros for a llama's biases."""
    config = config_of(file)
    found: dict[str, Any] = {}
    for name, stored, shape in parameters(file, config):
        found[name] = Lazy(file, file.tensors[stored], name, dtype)
        bias = name.removesuffix("weight") + "bias"
        if file.permuted and name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
            found.setdefault(bias, torch.zeros(shape[0], dtype=dtype))
    return found


def dense(file: File, stored: Stored, name: str, dtype: torch.dtype) -> Tensor:
    """The tensor's values. Raises UserError where one of them is not finite."""
    raw = _rows(file, stored, name)
    out = torch.empty(stored.shape, dtype=dtype).view(len(raw), -1)
    step = max(1, CHUNK // out.shape[1])
    for start in range(0, len(raw), step):
        values = _values(file, stored, raw[start : start + step])
        if not all(map(torch.isfinite, torch.aminmax(values))):
            raise file.refuse(
                f"needs finite weights; its tensor {stored.name} holds NaN or infinity: the file "
                "is damaged or its training failed, fetch it again or take another"
            )
        out[start : start + step] = values.view(-1, out.shape[1])
    return out.view(stored.shape)


def levels(file: File, stored: Stored, name: str) -> Levels | None:
    """The levels that the file's blocks hold; None for types that are not of this form."""
    if stored.kind not in EXACT:
        return None
    raw = _rows(file, stored, name)
    rows = len(raw)
    blocks = np.ascontiguousarray(raw).reshape(-1, GGML_QUANT_SIZES[stored.kind][1])
    first = _half(blocks, 0)
    if stored.kind == GGMLQuantizationType.Q4_0:
        step, middle, packed = first, np.zeros_like(first), blocks[:, 2:]
    elif stored.kind == GGMLQuantizationType.Q4_1:
        step, middle, packed = first, _half(blocks, 2) + 8 * first, blocks[:, 4:]
    else:
        scales, mins = Q4_K.get_scale_min(blocks[:, 4:16])
        step = first * scales.astype(np.float32)
        middle = 8 * step - _half(blocks, 2) * mins.astype(np.float32)
        packed = blocks[:, 16:].reshape(-1, GROUP)
    # the low halves of the bytes come before the high ones: over 16 bytes, or Q4_K's 32
    held = np.stack((packed & 15, packed >> 4), axis=1).reshape(rows, -1)
    groups = [torch.from_numpy(np.ascontiguousarray(x.reshape(rows, -1).T)) for x in (step, middle)]
    return Levels(torch.from_numpy(held), *groups)


def held_by_name(file: File) -> Held:
    """Look up what 4-bit packing keeps of a parameter by its transformers name: levels, or 8
    bits of what the file has in more than 4; None where it is to be rounded as any other."""
    stored = _stored_by_name(file)

    def find(name: str) -> Levels | int | None:
        tensor = file.tensors[stored[name]]
        return 8 if tensor.kind in FINER else levels(file, tensor, name)

    return find


def _stored_by_name(file: File) -> dict[str, str]:
    """Each parameter's tensor in the file, the LM head's too where it is tied."""
    stored = {name: held for name, held, _ in parameters(file, config_of(file))}
    stored.setdefault("lm_head.weight", stored["model.embed_tokens.weight"])
    return stored


def finer(file: File) -> int:
    """Count the weights of matrices that 4-bit packing holds in 8 bits, the LM head's included."""
    matrices = (
        file.tensors[stored]
        for name, stored in _stored_by_name(file).items()
        if name.endswith(("proj.weight", "lm_head.weight"))
    )
    return sum(math.prod(tensor.shape) for tensor in matrices if tensor.kind in FINER)


def in_four_bits(file: File) -> bool:
    """Whether most of its weights are levels that 4-bit packing keeps."""
    sizes: Counter[bool] = Counter()
    for tensor in file.tensors.values():
        sizes[tensor.kind in EXACT] += math.prod(tensor.shape)
    return sizes[True] > sizes[False]


def in_words(file: File, kept: bool) -> str:
    """Say what the file holds and what became of it. kept: whether 4-bit levels stay."""
    counts = Counter(tensor.kind for tensor in file.tensors.values())
    held = ", ".join(f"{kind.name} ({number})" for kind, number in counts.most_common())
    how = "its weights are dequantized as they are loaded"
    same = [kind.name for kind in counts if kind in EXACT]
    if kept and same:
        finer = [kind.name for kind in counts if kind in FINER]
        how = f"the levels of {', '.join(same)} are kept" + (
            f", {', '.join(finer)} is held in 8 bits" if finer else ""
        )
    return f"a GGUF file with tensors of {held}: {how}"


def fingerprint(file: File) -> str:
    """Hash the file as `checkpoint.check_weights` does the same values in safetensors files."""
    samples = {}
    for name, stored, shape in parameters(file, config_of(file)):
        if name != "lm_head.weight":
            raw = _rows(file, file.tensors[stored], name)
            raw = raw[: -(-SAMPLE // (shape[-1] if len(shape) > 1 else 1))]
            values = _values(file, file.tensors[stored], raw)
            samples[name] = values.flatten()[:SAMPLE].numpy().tobytes()
    return hashlib.sha256(b"".join(n.encode() + samples[n] for n in sorted(samples))).hexdigest()[
        :16
    ]


def _rows(file: File, stored: Stored, name: str) -> np.ndarray:
    """The tensor's bytes [rows, bytes of a row], mapped from the file; a vector's values are rows.

    A llama's queries and keys have their rotated pairs side by side; here as transformers has
    them, first halves before second ones.
    """
    if len(stored.shape) == 1 and GGML_QUANT_SIZES[stored.kind][0] != 1:
        raise file.refuse(f"needs vectors that are not quantized; {stored.name} is")
    raw = file.bytes_of(stored)
    if not file.permuted or ".q_proj." not in name and ".k_proj." not in name:
        return raw
    size = config_of(file)["head_dim"]
    order = np.arange(len(raw)).reshape(-1, size // 2, 2).swapaxes(1, 2).reshape(-1)
    return raw[order]


def _values(file: File, stored: Stored, raw: np.ndarray) -> Tensor:
    """float32, flat. One long row: the package goes through rows by sixteens."""
    try:
        with np.errstate(all="ignore"):  # what is not finite is told of afterwards
            values = dequantize(np.ascontiguousarray(raw).reshape(1, -1), stored.kind)
    except NotImplementedError:
        raise file.refuse(
            f"needs tensors of types that can be dequantized; {stored.name} is {stored.kind.name}"
        ) from None
    return torch.from_numpy(np.require(values, np.float32, "W")).flatten()


def _half(blocks: np.ndarray, at: int) -> np.ndarray:
    """The float16 at this byte of each block, [blocks, 1], in float32."""
    return blocks[:, at : at + 2].copy().view(np.float16).astype(np.float32)
