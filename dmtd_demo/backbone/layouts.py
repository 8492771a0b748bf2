"""The choice of a layout for dense linears on a CPU: plain, oneDNN's, or the optional package's.

A measurement as the model is loaded says which is fastest here.
"""

from __future__ import annotations

import statistics
import time
from functools import partial
from typing import Callable, Sequence, TypeGuard

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dmtd_demo.backbone import row_blocks
from dmtd_demo.backbone.avx512 import takes_heads
from dmtd_demo.backbone.onednn import BlockedLinear, embedding_table
from dmtd_demo.backbone.row_blocks import RowBlockLinear
from dmtd_demo.backbone.supported import HYBRID
from dmtd_demo.machine import free

# bytes of a matrix under which it stays: float32 ones that small are as fast, [in, out] and joined,
# where whole layers are not one call
SMALL = {torch.bfloat16: 0, torch.float32: 2**19}
# bytes of all others from which on a layout is measured: what fits a cache is not read from memory
LARGE = 2**24
# bytes of those that are measured
SAMPLE = 2**26
# the share of the plain matrices' time that the layout may take
WORTH = 0.9
# timed turns of each
REPEATS = 5


def lay_out(module: PreTrainedModel) -> str | None:
    """Replace the dense linears of a causal model on a CPU where they are faster so.

    A measurement says whether they are. Returns what was found, for the model's reasons; None where
    there was nothing to choose.
    """
    if not torch.backends.mkldnn.is_available():
        return None
    head, table = module.get_output_embeddings(), embedding_table(module)
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
        before, after, *of_package = _compared(sample)
    except RuntimeError:  # a CPU or a build for which oneDNN has no such layout
        return None
    dtype = str(sample[0].weight.dtype).removeprefix("torch.")
    best, name, others = after, "oneDNN's layout", ""
    # whole layers in one call save what is between the products too
    in_blocks = bool(of_package) and WORTH * of_package[0] < after
    if in_blocks:
        best, (name, _) = of_package[0], row_blocks.DTYPES[sample[0].weight.dtype]
        others = f", {after * 1000:.1f} in oneDNN's layout"
        fit += _small(module, fit)
    found = (
        f"one position and four through {sum(map(_bytes, sample)) / 1e6:.0f} MB of them take "
        f"{best * 1000:.1f} ms{others}, and {before * 1000:.1f} through the plain matrices"
    )
    if best > WORTH * before:
        return f"{dtype} matrices as they are: in {name} {found}"
    _replace(module, fit, table, in_blocks)
    return f"{dtype} matrices in {name}: {found}" + (
        "; the LM head is held beside the embedding table"
        if type(head) is nn.Linear and head in fit and head.weight is table
        else ""
    )


def _small(module: PreTrainedModel, large: Sequence[nn.Linear]) -> list[nn.Linear]:
    """The linears that are small, where with them whole layers are one call of the package."""
    small = [part for part in module.modules() if _fits(part, small=True)]
    of_layers = {*small, *large} - {module.get_output_embeddings()}
    config = module.config
    head_size = getattr(config, "head_dim", None) or (
        config.hidden_size // config.num_attention_heads
    )
    alike = all(map(row_blocks.fits, of_layers))
    return small if alike and config.model_type != HYBRID and takes_heads(head_size) else []


def _replace(
    module: nn.Module, chosen: Sequence[nn.Linear], table: Tensor, in_blocks: bool
) -> None:
    """Put the chosen linears into a layout, one after another, so that the plain ones go.

    in_blocks: the package's, where their shape allows it, else oneDNN's.
    """
    left = set(chosen)
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and child in left:
                shared = child.weight is table
                kind = RowBlockLinear if in_blocks and row_blocks.fits(child) else BlockedLinear
                setattr(parent, name, kind(child.weight, child.bias, shared))
                left.discard(child)


def _fits(module: nn.Module, small: bool = False) -> TypeGuard[nn.Linear]:
    """Whether a layout may take a module: a dense linear, of a dtype it knows, and large enough.

    small: not large enough, in place of that.
    """
    if (
        type(module) is not nn.Linear
        or hasattr(module, "_hf_hook")
        or module.weight.device.type != "cpu"
        or module.weight.dtype not in SMALL
    ):
        return False
    return (_bytes(module) < SMALL[module.weight.dtype]) == small and (
        module.weight.dtype != torch.bfloat16 or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def _bytes(linear: nn.Linear) -> int:
    return linear.weight.numel() * linear.weight.element_size()


@torch.inference_mode()
def _compared(linears: Sequence[nn.Linear]) -> tuple[float, ...]:
    """Return the median seconds of one position and four through all linears, in each layout.

    First by the fused layers' plain matrices, then by oneDNN's, then by the package's, where they
    can lie so; they are timed in alternation. Float32 ones count as read ahead where that is faster
    (`reading.py`).
    """
    turned = [
        linear.weight.t().contiguous()
        if linear.weight.dtype == torch.float32
        else linear.weight.t()
        for linear in linears
    ]
    plain_products = [partial(torch.mm, mat2=weight) for weight in turned]
    ahead = [partial(_read_and_multiplied, weight) for weight in turned]
    laid_out = [BlockedLinear(linear.weight).kernel() for linear in linears]
    inputs = [
        [torch.zeros(q, linear.in_features, dtype=linear.weight.dtype) for linear in linears]
        for q in (1, 4)
    ]
    ways: list[Sequence[Callable[[Tensor], Tensor]]] = [plain_products, laid_out]
    floats = turned[0].dtype == torch.float32
    if floats:
        ways.append(ahead)
    if all(map(row_blocks.fits, linears)):
        ways.append([RowBlockLinear(linear.weight).kernel() for linear in linears])
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
    before, after, *others = (statistics.median(each[1:]) for each in times)
    if floats:
        before = min(before, others.pop(0))
    return before, after, *others


def _read_and_multiplied(weight: Tensor, x: Tensor) -> Tensor:
    weight.sum()
    return torch.mm(x, weight)
