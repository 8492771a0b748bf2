"""The division of a backbone's layers for Direct Multi-Token Decoding.

DMTD paper, section 3; docs/methods.md, section 1.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from dmtd_demo.errors import UserError

HEAD_INPUTS = ("sum", "replace")


@dataclass(frozen=True)
class Split:
    """The early, middle and late layers of a backbone, which add up to `layers`.

    head_input: what the late layers read at a cycle head, `c + Think(c)` (sum) or `Think(c)`
    (replace). Raises UserError where they do not add up.
    """

    layers: int
    early: int
    late: int
    head_input: str = "replace"

    def __post_init__(self) -> None:
        if self.early < 0 or self.late < 1 or self.middle < 1:
            raise UserError(
                f"a split needs early >= 0, middle >= 1 and late >= 1 layers of {self.layers} in "
                f"all; got {self} with {self.middle} in the middle"
            )
        if self.head_input not in HEAD_INPUTS:
            raise UserError(
                f"a split's head input needs to be one of {', '.join(HEAD_INPUTS)}; got "
                f"{self.head_input!r}"
            )

    @property
    def middle(self) -> int:
        return self.layers - self.early - self.late

    @property
    def late_start(self) -> int:
        """The index of the first late layer."""
        return self.layers - self.late

    def __str__(self) -> str:
        return f"E{self.early}D{self.late}"

    @classmethod
    def parse(cls, text: str, layers: int, head_input: str) -> Split:
        """Read the papers' form, such as E0D8. Raises UserError."""
        match = re.fullmatch(r"[Ee](\d{1,4})[Dd](\d{1,4})", text.strip())
        if not match:
            raise UserError(f"a split needs the form E0D8 (early and late layers); got {text!r}")
        return cls(layers, int(match[1]), int(match[2]), head_input)

    @classmethod
    def default(cls, layers: int) -> Split:
        """Return the paper's share of late layers, E0 and D = 2N/9.

        For a Qwen that was never fine-tuned for DMTD.
        """
        return cls(layers, 0, max(1, round(2 * layers / 9)), "replace")

    @classmethod
    def from_config(cls, config: dict, layers: int) -> Split | None:
        """Read a checkpoint's config.json (docs/methods.md, section 2).

        Returns None where it says nothing of a split. Raises UserError.
        """
        if "num_decoding_layers" not in config and "num_thinking_layers" not in config:
            return None
        for name in ("num_encoding_layers", "num_thinking_layers", "num_decoding_layers"):
            value = config.get(name, 0)
            if type(value) is not int:
                raise UserError(f"config.json: {name} needs to be a whole number; got {value!r}")
        early = config.get("num_encoding_layers", 0)
        late = config.get(
            "num_decoding_layers", layers - early - config.get("num_thinking_layers", 0)
        )
        split = cls(layers, early, late, config.get("dmtd_head_input", "sum"))
        if config.get("num_thinking_layers", split.middle) != split.middle:
            raise UserError(
                f"config.json: encoding, thinking and decoding layers need to add up to {layers}; "
                f"got {early} + {config['num_thinking_layers']} + {late}"
            )
        return split
