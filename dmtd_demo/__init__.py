"""Multi-token decoding, side by side.

As a library: `load` a model, `compare` decoders on a prompt (comparison.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dmtd_demo.comparison import Comparison as Comparison
    from dmtd_demo.comparison import compare as compare
    from dmtd_demo.models.loading import load as load

__all__ = ["Comparison", "compare", "load"]


def __getattr__(name: str) -> Any:
    """Import a name when it is asked for: PyTorch alone takes seconds."""
    if name == "load":
        from dmtd_demo.models.loading import load

        return load
    if name in ("compare", "Comparison"):
        from dmtd_demo import comparison

        return getattr(comparison, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
