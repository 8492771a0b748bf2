"""An LM head for drafts: its rows of the most frequent tokens alone.

FR-Spec (Zhao et al., arXiv 2502.14856) drafts so: the LM head of a small model is a large part of
it, and is read for every draft. What checks the drafts reads the whole of it, so a lossless decoder
stays lossless. A folder of add-ons may list the tokens, most frequent first.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from dmtd_demo.backbone.cpu_packed import ROWS_TOGETHER
from dmtd_demo.backbone.qwen import Backbone
from dmtd_demo.errors import UserError
from dmtd_demo.models.addon_file import addon_tensors

NAME = "frequent"
# how many of the listed tokens drafts are chosen from (docs/performance.md, "Cheap drafts")
ENTRIES = 4096


class FrequentHead(nn.Module):
    """The rows of a backbone's LM head that drafts are chosen by.

    ids: of their tokens, [entries], a buffer; names: the same as a list.
    """

    ids: Tensor

    def __init__(self, ids: Tensor, linear: nn.Module) -> None:
        super().__init__()
        self.register_buffer("ids", ids)
        self.linear = linear
        self.names: list[int] = ids.tolist()

    def forward(self, states: Tensor) -> Tensor:
        """Return the logits [n, entries] of states after the final norm, [n, hidden]."""
        logits: Tensor = self.linear(states)
        return logits


def read(folder: Path, entries: int, vocabulary: int) -> Tensor:
    """Return the ids that a folder lists, int64 [entries].

    entries: what its card says. Raises UserError where they are not so many different tokens.
    """
    path, tensors = addon_tensors(folder, NAME)
    ids = tensors.pop("ids", None)
    if ids is None or tensors or ids.dtype != torch.int32 or ids.shape != (entries,):
        got = "nothing" if ids is None else f"{list(ids.shape)}, {ids.dtype}"
        raise UserError(
            f"{path} needs ids, [{entries}], int32, and nothing else; got {got}"
            + (f" beside {', '.join(sorted(tensors))}" if tensors else "")
        )
    if ids.min() < 0 or ids.max() >= vocabulary or len(ids.unique()) < entries:
        raise UserError(
            f"{path} needs {entries} different ids from 0 to {vocabulary - 1}; it has "
            f"{len(ids.unique())} from {ids.min()} to {ids.max()}"
        )
    return ids.long()


def load(folder: Path, entries: int, backbone: Backbone) -> FrequentHead | None:
    """Return the LM head for drafts by the list of a folder.

    None where the backbone's cannot be divided: on a GPU, or where accelerate moves it about.
    Raises UserError where the list is wrong.
    """
    ids = read(folder, entries, backbone.vocab_size)
    ids = ids[: min(len(ids), ENTRIES) // ROWS_TOGETHER * ROWS_TOGETHER]
    linear = backbone.head_of(ids)
    if linear is None:
        return None
    return FrequentHead(ids, linear).eval().requires_grad_(False)
