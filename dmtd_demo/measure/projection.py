"""`project`: the speed of every decoder on machines that are not here. Nothing is measured.

Tokens per second and speed-up come from bytes and operations alone. A pass costs, for each layer
that runs, the longer of reading its weights and the KV cache from memory and of its arithmetic,
plus a fixed time for each layer; then the LM head, in the same way (a roofline; Williams, Waterman,
Patterson, 2009).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Iterable, Mapping

from dmtd_demo.backbone.split import Split
from dmtd_demo.errors import UserError
from dmtd_demo.models.catalog import CATALOG
from dmtd_demo.models.memory import HYBRID, Sizes


@dataclass(frozen=True)
class Device:
    """A device as its maker states it.

    bandwidth: bytes a second from memory. operations: floating-point operations a second in
    bfloat16. layer_seconds: fixed time for each layer that runs, with CUDA graphs on GPUs; of the
    two fastest, the time that the H200's passes took over their bytes (docs/performance.md).
    """

    label: str
    bandwidth: float
    operations: float
    layer_seconds: float


DEVICES = {
    "laptop": Device("laptop CPU, two channels of DDR5-4800", 76.8e9, 0.5e12, 30e-6),
    "server-cpu": Device("server CPU, eight channels of DDR5-4800", 307e9, 20e12, 30e-6),
    "t4": Device("NVIDIA T4", 320e9, 65e12, 8e-6),
    "rtx4090": Device("NVIDIA RTX 4090", 1008e9, 165e12, 5e-6),
    "a10g": Device("NVIDIA A10G", 600e9, 70e12, 6e-6),
    "l40s": Device("NVIDIA L40S", 864e9, 362e12, 5e-6),
    "a100-40gb": Device("NVIDIA A100 40 GB", 1555e9, 312e12, 6e-6),
    "h100": Device("NVIDIA H100 SXM", 3350e9, 989e12, 35e-6),
    "h200": Device("NVIDIA H200", 4800e9, 989e12, 35e-6),
}
# of bandwidth and operations, by well-written kernels
REACHED = 0.8
# of the same, by PyTorch's own kernels one after another, as in training
EAGER = 0.4


@dataclass(frozen=True)
class Kept:
    """The way in which a quantization keeps weights, and the measured speed of reading them.

    bytes: of a weight, scales included. head: whether the LM head is kept so too, or in bfloat16.
    read: by device, the share of what products in bfloat16 reach there, for a pass over one
    position and for one over several, so that the estimate gives the tokens per second of
    docs/performance.md: on a GPU those of "CUDA" and "Quantization on CUDA" (H200, Qwen3-4B), on a
    laptop those of "Quantization on a CPU" (Qwen2.5-0.5B, tokens times bytes, two threads).
    """

    bytes: float
    head: bool
    read: Mapping[str, tuple[float, float]]


# one kind of multiprocessor; the figures are the H200's
_HOPPER = ("h100", "h200")
# bitsandbytes' INT8 is not among them: it was never measured on a GPU
FORMATS = {
    "none": Kept(2.0, True, {name: (1.0, 1.0) for name in DEVICES}),
    "nf4": Kept(
        0.5 + 4 / 64, False, {"laptop": (0.45, 0.45), **dict.fromkeys(_HOPPER, (0.195, 0.075))}
    ),
    "fast-int8": Kept(1.0, True, {"laptop": (0.55, 0.55), **dict.fromkeys(_HOPPER, (0.82, 0.82))}),
    "fast-int4": Kept(
        0.5 + 4 / 32, True, {"laptop": (0.5, 0.4), **dict.fromkeys(_HOPPER, (0.83, 0.83))}
    ),
}
SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "head_dim",
)
# not in the catalog, by SIZES; the LM head is not tied
_LARGER: dict[str, dict[str, int]] = {
    name: dict(zip(SIZES, sizes))
    for name, sizes in {
        "Qwen2.5-14B": (5120, 13824, 48, 40, 8, 152064, 128),
        "Qwen2.5-32B": (5120, 27648, 64, 40, 8, 152064, 128),
        "Qwen2.5-72B": (8192, 29568, 80, 64, 8, 152064, 128),
        "Qwen3-14B": (5120, 17408, 40, 40, 8, 151936, 128),
        "Qwen3-32B": (5120, 25600, 64, 64, 8, 151936, 128),
    }.items()
}
MODELS = (*CATALOG, *_LARGER)


@dataclass(frozen=True)
class ModelShape:
    """The sizes on which the cost of a pass depends.

    layer, head: parameters of one layer and of the LM head. layers: how many. The others are of
    attention.
    """

    layer: int
    head: int
    layers: int
    hidden: int
    query_size: int
    kv_size: int

    @classmethod
    def of(cls, name: str) -> ModelShape:
        """Look a model up by its name; raises UserError."""
        if name in _LARGER:
            return cls.of_fields(_LARGER[name])
        if name in CATALOG:
            return cls.of_fields(CATALOG[name].shape)
        raise UserError(f"project needs one of the models {', '.join(MODELS)}; got {name!r}")

    @classmethod
    def of_fields(cls, fields: Mapping[str, Any]) -> ModelShape:
        """Read the sizes by the names that a config has.

        Of a Qwen3.5 the mean layer: a quarter of them attend.
        """
        if "linear_num_value_heads" in fields:
            sizes, layers = Sizes.of(HYBRID, dict(fields)), int(fields["num_hidden_layers"])
            attending = (fields.get("full_attention_layers") or layers // 4) / layers
            size = int(fields["head_dim"] * attending)
            return cls(
                sizes.matrices // layers,
                sizes.head,
                layers,
                int(fields["hidden_size"]),
                int(fields["num_attention_heads"]) * size,
                int(fields["num_key_value_heads"]) * size,
            )
        hidden, intermediate, layers, heads, kv_heads, vocabulary, head_dim = (
            int(fields[key]) for key in SIZES
        )
        query, kv = heads * head_dim, kv_heads * head_dim
        return cls(
            2 * hidden * (query + kv) + 3 * hidden * intermediate,
            vocabulary * hidden,
            layers,
            hidden,
            query,
            kv,
        )


@dataclass(frozen=True)
class Setting:
    """A model on a device.

    batch: texts at once. context: tokens that each holds, on average. reached: share of the
    device's stated bandwidth and operations. read: `Kept.read`, of quantized weights alone.
    """

    shape: ModelShape
    device: Device
    quantization: str = "none"
    batch: int = 1
    context: int = 1024
    reached: float = REACHED
    read: tuple[float, float] = (1.0, 1.0)

    def seconds(
        self, runs: Iterable[tuple[int, int]], logit_rows: int = 1, extra_parameters: int = 0
    ) -> float:
        """Estimate one pass.

        runs: (layers, positions) in order. logit_rows: positions that the LM head reads.
        extra_parameters: of MTP heads and predictors, bfloat16.
        """
        kept, total = FORMATS[self.quantization], 0.0
        for layers, positions in runs:
            # keys and values, 2 bytes each
            cache = 2 * 2 * self.shape.kv_size * self.context * self.batch
            work = (
                2
                * self.batch
                * positions
                * (self.shape.layer + 2 * self.shape.query_size * self.context)
            )
            weights = self.shape.layer * kept.bytes / self.read[positions * self.batch > 1]
            total += layers * (self._longer(weights + cache, work) + self.device.layer_seconds)
        head = self.shape.head * 2.0
        if kept.head:
            head = self.shape.head * kept.bytes / self.read[logit_rows * self.batch > 1]
        return total + self._longer(
            head + extra_parameters * 2,
            2 * self.batch * (self.shape.head * logit_rows + extra_parameters),
        )

    def _longer(self, read: float, work: float) -> float:
        return max(read / self.device.bandwidth, work / self.device.operations) / self.reached


def cycle_seconds(setting: Setting, split: Split, tau: int) -> float:
    """Estimate a cycle of `dmtd`, tau tokens.

    A full pass whose middle layers refill tau positions, and tau - 1 late ones.
    """
    late = [(split.early + split.late, 1)]
    return setting.seconds([(split.early, 1), (split.middle, tau), (split.late, 1)]) + (
        tau - 1
    ) * setting.seconds(late)


@dataclass(frozen=True)
class Projection:
    """The question of an estimate.

    name: a catalog name, or a larger Qwen. device: a key of DEVICES. batch: texts at once; context:
    tokens that each holds. split: early and late layers, such as E0D8; None is the default. k: MTP
    heads. span: tokens that a full pass pays for, where the text decides (`clp`, `mtp-gate`, the
    verified ones, adaptive cycles). reached: share of the device's stated bandwidth and operations.
    Raises UserError for values that cannot be.
    """

    name: str
    device: str
    quantization: str = "none"
    batch: int = 1
    context: int = 1024
    split: str | None = None
    k: int = 4
    span: float = 2.0
    reached: float = REACHED

    def __post_init__(self) -> None:
        if self.device not in DEVICES:
            raise UserError(
                f"project needs one of the devices {', '.join(DEVICES)}; got {self.device!r}"
            )
        if self.quantization not in FORMATS:
            raise UserError(
                f"quantization needs one of {', '.join(FORMATS)}; got {self.quantization!r}"
            )
        if self.device not in FORMATS[self.quantization].read:
            raise UserError(
                f"project needs a device on which {self.quantization} was measured, or one like "
                f"it: {', '.join(FORMATS[self.quantization].read)}; got {self.device!r}"
            )
        for what, low, high in (
            ("batch", 1, 4096),
            ("context", 1, 1_000_000),
            ("k", 1, 16),
            ("span", 1, 17),
            ("reached", 0.01, 1),
        ):
            value = getattr(self, what)
            if not low <= value <= high:
                raise UserError(f"{what} needs a value from {low} to {high}; got {value}")


def project(asked: Projection) -> dict[str, Any]:
    """Estimate the speed of every decoder in one setting, with the published ones beside it."""
    k, span = asked.k, asked.span
    shape, device = ModelShape.of(asked.name), DEVICES[asked.device]
    setting = Setting(
        shape,
        device,
        asked.quantization,
        asked.batch,
        asked.context,
        asked.reached,
        FORMATS[asked.quantization].read[asked.device],
    )
    parts = (
        Split.parse(asked.split, shape.layers, "replace")
        if asked.split
        else Split.default(shape.layers)
    )
    costs = _costs(setting, parts, k, span)
    ar = costs["ar"][0]
    rows = [
        {
            "panel": panel,
            "tokens_per_second": round(tokens / seconds, 2),
            "over_ar": round(tokens / seconds * ar, 3),
        }
        for panel, (seconds, tokens) in costs.items()
    ]
    return {
        "model": asked.name,
        "device": asked.device,
        "device_label": device.label,
        "quantization": asked.quantization,
        "batch": asked.batch,
        "context": asked.context,
        "split": str(parts),
        "k": k,
        "span": span,
        "reached": asked.reached,
        "rows": rows,
        "published": published(),
        "implied": implied(),
        "measured": measured(),
    }


def _costs(setting: Setting, parts: Split, k: int, span: float) -> dict[str, tuple[float, float]]:
    """Estimate the seconds of every decoder's cycle, and the tokens that it brings.

    k: MTP heads. span: mean tokens of a cycle whose length the text decides.
    """
    n, late = setting.shape.layers, setting.seconds([(parts.early + parts.late, 1)])
    shape = setting.shape
    # one MTP head
    head = shape.hidden * (shape.hidden + 1)
    predictor = (shape.hidden + 1) * (k + 1)
    gate = (shape.hidden + 1) * 640 + 641 * k
    # positions that the next pass takes along
    width = max(1, round(span))
    ar = setting.seconds([(n, 1)])

    def spans(positions: int, rows: int, extra: int) -> float:
        return setting.seconds([(n, positions)], rows, extra)

    costs: dict[str, tuple[float, float]] = {"ar": (ar, 1.0)}
    for tau in (2, 3, 4, 6):
        costs[f"dmtd:tau={tau}"] = (cycle_seconds(setting, parts, tau), tau)
    costs["dmtd-spec:tau=4"] = (3 * late + spans(4, 4, 0), min(span, 4.0))
    costs["dmtd-adaptive"] = (cycle_seconds(setting, parts, width), width)
    costs["clp"] = (spans(width, width, (width - 1) * head + predictor), span)
    costs["mtp-gate"] = (spans(width, width, (width - 1) * head + gate), span)
    costs["mtp-heads"] = (spans(k + 1, k + 1, (k + 1) * head), k + 1)
    costs["mtp-verified"] = (spans(k + 1, 2 * k + 1, k * head), span)
    costs["mixed"] = (
        cycle_seconds(setting, parts, width) + setting.seconds([], 2, 2 * head),
        width + 1,
    )
    costs["prompt-lookup"] = (spans(k + 1, k + 1, 0), span)
    return costs


@dataclass(frozen=True)
class AddonTraining:
    """The work of training add-ons: `texts` answers of `answer` tokens each, drawn by the model.

    updates: of each recipe; positions: of each of its updates. k: MTP heads.
    """

    texts: int
    answer: int
    updates: Mapping[str, int]
    positions: Mapping[str, int]
    k: int = 4


def training_seconds(shape: ModelShape, device: Device, work: AddonTraining) -> float:
    """Estimate the time of training add-ons on a frozen backbone in bfloat16.

    The model answers the prompts one at a time, each recipe passes the answers once, and makes its
    updates. Of the updates only those of heads count, which read the whole vocabulary: forward, and
    twice that back.
    """
    setting = Setting(shape, device, reached=EAGER)
    answers = work.texts * work.answer * setting.seconds([(shape.layers, 1)])
    once = work.texts * setting.seconds([(shape.layers, work.answer)], work.answer)
    operations = sum(
        work.updates[name] * work.positions[name] * heads * 3 * 2 * (shape.head + shape.hidden**2)
        for name, heads in (("heads", work.k), ("head0", 1))
        if name in work.updates
    )
    return answers + len(work.updates) * once + operations / device.operations / EAGER


def published() -> list[dict[str, Any]]:
    """Predict the papers' own settings, beside their figures (docs/methods.md, section 5)."""
    paper = Setting(ModelShape.of("Qwen3-4B"), DEVICES["a100-40gb"], context=1536)
    four = 4 * paper.seconds([(36, 1)]) / cycle_seconds(paper, Split(36, 0, 8), 4)
    vanilla = 1 / Setting(ModelShape.of("Qwen3-4B"), DEVICES["l40s"], context=640).seconds(
        [(36, 1)]
    )
    rows = [
        ("DMTD C4, Qwen3-4B, one A100-40GB, 1024 in + 1024 out: times vanilla (up to)", four, 2.15),
        ("vanilla Qwen3-4B, one L40S, 512 in + 256 out: tokens/s", vanilla, 83.0),
    ]
    return [
        {
            "what": what,
            "predicted": round(predicted, 3),
            "published": figure,
            "error": round(predicted / figure - 1, 3),
        }
        for what, predicted, figure in rows
    ]


