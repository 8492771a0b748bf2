"""Device, dtype and quantization of a model, each with the reason as text.

What does not fit is refused with the arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import torch

from dmtd_demo.backbone.cuda_packed import CAPABILITY
from dmtd_demo.errors import UserError
from dmtd_demo.machine import free, is_there
from dmtd_demo.models.memory import Need, Sizes, gib

QUANTIZATIONS = {
    "none": "as stored",
    "nf4": "4 bits, the scales quantized too",
    "nf4-single": "4 bits",
    "int8": "8 bits",
    "fast-int8": "8 bits by the fastest kernels here, the LM head too",
    "fast-int4": "4 bits by the fastest kernels here, the LM head too",
}
FAST = ("fast-int8", "fast-int4")  # without bitsandbytes; on one device
FORMER = {"cpu-int8": "fast-int8", "cpu-int4": "fast-int4"}  # names that go on working
# Defaults follow docs/performance.md. On a GPU the one that rounds least of those that are faster:
# what is compared on the page is the checkpoint's own text. Smaller ones are asked for by name.
ON_GPU = "fast-int8"
FAST_ON_GPU = (
    "fast-int8: on an H200 Qwen3-4B's shape made 394 tokens/s with it and 275 as stored, of which "
    "it rounds little; --quantization fast-int4 made 489 and rounds more, none is as stored"
)
MEASURED_ON = 9  # the compute capability of H100 and H200; elsewhere they run if asked for
NF4_ON_CPU = (
    "nf4: a decode step waits for the weights to be read, and 4 bits are a quarter of bfloat16; "
    "fast-int4 is not for this processor, for training, or for less memory than the dense weights "
    "take while it is loaded"
)
FASTEST_ON_CPU = (
    "fast-int4: on two cores Qwen2.5-0.5B's shape made 81 tokens/s with it, 49 with nf4 and 51 in "
    "bfloat16, since a decode step waits for the weights to be read"
)
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
SMALL = 50_000_000  # parameters under which one thread in float32 is the fastest on a CPU


@dataclass(frozen=True)
class Placement:
    """device: cpu, cuda…, or auto: over several CUDA devices by accelerate."""

    device: str
    dtype: torch.dtype
    quantization: str
    need: Need
    reasons: list[str]


@dataclass(frozen=True)
class Asked:
    """A placement as it was asked for; None: the default of the device.

    fast: it may be one of FAST, to which no adapters can be added. spare: bytes that others would
    give up for this model. Raises UserError where a setting is unknown.
    """

    quantization: str | None = None
    dtype: str | None = None
    device: str | None = None
    fast: bool = True
    spare: int = 0

    def __post_init__(self) -> None:
        quantization = FORMER.get(self.quantization or "", self.quantization)
        object.__setattr__(self, "quantization", quantization)
        if quantization is not None and quantization not in QUANTIZATIONS:
            raise UserError(
                f"quantization needs one of {', '.join(QUANTIZATIONS)}; got {quantization!r}"
            )
        if self.dtype is not None and self.dtype not in DTYPES:
            raise UserError(f"dtype needs one of {', '.join(DTYPES)}; got {self.dtype!r}")
        if quantization not in (None, "none", *FAST) and not find_spec("bitsandbytes"):
            raise UserError(
                f"quantization {quantization} needs the package bitsandbytes, which is not "
                "installed: pip install bitsandbytes"
            )


def place(sizes: Sizes, context: int, asked: Asked = Asked()) -> Placement:
    """Place a model: what was not asked for gets the default of the device.

    context: tokens. Raises UserError where the model would not fit, or its device is not there.
    """
    quantization, dtype, spare = asked.quantization, asked.dtype, asked.spare
    device, reasons = _device(asked)

    def need(quantization: str) -> Need:
        kind = DTYPES[dtype] if dtype else default_dtype(device, quantization, sizes)[0]
        return Need.of(sizes, quantization, kind.itemsize, context, device)

    if quantization is None:
        fast = asked.fast and has_fast_kernels(device)
        quantization, reason = _default_quantization(device, dtype, sizes, need, fast, spare)
        reasons += [reason] if reason else []
    if dtype is None:
        chosen, reason = default_dtype(device, quantization, sizes)
        reasons.append(reason)
    else:
        chosen = DTYPES[dtype]
    where = device
    if (
        device == "cuda"
        and quantization not in FAST
        and torch.cuda.device_count() > 1
        and need(quantization).total > free(device) + spare
    ):
        where = "auto"
        reasons.append(f"over {torch.cuda.device_count()} CUDA devices: it does not fit on one")
    room = free(where) + spare
    if need(quantization).total > room:
        kind = str(chosen).removeprefix("torch.")
        raise _too_large(sizes, kind, quantization, need, where, room)
    return Placement(where, chosen, quantization, need(quantization), reasons)


def _device(asked: Asked) -> tuple[str, list[str]]:
    """The device asked for, or the one that is there, with the reason. Raises UserError."""
    device, quantization, dtype = asked.device, asked.quantization, asked.dtype
    reasons = []
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        reasons.append(
            f"{device}: "
            + ("a CUDA device is there" if device == "cuda" else "no CUDA device is there")
        )
    elif not is_there("cuda" if device == "auto" else device):
        raise UserError(
            f"device needs to be cpu, or cuda where PyTorch finds a CUDA device; got {device!r}"
        )
    if quantization in FAST and quantization not in offered(device):
        raise UserError(
            f"quantization {quantization} needs a GPU of compute capability "
            f"{'.'.join(map(str, CAPABILITY))} or a CPU; on this {device} take nf4 or int8"
        )
    if (
        quantization in FAST
        and device != "cpu"
        and dtype is not None
        and DTYPES[dtype] != torch.bfloat16
    ):
        raise UserError(f"quantization {quantization} needs bfloat16 on {device}; got {dtype!r}")
    return device, reasons


def _too_large(
    sizes: Sizes, dtype: str, quantization: str, need: Callable[[str], Need], device: str, room: int
) -> UserError:
    """The refusal of a model that does not fit, with the arithmetic and what would."""
    smaller = [
        other
        for other in offered(device)
        if need(other).total <= room and (other in ("none", *FAST) or find_spec("bitsandbytes"))
    ]
    advice = (
        f"--quantization {smaller[0]} needs {gib(need(smaller[0]).total)}"
        if smaller
        else "take a smaller model, or a machine with more memory"
    )
    return UserError(
        f"a model of {sizes.parameters:,} parameters in {dtype}, quantization {quantization}, "
        f"needs {need(quantization)}; "
        f"{'the CUDA devices have' if device == 'auto' else device + ' has'} {gib(room)} free: "
        f"{advice}"
    )


def offered(device: str) -> list[str]:
    """The quantizations that run there."""
    return [
        name
        for name in QUANTIZATIONS
        if name not in FAST
        or device == "cpu"
        or device.startswith("cuda")
        and torch.cuda.get_device_capability(device) >= CAPABILITY
    ]


def _default_quantization(
    device: str,
    dtype: str | None,
    sizes: Sizes,
    need: Callable[[str], Need],
    fast: bool,
    spare: int,
) -> tuple[str, str]:
    """Choose a quantization, with the reason. fast: whether it may be one of FAST."""
    if dtype is not None:
        return "none", ""  # a dtype that was asked for is the dtype of the weights
    if fast and sizes.in_four_bits and need("fast-int4").total <= free(device) + spare:
        return "fast-int4", "fast-int4: its file holds 4 bits a weight, which are kept as they are"
    other = "nf4" if find_spec("bitsandbytes") else "none"
    if device == "cpu":
        if sizes.parameters < SMALL:
            return "none", ""
        if fast and (other == "none" or need("fast-int4").total <= free(device) + spare):
            return "fast-int4", FASTEST_ON_CPU
        return other, NF4_ON_CPU if other == "nf4" else ""
    room = free("auto" if device == "cuda" else device) + spare
    if need("none").total <= room:
        if fast and sizes.parameters >= SMALL and need(ON_GPU).total <= free(device) + spare:
            return ON_GPU, FAST_ON_GPU
        return "none", "not quantized: it fits as it is stored"
    short = f"as it is stored it needs {gib(need('none').total)}, and {gib(room)} are free"
    for smaller in FAST if fast else ():
        if need(smaller).total <= free(device) + spare:
            return smaller, f"{smaller}: {short}"
    return other, f"nf4: {short}" if other == "nf4" else ""


def has_fast_kernels(device: str) -> bool:
    """Whether the fast quantizations are known to be fast there: a processor for which PyTorch's
    4-bit product has code, and not the plain loops alone; a GPU like the one that was measured."""
    if device == "cpu":
        return torch.backends.cpu.get_cpu_capability().startswith("AVX")
    return device.startswith("cuda") and torch.cuda.get_device_capability(device)[0] == MEASURED_ON


def default_dtype(device: str, quantization: str, sizes: Sizes) -> tuple[torch.dtype, str]:
    """Choose a dtype, with the reason."""
    if quantization == "int8":
        return (
            torch.float16,
            "float16: bitsandbytes' INT8 matrices compute from float16, and would cast anything "
            "else at every step",
        )
    if quantization in FAST:
        return torch.bfloat16, "bfloat16: the one dtype for which packed kernels have fast code"
    if device == "cpu" and quantization == "none" and sizes.parameters < SMALL:
        return (
            torch.float32,
            "float32: for a model this small on a CPU it is the fastest and the most exact",
        )
    if (
        device != "cpu"
        and torch.cuda.get_device_capability(None if device == "auto" else device)[0] < 8
    ):
        return torch.float16, "float16: this GPU has no instructions for bfloat16"
    return (
        torch.bfloat16,
        "bfloat16: the dtype Qwen checkpoints are stored in, half the memory traffic of float32",
    )
