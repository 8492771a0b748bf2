"""The tensors of one add-on, as its folder has them."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dmtd_demo.errors import UserError
from dmtd_demo.models.causes import not_whole


def addon_tensors(folder: Path, method: str, part: str = "") -> tuple[Path, dict[str, Tensor]]:
    """Return the file of an add-on, and its tensors by name.

    part: what its file's name ends with where it has several. Raises UserError where the file is
    not there or cannot be read.
    """
    path = folder / f"{method}{part}.safetensors"
    try:
        return path, load_file(path)
    except FileNotFoundError:
        raise UserError(
            f"the add-on folder {folder} needs {path.name} for {method}; the file is not there"
        ) from None
    except (SafetensorError, OSError) as error:
        raise not_whole(path, error) from None