def implied() -> list[dict[str, Any]]:
    """Turn round the CLP paper's figures, published without device and mean span.

    The result is the tokens that a full pass must pay for on average, so that the estimate, on one
    A100-40GB, gives each figure (docs/methods.md, section 5). A step takes two positions, one MTP
    head and the predictor.
    """
    rows = []
    for name, speed_ups in (("Qwen2.5-1.5B", (1.20, 1.29)), ("Qwen2.5-7B", (1.14, 1.20))):
        shape = ModelShape.of(f"{name}-Instruct")
        setting = Setting(shape, DEVICES["a100-40gb"])
        step = setting.seconds(
            [(shape.layers, 2)], 2, (shape.hidden + 1) * (shape.hidden + 5)
        ) / setting.seconds([(shape.layers, 1)])
        rows.append(
            {
                "what": f"CLP, {name}: times vanilla",
                "published": list(speed_ups),
                "span": [round(each * step, 3) for each in speed_ups],
            }
        )
    return rows


# tokens per second of `ar` and C4, Qwen3-4B's shape after 1,024 tokens, one H200
REACHED_ON_H200 = {
    "none": (275.3, 545.2),
    "nf4": (238.5, 366.1),
    "fast-int8": (393.6, 778.5),
    "fast-int4": (488.5, 957.7),
}


def measured() -> list[dict[str, Any]]:
    """Estimate the speeds that this code reached on a GPU, beside them (docs/performance.md)."""
    rows = []
    for quantization, figures in REACHED_ON_H200.items():
        read = FORMATS[quantization].read["h200"]
        setting = Setting(
            ModelShape.of("Qwen3-4B"), DEVICES["h200"], quantization, context=1104, read=read
        )
        for panel, seconds, tokens, figure in zip(
            ("ar", "dmtd:tau=4"),
            (setting.seconds([(36, 1)]), cycle_seconds(setting, Split(36, 0, 8), 4)),
            (1, 4),
            figures,
        ):
            rows.append(
                {
                    "what": f"{panel}, Qwen3-4B, {quantization}, one H200, after 1024: tokens/s",
                    "predicted": round(tokens / seconds, 3),
                    "measured": figure,
                    "error": round(tokens / seconds / figure - 1, 3),
                }
            )
    return rows
