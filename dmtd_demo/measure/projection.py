"""`project`: tokens per second and speed-up of every decoder on machines that are not here, from bytes and operations alone. Nothing is measured.

A pass costs, for each layer that runs, the longer of reading its weights and the KV cache from memory and of its arithmetic, plus a fixed time
for each layer; then the LM head, in the same way (a roofline; Williams, Waterman, Patterson, 2009).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Iterable, Mapping

from dmtd_demo.backbone.split import Split
from dmtd_demo.errors import UserError
from dmtd_demo.models.catalog import CATALOG


@dataclass(frozen=True)
class Device:
    """bandwidth: bytes a second from memory; operations: floating-point operations a second in bfloat16; both as the maker states them.
    layer_seconds: fixed time for each layer that runs, with CUDA graphs on GPUs; of the two fastest, what the H200's passes took over their bytes (docs/performance.md)."""

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
REACHED = 0.8  # of bandwidth and operations, by well-written kernels
EAGER = 0.4  # of the same, by PyTorch's own kernels one after another, as in training
# a weight; NF4 has a scale for each 64
WEIGHT_BYTES = {"none": 2.0, "int8": 1.0, "nf4": 0.5 + 4 / 64}
# hidden, intermediate, layers, heads, kv heads; head size 128, untied, not in the catalog
_LARGER: dict[str, tuple[int, int, int, int, int]] = {
    "Qwen2.5-14B": (5120, 13824, 48, 40, 8),
    "Qwen2.5-32B": (5120, 27648, 64, 40, 8),
    "Qwen2.5-72B": (8192, 29568, 80, 64, 8),
    "Qwen3-14B": (5120, 17408, 40, 40, 8),
    "Qwen3-32B": (5120, 25600, 64, 64, 8),
}
MODELS = (*CATALOG, *_LARGER)


@dataclass(frozen=True)
class Shape:
    """What a pass costs by: parameters of one layer and of the LM head, layers, and the sizes that attention depends on."""

    layer: int
    head: int
    layers: int
    hidden: int
    query_size: int
    kv_size: int

    @classmethod
    def of(cls, name: str) -> Shape:
        if name in _LARGER:
            hidden, intermediate, layers, heads, kv_heads = _LARGER[name]
            vocabulary, head_dim = 152064 if name.startswith("Qwen2.5") else 151936, 128
        elif name in CATALOG:
            return cls.of_fields(CATALOG[name].shape)
        else:
            raise UserError(f"project needs one of the models {', '.join(MODELS)}; got {name!r}")
        return cls._of(hidden, intermediate, layers, heads, kv_heads, vocabulary, head_dim)

    @classmethod
    def of_fields(cls, fields: Mapping[str, Any]) -> Shape:
        """By the names that a config has."""
        return cls._of(
            *(
                int(fields[key])
                for key in (
                    "hidden_size",
                    "intermediate_size",
                    "num_hidden_layers",
                    "num_attention_heads",
                    "num_key_value_heads",
                    "vocab_size",
                    "head_dim",
                )
            )
        )

    @classmethod
    def _of(
        cls,
        hidden: int,
        intermediate: int,
        layers: int,
        heads: int,
        kv_heads: int,
        vocabulary: int,
        head_dim: int,
    ) -> Shape:
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
    """batch: texts at once; context: tokens that each holds, on average; reached: share of the device's stated bandwidth and operations."""

    shape: Shape
    device: Device
    quantization: str = "none"
    batch: int = 1
    context: int = 1024
    reached: float = REACHED

    def seconds(
        self, runs: Iterable[tuple[int, int]], logit_rows: int = 1, extra_parameters: int = 0
    ) -> float:
        """One pass. runs: (layers, positions) in order; logit_rows: positions that the LM head reads; extra_parameters: of MTP heads and predictors, bfloat16."""
        total = 0.0
        for layers, positions in runs:
            # keys and values, 2 bytes each
            read = (
                self.shape.layer * WEIGHT_BYTES[self.quantization]
                + 2 * 2 * self.shape.kv_size * self.context * self.batch
            )
            work = (
                2
                * self.batch
                * positions
                * (self.shape.layer + 2 * self.shape.query_size * self.context)
            )
            total += layers * (self._longer(read, work) + self.device.layer_seconds)
        # the LM head stays in bfloat16 under every quantization here
        return total + self._longer(
            (self.shape.head + extra_parameters) * 2,
            2 * self.batch * (self.shape.head * logit_rows + extra_parameters),
        )

    def _longer(self, read: float, work: float) -> float:
        return max(read / self.device.bandwidth, work / self.device.operations) / self.reached


def cycle_seconds(setting: Setting, split: Split, tau: int) -> float:
    """`dmtd`: a full pass whose middle layers refill tau positions, and tau - 1 late ones: tau tokens."""
    late = [(split.early + split.late, 1)]
    return setting.seconds([(split.early, 1), (split.middle, tau), (split.late, 1)]) + (
        tau - 1
    ) * setting.seconds(late)


