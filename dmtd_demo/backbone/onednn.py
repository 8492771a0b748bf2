"""Linears on a CPU in the layout that oneDNN computes from, which ships with PyTorch.

Weights and products are the same, and read about as fast as memory can give them.
"""

from __future__ import annotations

import copy
import statistics
import time
from functools import partial
from typing import Callable, Sequence, TypeGuard, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from dmtd_demo.machine import free

# bytes of a matrix under which it stays: float32 ones that small are as fast, [in, out] and joined
SMALL = {torch.bfloat16: 0, torch.float32: 2**19}
# bytes of all others from which on a layout is measured: what fits a cache is not read from memory
LARGE = 2**24
# bytes of those that are measured
SAMPLE = 2**26
# positions that the layout is made for; for one alone oneDNN would take another, slower here for
# one too (docs/performance.md)
LAID_OUT_FOR = 4
# inputs of a row from which on oneDNN sums the products of one position alone in another order than
# those of several, which changes a bfloat16 result in its last bit now and then
LONG_SUM = 1024
# the share of the plain matrices' time that the layout may take
WORTH = 0.9
# timed turns of either
REPEATS = 5


class BlockedLinear(nn.Module):
    """A linear in oneDNN's layout: x [..., in] to [..., out], both in the dtype of the weights.

    weight: opaque, [out, in]. shared: the weights are another module's parameters too (a tied LM
    head), so these are counted as a buffer, and that table stays what `dense` gives.
    """

    weight: Tensor
    bias: nn.Parameter | None

    def __init__(self, weight: Tensor, bias: Tensor | None = None, shared: bool = False) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        laid_out = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), LAID_OUT_FOR)
        if shared:
            self.register_buffer("weight", laid_out)
        else:
            self.weight = nn.Parameter(laid_out, requires_grad=False)
        # in a list, so that it is not this module's parameter
        self._table = [weight] if shared else []
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        # of `weight`, where it is several linears' in one
        self.rows: slice | None = None

    def dense(self) -> Tensor:
        """Return the weights, [out, in]."""
        dense = self._table[0] if self._table else self.weight.detach().to_dense()
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
    whole = BlockedLinear(torch.cat([linear.dense() for linear in linears]), bias)
    start = 0
    for linear in linears:
        linear.rows = slice(start, start + linear.out_features)
        linear.weight = whole.weight
        if linear.bias is not None and whole.bias is not None:
            linear.bias.data = whole.bias.data[linear.rows]
        start = linear.rows.stop
    return whole


def lay_out(module: PreTrainedModel) -> str | None:
    """Replace the dense linears of a causal model on a CPU where they are faster so.

    A measurement says whether they are. Returns what was found, for the model's reasons; None where
    there was nothing to choose.
    """
    if not torch.backends.mkldnn.is_available():
        return None
    head, table = module.get_output_embeddings(), _table(module)
    fit = [
        part
        for part in module.modules()
        if _fits(part) and not (part.weight is table and free("cpu") < 4 * _bytes(part))
    ]
    if sum(map(_bytes, fit)) < LARGE:
        return None
    sample = fit[:1]
    for linear in fit[1:]:
        if sum(map(_bytes, sample)) + _bytes(linear) <= SAMPLE:
            sample.append(linear)
    try:
        before, after = _compared(sample)
    except RuntimeError:  # a CPU or a build for which oneDNN has no such layout
        return None
    dtype = str(sample[0].weight.dtype).removeprefix("torch.")
    found = (
        f"one position and four through {sum(map(_bytes, sample)) / 1e6:.0f} MB of them take "
        f"{after * 1000:.1f} ms, and {before * 1000:.1f} through the plain matrices"
    )
    if after > WORTH * before:
        return f"{dtype} matrices as they are: in oneDNN's layout {found}"
    _replace(module, fit, table)
    return f"{dtype} matrices in oneDNN's layout: {found}" + (
        "; the LM head is held beside the embedding table"
        if type(head) is nn.Linear and head in fit and head.weight is table
        else ""
    )


def _table(module: PreTrainedModel) -> Tensor:
    return cast(nn.Embedding, module.get_input_embeddings()).weight


def _replace(module: nn.Module, chosen: Sequence[nn.Linear], table: Tensor) -> None:
    """Put the chosen linears into the layout, one after another, so that the plain ones go."""
    left = set(chosen)
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and child in left:
                shared = child.weight is table
                setattr(parent, name, BlockedLinear(child.weight, child.bias, shared))
                left.discard(child)


def plain(module: PreTrainedModel) -> PreTrainedModel:
    """Return the causal model with every dense linear as transformers loads it.

    Their parameters are its own; all else is shared. For training, and for what other decoders are
    measured by.
    """
    return cast(PreTrainedModel, _plain(module, _table(module)))


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


def _fits(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether the layout may take a module: a dense linear, large enough, of a dtype it knows."""
    if (
        type(module) is not nn.Linear
        or hasattr(module, "_hf_hook")
        or module.weight.device.type != "cpu"
        or module.weight.dtype not in SMALL
    ):
        return False
    return _bytes(module) >= SMALL[module.weight.dtype] and (
        module.weight.dtype != torch.bfloat16 or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def _bytes(linear: nn.Linear) -> int:
    return linear.weight.numel() * linear.weight.element_size()


@torch.inference_mode()
def _compared(linears: Sequence[nn.Linear]) -> tuple[float, float]:
    """Return the median seconds of one position and four through all linears, in both layouts.

    First by the fused layers' plain matrices, then by oneDNN's; they are timed in alternation.
    Float32 ones count as read ahead where that is faster (`reading.py`).
    """
    turned = [
        linear.weight.t().contiguous()
        if linear.weight.dtype == torch.float32
        else linear.weight.t()
        for linear in linears
    ]
    plain_products = [partial(torch.mm, mat2=weight) for weight in turned]
    ahead = [partial(_read_and_multiplied, weight) for weight in turned]
    laid_out = [BlockedLinear(linear.weight) for linear in linears]
    inputs = [
        [torch.zeros(q, linear.in_features, dtype=linear.weight.dtype) for linear in linears]
        for q in (1, 4)
    ]
    ways: list[Sequence[Callable[[Tensor], Tensor]]] = [plain_products, laid_out]
    if turned[0].dtype == torch.float32:
        ways.append(ahead)
    times: list[list[float]] = [[] for _ in ways]
    for _ in range(REPEATS + 1):
        for products, each in zip(ways, times):
            for timed in (False, True):  # the caches hold what the turn before read
                started = time.perf_counter()
                for xs in inputs:
                    for x, product in zip(xs, products):
                        product(x)
                if timed:
                    each.append(time.perf_counter() - started)
    before, after, *read = (statistics.median(each[1:]) for each in times)
    return min([before, *read]), after


def _read_and_multiplied(weight: Tensor, x: Tensor) -> Tensor:
    weight.sum()
    return torch.mm(x, weight)
