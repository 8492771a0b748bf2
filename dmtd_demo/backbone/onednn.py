"""Linears on a CPU in the layout that oneDNN computes from, which ships with PyTorch.

Weights and products are the same, and read about as fast as memory can give them.
"""

from __future__ import annotations

import copy
from typing import Callable, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

# positions that the layout is made for; for one alone oneDNN would take another, slower here for
# one too (docs/performance.md)
LAID_OUT_FOR = 4
# inputs of a row from which on oneDNN sums the products of one position alone in another order than
# those of several, which changes a bfloat16 result in its last bit now and then
LONG_SUM = 1024


class BlockedLinear(nn.Module):
    """A linear in oneDNN's layout, or a subclass's.

    It takes x [..., in] to [..., out], both in the dtype of the weights.
    weight: opaque, [out, in]. shared: the weights are another module's parameters too (a tied LM
    head), so these are counted as a buffer, and that table stays what `dense` gives.
    """

    weight: Tensor
    bias: nn.Parameter | None

    def __init__(self, weight: Tensor, bias: Tensor | None = None, shared: bool = False) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        laid_out = self._laid_out(weight)
        if shared:
            self.register_buffer("weight", laid_out)
        else:
            self.weight = nn.Parameter(laid_out, requires_grad=False)
        # in a list, so that it is not this module's parameter
        self._table = [weight] if shared else []
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        # of `weight`, where it is several linears' in one
        self.rows: slice | None = None

    @staticmethod
    def _laid_out(weight: Tensor) -> Tensor:
        laid_out: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), LAID_OUT_FOR)
        return laid_out

    def _as_it_was(self) -> Tensor:
        return self.weight.detach().to_dense()

    def dense(self) -> Tensor:
        """Return the weights, [out, in]."""
        dense = self._table[0] if self._table else self._as_it_was()
        return dense if self.rows is None else dense[self.rows]

    def linear(self) -> nn.Linear:
        """Return the dense linear that this one was made of."""
        linear = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        dense = self.dense()
        linear.weight = (
            dense
            if isinstance(dense, nn.Parameter)
            # not a part of several linears' in one, which each of them would keep whole
            else nn.Parameter(dense.clone(), requires_grad=False)
        )
        linear.register_parameter("bias", self.bias)
        return linear

    def forward(self, x: Tensor) -> Tensor:
        # the kernel has no autocast, and no backward
        if x.dtype != self.weight.dtype or torch.is_grad_enabled() and x.requires_grad:
            return F.linear(x, self.dense(), self.bias)
        y = self._product(None if self.rows is not None else self.bias)(x)
        if self.rows is None:
            return y
        y = y[..., self.rows]
        return y if self.bias is None else y + self.bias

    def kernel(self) -> Callable[[Tensor], Tensor]:
        """Return the product alone, x [rows, in] to [rows, out] by all rows of the weight.

        It takes the dtype of the weights, and has no gradients.
        """
        return self._product(self.bias)

    def _product(self, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
        pointwise, weight = torch.ops.mkldnn._linear_pointwise.default, self.weight

        def product(x: Tensor) -> Tensor:
            return cast(Tensor, pointwise(x, weight, bias, "none", [], ""))

        if weight.dtype == torch.float32 or self.in_features <= LONG_SUM:
            return product
        return lambda x: among_others(product, x)


def among_others(product: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Compute a product x [..., in] to [..., out] that does not depend on how many positions x has.

    One position is computed as `LAID_OUT_FOR` equal ones, which takes no longer: so a position has
    the same result in a pass of its own and beside others, bit for bit, and verified decoders write
    what `ar` writes (docs/performance.md, "Lossless below float32").
    """
    if x.numel() != x.shape[-1]:
        return product(x)
    return product(x.reshape(1, -1).expand(LAID_OUT_FOR, -1))[:1].reshape(*x.shape[:-1], -1)


@torch.no_grad()
def joined(*linears: BlockedLinear) -> BlockedLinear:
    """Return one linear for all, whose rows they become.

    Each still gives its own products, but computes all of them.
    """
    biases: list[Tensor] = [linear.bias for linear in linears if linear.bias is not None]
    bias = torch.cat(biases) if biases else None
    whole = type(linears[0])(torch.cat([linear.dense() for linear in linears]), bias)
    start = 0
    for linear in linears:
        linear.rows = slice(start, start + linear.out_features)
        linear.weight = whole.weight
        if linear.bias is not None and whole.bias is not None:
            linear.bias.data = whole.bias.data[linear.rows]
        start = linear.rows.stop
    return whole


def plain(module: PreTrainedModel) -> PreTrainedModel:
    """Return the causal model with every dense linear as transformers loads it.

    Their parameters are its own; all else is shared. For training, and for what other decoders are
    measured by.
    """
    return cast(PreTrainedModel, _plain(module, embedding_table(module)))


def _plain(module: nn.Module, table: Tensor) -> nn.Module:
    if isinstance(module, BlockedLinear):
        return module.linear()
    twin = copy.copy(module)
    if type(module) is nn.Linear:
        twin._parameters = {
            name: p
            if p is None or p is table
            else nn.Parameter(p.detach().contiguous(), requires_grad=p.requires_grad)
            for name, p in module._parameters.items()
        }
    twin._modules = {
        name: None if child is None else _plain(child, table)
        for name, child in module._modules.items()
    }
    return twin


def embedding_table(module: PreTrainedModel) -> Tensor:
    """Return the input embeddings' weights, [vocabulary, hidden]."""
    return cast(nn.Embedding, module.get_input_embeddings()).weight
