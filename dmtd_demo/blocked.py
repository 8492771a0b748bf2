"""bfloat16 linears on a CPU in the layout that oneDNN computes from, which ships with PyTorch: the same weights and products, read about as fast as memory can give them."""
from __future__ import annotations

import copy
import statistics
import time

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from dmtd_demo.memory import free

LARGE = 2 ** 24    # bytes of the LM head from which on a layout is measured: what fits a cache is not read from memory
WORTH = 0.9        # times the plain matrix's time
REPEATS = 5


class BlockedLinear(nn.Module):
    """x [..., in] to [..., out], both bfloat16. weight: opaque, [out, in]. shared: the weights are another module's parameters too (a tied LM head), so these are
    counted as a buffer, and that table stays what `dense` gives."""

    def __init__(self, linear: nn.Linear, shared: bool = False) -> None:
        super().__init__()
        self.out_features, self.in_features = linear.weight.shape
        weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), 1)
        if shared:
            self.register_buffer("weight", weight)
        else:
            self.weight = nn.Parameter(weight, requires_grad=False)
        self._table = [linear.weight] if shared else []   # in a list, so that it is not this module's parameter
        self.bias = linear.bias

    def dense(self) -> Tensor:
        """The weights, [out, in]."""
        return self._table[0] if self._table else self.weight.detach().to_dense()

    def linear(self) -> nn.Linear:
        """As it was before."""
        linear = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        dense = self.dense()
        linear.weight = dense if isinstance(dense, nn.Parameter) else nn.Parameter(dense, requires_grad=False)
        linear.bias = self.bias
        return linear

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:   # the kernel has no backward
            return F.linear(x, self.dense(), self.bias)
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")

    def add_to(self, h: Tensor, x: Tensor) -> Tensor:
        return h + self(x)


def lay_out(module: PreTrainedModel) -> str | None:
    """Replace the dense bfloat16 linears of a causal model on a CPU where its LM head is faster so, by a measurement. Returns what was found; None where there was nothing to choose."""
    head = module.get_output_embeddings()
    if not (_fits(head) and head.weight.numel() * head.weight.element_size() >= LARGE and torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        return None
    shared = head.weight is module.get_input_embeddings().weight
    if shared and free("cpu") < 4 * head.weight.numel() * head.weight.element_size():
        return None
    blocked = BlockedLinear(head, shared)
    x = torch.zeros(1, head.in_features, dtype=torch.bfloat16)
    before, after = _seconds(head, x), _seconds(blocked, x)
    found = f"its LM head takes {after * 1000:.1f} ms where the plain matrix takes {before * 1000:.1f}"
    if after > WORTH * before:
        return f"bfloat16 matrices as they are: in oneDNN's layout {found}"
    for parent in list(module.modules()):   # one after another, so that the plain matrices go
        for name, child in list(parent.named_children()):
            if child is head:
                setattr(parent, name, blocked)
            elif _fits(child):
                setattr(parent, name, BlockedLinear(child))
    return f"bfloat16 matrices in oneDNN's layout: {found}" + (", and is held beside the embedding table" if shared else "")


def plain(module: PreTrainedModel) -> PreTrainedModel:
    """The same causal model with every dense linear as transformers loads it and its parameters its own; all else is shared. For training, and for what others are measured by."""
    return _plain(module, module.get_input_embeddings().weight)


def _plain(module: nn.Module, table: Tensor) -> nn.Module:
    if isinstance(module, BlockedLinear):
        return module.linear()
    twin = copy.copy(module)
    if type(module) is nn.Linear:
        twin._parameters = {name: p if p is None or p is table else nn.Parameter(p.detach().contiguous(), requires_grad=p.requires_grad) for name, p in module._parameters.items()}
    twin._modules = {name: None if child is None else _plain(child, table) for name, child in module._modules.items()}
    return twin


def _fits(module: nn.Module | None) -> bool:
    return type(module) is nn.Linear and module.weight.dtype == torch.bfloat16 and module.weight.device.type == "cpu" and not hasattr(module, "_hf_hook")


@torch.inference_mode()
def _seconds(linear: nn.Module, x: Tensor) -> float:
    times = []
    for _ in range(REPEATS + 1):
        started = time.perf_counter()
        linear(x)
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])
