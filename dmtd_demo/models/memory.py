"""The memory that a Qwen takes at each quantization, by its config alone, and what one holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

GIB = 2**30
TEXT = 4096  # tokens of a text whose KV cache must fit too
WORKING = 0.25 * GIB  # activations, dequantized matrices, tables; and a twentieth of the weights
HYBRID = "qwen3_5_text"  # the family whose layers are recurrent but for every fourth


@dataclass(frozen=True)
class Sizes:
    """Numbers of parameters, and of what else a model holds.

    matrices: parameters of those inside the layers, which quantization shrinks; rows: of these
    matrices; rest: all other parameters. kv: cache entries of one token. head: parameters of the
    LM head, which are among the rest; vocabulary: its rows; tied: whether they are the embedding
    table's too. in_four_bits: whether most come in levels that 4-bit packing keeps; finer: of these
    matrices and the head, what comes in more bits and is held in 8 then. mtp: parameters of the
    MTP head that the checkpoint brings. state: bytes of a text's recurrent states, whatever its
    length. joined: rows of a layer's matrices that are multiplied as one, and their parameters in
    all layers.
    """

    matrices: int
    rows: int
    rest: int
    kv: int
    head: int
    vocabulary: int
    tied: bool
    in_four_bits: bool = False
    mtp: int = 0
    state: int = 0
    finer: int = 0
    joined: tuple[tuple[int, int], ...] = ()

    @property
    def parameters(self) -> int:
        return self.matrices + self.rest

    @classmethod
    def of(cls, family: str, config: dict[str, Any]) -> Sizes:
        """Count a Qwen2, Qwen3 or Qwen3.5 by these fields of its config.json."""
        if family == HYBRID:
            return cls._hybrid(config)
        hidden, inner, layers, vocabulary = (
            config[name]
            for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size")
        )
        head = config.get("head_dim") or hidden // config["num_attention_heads"]
        queries, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
        matrices = 2 * hidden * queries + 2 * hidden * keys + 3 * hidden * inner
        # norms; Qwen2's biases, Qwen3's norms of queries and keys
        vectors = 2 * hidden + (queries + 2 * keys if family == "qwen2" else 2 * head)
        tables = vocabulary * hidden * (1 if config.get("tie_word_embeddings") else 2)
        return cls(
            layers * matrices,
            layers * (queries + 2 * keys + 2 * hidden + 2 * inner),
            layers * vectors + tables + hidden,
            2 * layers * keys,
            vocabulary * hidden,
            vocabulary,
            bool(config.get("tie_word_embeddings")),
            joined=tuple(
                (rows, layers * hidden * rows) for rows in (queries + 2 * keys, 2 * inner)
            ),
        )

    @classmethod
    def _hybrid(cls, config: dict[str, Any]) -> Sizes:
        """Count a Qwen3.5: a part of the layers attend, with a gate for each query head; the others
        are recurrent, and their two small projections are never quantized."""
        hidden, inner, layers, vocabulary = (
            config[name]
            for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size")
        )
        queries, keys = (
            config[name] * config["head_dim"]
            for name in ("num_attention_heads", "num_key_value_heads")
        )
        tables = vocabulary * hidden * (1 if config.get("tie_word_embeddings") else 2)
        full = config.get("full_attention_layers") or layers // 4
        key_heads, heads, key_size, value_size, taps = (
            config[f"linear_{name}"]
            for name in (
                "num_key_heads",
                "num_value_heads",
                "key_head_dim",
                "value_head_dim",
                "conv_kernel_dim",
            )
        )
        channels, values = 2 * key_heads * key_size + heads * value_size, heads * value_size
        head, recurrent = config["head_dim"], layers - full
        attention, mlp = 3 * hidden * queries + 2 * hidden * keys, 3 * hidden * inner
        matrices = full * attention + recurrent * hidden * (channels + 2 * values) + layers * mlp
        rows = (
            full * (2 * queries + 2 * keys + hidden)
            + recurrent * (channels + values + hidden)
            + layers * (2 * inner + hidden)
        )
        small = (
            recurrent * (2 * hidden * heads + taps * channels + 2 * heads + value_size)
            + full * 2 * head
            + layers * 2 * hidden
        )
        mtp = attention + 2 * head + mlp + 2 * hidden + 2 * hidden**2 + 3 * hidden
        state = 4 * recurrent * (heads * key_size * value_size + (taps - 1) * channels)
        # the head's own attention layer has a cache, too
        return cls(
            matrices,
            rows,
            small + tables + hidden,
            2 * (full + 1) * keys,
            vocabulary * hidden,
            vocabulary,
            bool(config.get("tie_word_embeddings")),
            mtp=mtp,
            state=state,
            joined=(
                (2 * queries + 2 * keys, full * hidden * (2 * queries + 2 * keys)),
                (channels + values, recurrent * hidden * (channels + values)),
                (2 * inner, layers * hidden * 2 * inner),
            ),
        )


def weight_bytes(sizes: Sizes, quantization: str, itemsize: int) -> int:
    """Bytes of the weights in a format. itemsize: bytes of a number that is not quantized.

    bitsandbytes' nf4: 4 bits and a float32 scale per 64 weights, or, quantized once more, a byte
    per 64 and a float32 per 256 of these; int8: a byte, and a float32 scale per row. fast-int8: a
    byte, and a scale per row; fast-int4: half a byte, and scale and offset per 32 weights; both
    for the LM head too, whose table stays for look-ups where it is tied. What a file has finer than
    in 4 bits is a byte there; its scales are not counted.
    """
    untied = 0 if sizes.tied else sizes.head * itemsize
    matrices = {
        "none": sizes.matrices * itemsize,
        "nf4": sizes.matrices * (1 / 2 + 1 / 64 + 4 / (64 * 256)),
        "nf4-single": sizes.matrices * (1 / 2 + 4 / 64),
        "int8": sizes.matrices + 4 * sizes.rows,
        "fast-int8": sizes.matrices
        + itemsize * sizes.rows
        + sizes.head
        + itemsize * sizes.vocabulary
        - untied,
        "fast-int4": (sizes.matrices + sizes.head - sizes.finer) * (1 / 2 + 2 * itemsize / 32)
        + sizes.finer
        - untied,
    }[quantization]
    return int(matrices) + (sizes.rest + sizes.mtp) * itemsize


def repeated_bytes(sizes: Sizes, quantization: str, itemsize: int) -> int:
    """Bytes that a CPU holds once more, since it multiplies large matrices in 8 bits as integers.

    Under fast-int4 that is the head, where a file has it finer and `vnni` does not hold it.
    """
    # with transformers: what estimates from bytes alone starts without it
    from dmtd_demo.backbone.fbgemm import HEAD_ROWS, REPEATED_ROW, has_integers
    from dmtd_demo.backbone.integers import KERNEL

    if itemsize != 2 or not has_integers():
        return 0
    large: list[tuple[int, int]] = []
    if quantization == "fast-int8":
        large = [(sizes.vocabulary, sizes.head), *sizes.joined]
    elif quantization == "fast-int4" and sizes.finer >= sizes.head and KERNEL is None:
        large = [(sizes.vocabulary, sizes.head)]
    # of a row beside its weights: `hidden` columns
    per_weight = 1 + REPEATED_ROW * sizes.vocabulary / sizes.head
    return int(per_weight * sum(size for rows, size in large if rows >= HEAD_ROWS))


@dataclass(frozen=True)
class Need:
    """Bytes to run a model: weights, the KV cache of one text, and what passes need to work in."""

    weights: int
    cache: int
    working: int

    @classmethod
    def of(
        cls, sizes: Sizes, quantization: str, itemsize: int, context: int, device: str = "cpu"
    ) -> Need:
        weights = weight_bytes(sizes, quantization, itemsize)
        if device == "cpu":
            weights += repeated_bytes(sizes, quantization, itemsize)
        working = int(WORKING + weights / 20)
        # the dense weights are loaded first; for a GPU, beside it
        if quantization in ("fast-int8", "fast-int4") and device == "cpu":
            working = max(working, weight_bytes(sizes, "none", itemsize) + int(WORKING) - weights)
        return cls(weights, sizes.kv * itemsize * min(TEXT, context) + sizes.state, working)

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.working

    def __str__(self) -> str:
        return (
            f"{gib(self.weights)} for its weights + {gib(self.cache)} for the cache of a text + "
            f"{gib(self.working)} to work in = {gib(self.total)}"
        )


def gib(size: float) -> str:
    return f"{size / GIB:,.2f} GiB"


def amount(size: float) -> str:
    """Write bytes in words, in MiB where GiB would say nothing."""
    return gib(size) if size >= GIB / 2 else f"{size / 2**20:,.1f} MiB"


def taken(module: nn.Module) -> int:
    """Bytes that a loaded module's weights hold, the scales of quantized ones included.

    Shared ones count once; what products hold once more in a layout of their own counts too.
    """
    tensors = {id(t): t for t in (*module.parameters(), *module.buffers())}
    for part in module.modules():
        weight = getattr(part, "weight", None)
        state = getattr(weight, "quant_state", None)  # of 4 bits
        while state is not None:
            tensors[id(state.absmax)] = state.absmax
            state = getattr(state, "state2", None)
        scales = getattr(weight, "SCB", None)  # of 8 bits
        if scales is not None:
            tensors[id(scales)] = scales
    repeated = sum(getattr(part, "repeated", 0) for part in module.modules())
    return repeated + sum(t.numel() * t.element_size() for t in tensors.values())
