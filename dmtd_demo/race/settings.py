"""The settings that all panels of a race share."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypedDict

from dmtd_demo.errors import UserError
from dmtd_demo.sampling import Sampling

if TYPE_CHECKING:
    from typing_extensions import Unpack


class SettingNames(TypedDict, total=False):
    """The settings of a race by the names of `compare` and of the command line."""

    temperature: float
    top_k: int
    top_p: float
    seed: int
    max_new_tokens: int
    top: int
    ignore_eos: bool
    thinking: bool
    audit: bool


@dataclass(frozen=True)
class RaceSettings:
    """The settings of a race: how every panel decodes, and the extent of its record.

    max_new_tokens: of one panel. top: how many alternatives each token records. ignore_eos: go on
    past the end mark. thinking: let models that can think do so. audit: compare every text with
    the choices of `ar`. Raises UserError for numbers that cannot be.
    """

    sampling: Sampling = Sampling()
    max_new_tokens: int = 256
    top: int = 0
    ignore_eos: bool = False
    thinking: bool = False
    audit: bool = True

    def __post_init__(self) -> None:
        if not (isinstance(self.max_new_tokens, int) and self.max_new_tokens >= 1):
            raise UserError(
                f"max new tokens needs to be a whole number, 1 or more; got {self.max_new_tokens}"
            )
        if not (isinstance(self.top, int) and 0 <= self.top <= 100):
            raise UserError(f"top needs a whole number from 0 to 100; got {self.top}")

    @classmethod
    def of(cls, **given: Unpack[SettingNames]) -> RaceSettings:
        """Build the settings from keywords, those of the sampling among them.

        Raises UserError for values that cannot be, TypeError for other names.
        """
        names = {field.name for field in fields(Sampling)}
        sampling: dict[str, Any] = {k: v for k, v in given.items() if k in names}
        rest: dict[str, Any] = {k: v for k, v in given.items() if k not in names}
        return cls(Sampling(**sampling), **rest)
