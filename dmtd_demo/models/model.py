"""A loaded checkpoint with its add-ons, and the CPU threads that suit it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from dmtd_demo.backbone.packed import parameters
from dmtd_demo.backbone.qwen import Backbone
from dmtd_demo.backbone.split import Split
from dmtd_demo.models.addons import Base
from dmtd_demo.models.memory import taken


@dataclass(eq=False)
class Model:
    """A loaded checkpoint with its add-ons.

    split, tau: what the checkpoint says of itself; None where it was never trained for DMTD.
    eos_ids: every id that ends a text. reasons: why this device, dtype, quantization and thread
    count. addons: modules of models/addons.py, by kind; addon_facts: of their card. apart: the
    folders of what add-ons brought for the backbone itself. folder: where it lies. threads: on a
    CPU; 0: as it is.
    """

    name: str
    label: str
    backbone: Backbone
    tokenizer: PreTrainedTokenizerBase | None
    split: Split | None
    tau: int | None
    eos_ids: frozenset[int]
    trained_length: int | None
    quantization: str
    reasons: list[str]
    base: Base = Base("")
    addons: dict[str, Any] = field(default_factory=dict)
    addon_facts: dict[str, dict] = field(default_factory=dict)
    apart: dict[str, Path] = field(default_factory=dict)
    warmed: set[str] = field(default_factory=set)
    folder: Path | None = None
    threads: int = 0

    @property
    def context(self) -> int:
        return self.backbone.context

    @property
    def layers(self) -> int:
        return self.backbone.layers

    @property
    def end(self) -> int | None:
        """The id that an answer to learn ends with: the tokenizer's own, where it is one of the
        model's; None where no id ends a text."""
        own = None if self.tokenizer is None else self.tokenizer.eos_token_id
        return own if own in self.eos_ids else min(self.eos_ids, default=None)

    @property
    def device(self) -> str:
        return str(self.backbone.device)

    @property
    def dtype(self) -> str:
        return str(self.backbone.dtype).removeprefix("torch.")

    @property
    def parameters(self) -> int:
        return parameters(self.backbone.module)

    @property
    def memory(self) -> int:
        """Bytes that the weights hold, the add-ons' included."""
        parts = (self.backbone.module, self.backbone.adapted, *self.addons.values())
        return sum(map(taken, parts))

    @property
    def alike(self) -> bool:
        """Whether a position comes out the same alone and beside others, near-ties included.

        A lossless decoder then writes what `ar` writes (docs/performance.md, "Lossless below
        float32").
        """
        if self.dtype == "float32":
            return self.quantization == "none"
        return (
            self.dtype == "bfloat16"
            and self.quantization in ("none", "fast-int8", "fast-int4")
            and self.backbone.device.type == "cpu"
            and self.backbone.alike
        )

    def has(self, need: str) -> bool:
        """Whether a decoder's need is met."""
        return self.layers > 1 if need == "split" else need in self.addons


def use_threads(model: Model) -> None:
    """Set as many CPU threads as suit this model, whichever ran before it."""
    if model.threads and torch.get_num_threads() != model.threads:
        torch.set_num_threads(model.threads)