def project(
    name: str,
    device: str,
    *,
    quantization: str = "none",
    batch: int = 1,
    context: int = 1024,
    split: str | None = None,
    k: int = 4,
    span: float = 2.0,
    reached: float = REACHED,
) -> dict[str, Any]:
    """Every decoder in one setting. span: tokens that a full pass pays for, where the text decides (`clp`, `mtp-gate`, the verified ones, adaptive cycles)."""
    if device not in DEVICES:
        raise UserError(f"project needs one of the devices {', '.join(DEVICES)}; got {device!r}")
    if quantization not in WEIGHT_BYTES:
        raise UserError(
            f"quantization needs one of {', '.join(WEIGHT_BYTES)}; got {quantization!r}"
        )
    for what, value, low, high in (
        ("batch", batch, 1, 4096),
        ("context", context, 1, 1_000_000),
        ("k", k, 1, 16),
        ("span", span, 1, 17),
        ("reached", reached, 0.01, 1),
    ):
        if not low <= value <= high:
            raise UserError(f"{what} needs a value from {low} to {high}; got {value}")
    shape = Shape.of(name)
    setting = Setting(shape, DEVICES[device], quantization, batch, context, reached)
    parts = Split.parse(split, shape.layers, "replace") if split else Split.default(shape.layers)
    n, late = shape.layers, setting.seconds([(parts.early + parts.late, 1)])
    head = shape.hidden * (shape.hidden + 1)  # one MTP head
    predictor = (shape.hidden + 1) * (k + 1)
    gate = (shape.hidden + 1) * 640 + 641 * k
    # positions that the next pass takes along
    width = max(1, round(span))
    ar = setting.seconds([(n, 1)])

    def spans(positions: int, rows: int, extra: int) -> float:
        return setting.seconds([(n, positions)], rows, extra)

    costs: dict[str, tuple[float, float]] = {"ar": (ar, 1.0)}  # seconds for so many tokens
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
    rows = [
        {
            "panel": panel,
            "tokens_per_second": round(tokens / seconds, 2),
            "over_ar": round(tokens / seconds * ar, 3),
        }
        for panel, (seconds, tokens) in costs.items()
    ]
    return {
        "model": name,
        "device": device,
        "device_label": DEVICES[device].label,
        "quantization": quantization,
        "batch": batch,
        "context": context,
        "split": str(parts),
        "k": k,
        "span": span,
        "reached": reached,
        "rows": rows,
        "published": published(),
        "implied": implied(),
        "measured": measured(),
    }


def training_seconds(
    shape: Shape,
    device: Device,
    texts: int,
    answer: int,
    updates: Mapping[str, int],
    positions: Mapping[str, int],
    k: int = 4,
) -> float:
    """Add-ons on a frozen backbone in bfloat16: the model answers `texts` prompts of `answer` tokens, one at a time, each recipe passes the answers once, and
    makes its updates of so many positions. Of the updates only heads count, which read the whole vocabulary: forward, and twice that back."""
    setting = Setting(shape, device, reached=EAGER)
    answers = texts * answer * setting.seconds([(shape.layers, 1)])
    passes = len(updates) * texts * setting.seconds([(shape.layers, answer)], answer)
    work = sum(
        updates[name] * positions[name] * heads * 3 * 2 * (shape.head + shape.hidden**2)
        for name, heads in (("heads", k), ("head0", 1))
        if name in updates
    )
    return answers + passes + work / device.operations / EAGER


def published() -> list[dict[str, Any]]:
    """The papers' own settings, predicted, beside what they published (docs/methods.md, section 5)."""
    paper = Setting(Shape.of("Qwen3-4B"), DEVICES["a100-40gb"], context=1536)
    four = 4 * paper.seconds([(36, 1)]) / cycle_seconds(paper, Split(36, 0, 8), 4)
    vanilla = 1 / Setting(Shape.of("Qwen3-4B"), DEVICES["l40s"], context=640).seconds([(36, 1)])
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
    """What the CLP paper published without the device and the mean span that a prediction would need (docs/methods.md, section 5), turned round: the tokens that a full pass
    must pay for on average, so that the estimate, on one A100-40GB, gives each figure. A step takes two positions, one MTP head and the predictor."""
    rows = []
    for name, speed_ups in (("Qwen2.5-1.5B", (1.20, 1.29)), ("Qwen2.5-7B", (1.14, 1.20))):
        shape = Shape.of(f"{name}-Instruct")
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


def measured() -> list[dict[str, Any]]:
    """What this code made on a GPU where it was measured (docs/performance.md, CUDA), beside the estimate."""
    rows = []
    for quantization, figures in (("none", (285.0, 578.0)), ("nf4", (238.5, 366.1))):
        setting = Setting(Shape.of("Qwen3-4B"), DEVICES["h200"], quantization, context=1104)
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
