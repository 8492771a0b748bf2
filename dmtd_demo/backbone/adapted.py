"""Late layers of their own for late-layer-only passes *(ours)*: the model's own plus differences.

The paper trains one set of late layers, which then runs in every pass. Here full passes keep the
model's own late layers, so that `ar` and every verified text stay the original model's, and only
late-layer-only positions run W' = W + difference. Both kinds of positions read one KV cache.
"""

from __future__ import annotations

import copy
from typing import Any, Callable, Mapping

import torch
from torch import Tensor, nn

from dmtd_demo.backbone.cpu_packed import KINDS
from dmtd_demo.backbone.onednn import BlockedLinear
from dmtd_demo.backbone.packed import PackedLinear
from dmtd_demo.errors import UserError

# a path within a module and what is there, to what takes its place; None: it stays
Change = Callable[[str, nn.Module], nn.Module | None]


def changed(module: nn.Module, change: Change, path: str = "") -> nn.Module:
    """Return a module with others in the places for which `change` gives one.

    All else is shared with `module`.
    """
    if not module._modules:
        return module
    twin = copy.copy(module)
    twin._modules = {
        name: None
        if child is None
        else change(path + name, child) or changed(child, change, f"{path}{name}.")
        for name, child in module._modules.items()
    }
    return twin


@torch.no_grad()
def adapted_layer(layer: nn.Module, differences: Mapping[str, Tensor]) -> nn.Module:
    """Return a decoder layer with W + difference, [out, in], for every linear named.

    Names as `mlp.down_proj`; each is held as the layer's own is. Raises UserError.
    """

    def change(path: str, child: nn.Module) -> nn.Module | None:
        return _moved(child, differences[path]) if path in differences else None

    return changed(layer, change)


def _moved(linear: nn.Module, difference: Tensor) -> nn.Module:
    kinds = (PackedLinear, BlockedLinear)
    if hasattr(linear, "_hf_hook") or not (type(linear) is nn.Linear or isinstance(linear, kinds)):
        raise UserError(
            f"DMTD layers need a model on one device in plain weights or in one of "
            f"{', '.join(KINDS)}; its linears are {type(linear).__name__}"
        )
    own = linear.dense() if isinstance(linear, kinds) else linear.weight
    assert isinstance(own, Tensor)
    weight = (own.float() + difference.to(own.device)).to(own.dtype)
    bias = None if linear.bias is None else nn.Parameter(linear.bias.detach(), requires_grad=False)
    if isinstance(linear, BlockedLinear):
        return type(linear)(weight, bias)
    plain = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    plain.weight = nn.Parameter(weight, requires_grad=False)
    plain.register_parameter("bias", bias)
    kind: Any = type(linear)
    return kind.of(plain) if isinstance(linear, PackedLinear) else plain


class _Either(nn.Module):
    """One linear where the mask is set and another elsewhere; both compute all positions."""

    def __init__(self, at_head: Tensor, own: nn.Module, other: nn.Module) -> None:
        super().__init__()
        self.at_head, self.own, self.other = at_head[..., None], own, other

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(self.at_head, self.own(x), self.other(x))


def masked_layer(own: nn.Module, other: nn.Module, at_head: Tensor) -> nn.Module:
    """Return a decoder layer for whole rows: `own` at the positions of at_head, else `other`.

    at_head: [rows, n] bool. All attend to the keys and values of all. For training.
    """
    theirs = dict(other.named_modules())

    def change(path: str, child: nn.Module) -> nn.Module | None:
        return (
            None
            if theirs[path] is child or child._modules
            else _Either(at_head, child, theirs[path])
        )

    return changed(own, change)
