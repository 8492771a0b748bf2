"""Linears in 8 bits by PyTorch's own CPU kernel: `--quantization cpu-int8`. Weights alone are rounded, one scale per row; the LM head is packed too."""
from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROWS = 4096   # quantized at once, so that the float32 copy of an LM head is never whole


class PackedLinear(nn.Module):
    """x [..., in] to [..., out] as x (weight * scale)^T + bias. weight int8 [out, in]; scale [out] in the dtype of x.

    shared: the weights are another module's parameters too (a tied LM head), so these are counted as a buffer.
    """

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None, shared: bool = False) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        if shared:
            self.register_buffer("weight", weight)
        else:
            self.weight = nn.Parameter(weight, requires_grad=False)
        self.register_buffer("scale", scale)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    @classmethod
    @torch.no_grad()
    def of(cls, linear: nn.Linear, shared: bool = False) -> PackedLinear:
        """Symmetric, each row's largest weight at 127; the scale is rounded to the dtype before the weights are."""
        weight = torch.empty(linear.weight.shape, dtype=torch.int8)
        scale = torch.empty(linear.out_features, dtype=linear.weight.dtype)
        for start in range(0, linear.out_features, ROWS):
            rows = linear.weight[start:start + ROWS].float()
            scale[start:start + ROWS] = (rows.abs().amax(dim=1) / 127).clamp_(min=torch.finfo(scale.dtype).tiny)
            weight[start:start + ROWS] = rows.div(scale[start:start + ROWS, None].float()).round_().clamp_(-127, 127)
        return cls(weight, scale, linear.bias, shared)

    def dense(self) -> Tensor:
        """The weights as they are rounded, [out, in]."""
        return self.weight.to(self.scale.dtype) * self.scale[:, None]

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:   # the kernel has no backward
            return F.linear(x, self.dense(), self.bias)
        y = torch._weight_int8pack_mm(x.reshape(-1, self.in_features).contiguous(), self.weight, self.scale)
        if self.bias is not None:
            y += self.bias
        return y.view(*x.shape[:-1], self.out_features)

    def add_to(self, h: Tensor, x: Tensor) -> Tensor:
        return h + self(x)


@torch.no_grad()
def joined(*linears: PackedLinear) -> PackedLinear:
    """One linear for all of them, of which their own tensors become views."""
    bias = torch.cat([linear.bias for linear in linears]) if linears[0].bias is not None else None
    whole = PackedLinear(torch.cat([linear.weight for linear in linears]), torch.cat([linear.scale for linear in linears]), bias)
    start = 0
    for linear in linears:
        stop = start + linear.out_features
        linear.weight.data, linear.scale = whole.weight.data[start:stop], whole.scale[start:stop]
        if bias is not None:
            linear.bias.data = whole.bias.data[start:stop]
        start = stop
    return whole


def pack(module: nn.Module) -> None:
    """Replace every dense linear, one after another, so that the dense matrices go as they are packed. A tied LM head gets a packed copy; the table stays for look-ups."""
    table = module.get_input_embeddings().weight
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, PackedLinear.of(child, shared=child.weight is table))
