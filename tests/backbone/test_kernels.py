"""Triton's kernels against the operations whose place they take: on a GPU, or by Triton's
interpreter (TRITON_INTERPRET=1) where there is none.
"""

from __future__ import annotations

import os

import pytest
import torch
from torch.nn import functional as F

from dmtd_demo.backbone import graphs
from dmtd_demo.backbone.qwen import Backbone
from tiny import ATTENTION, tiny_module

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.skipif(
    DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1",
    reason="needs CUDA, or TRITON_INTERPRET=1",
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("positions", [1, 4])
@pytest.mark.parametrize("norm", [False, True])
def test_heads_are_normed_rotated_and_stored(dtype, positions, norm):
    from dmtd_demo.backbone.kernels import rotate

    generator = torch.Generator().manual_seed(positions)
    heads, weight, cos, sin = (
        torch.randn(shape, generator=generator).to(dtype).to(DEVICE)
        for shape in ((positions, 10, 32), (8, 32), (positions, 1, 32), (positions, 1, 32))
    )
    entries, at = (
        torch.zeros((4, 50, 32), dtype=dtype, device=DEVICE),
        torch.tensor([7, 3, 49, 0][:positions], device=DEVICE),
    )
    queries = rotate(heads, cos, sin, weight if norm else None, 1e-6, 6, entries, at)
    qk = heads[:, :8]
    if norm:
        qk = F.rms_norm(qk, (32,), None, 1e-6) * weight
    wanted = torch.addcmul(qk.roll(16, -1).mul_(sin), qk, cos)
    # the interpreter cuts where a GPU rounds
    near = (
        dict(rtol=1e-5, atol=1e-5)
        if dtype == torch.float32
        else dict(rtol=2e-2 if DEVICE == "cuda" else 4e-2, atol=3e-2)
    )
    torch.testing.assert_close(queries, wanted[:, :6], **near)
    stored = torch.zeros_like(entries)
    stored[:, at] = torch.cat((wanted[:, 6:], heads[:, 8:]), dim=1).transpose(0, 1)
    torch.testing.assert_close(entries, stored, **near)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [5, 1024, 2500])
def test_the_gate(dtype, size):
    from dmtd_demo.backbone.kernels import gated

    both = (
        torch.randn((3, 2 * size), generator=torch.Generator().manual_seed(size))
        .to(dtype)
        .to(DEVICE)
    )
    gate, up = both.chunk(2, dim=-1)
    torch.testing.assert_close(
        gated(both),
        F.silu(gate) * up,
        **(dict(rtol=1e-5, atol=1e-6) if dtype == torch.float32 else dict(rtol=2e-2, atol=1e-3)),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [64, 2560])
def test_the_norm(dtype, size):
    from dmtd_demo.backbone.kernels import normed

    generator = torch.Generator().manual_seed(size)
    x, weight = (
        torch.randn(shape, generator=generator).to(dtype).to(DEVICE)
        for shape in ((3, size), (size,))
    )
    torch.testing.assert_close(
        normed(x, weight, 1e-6),
        F.rms_norm(x, (size,), None, 1e-6) * weight,
        **(dict(rtol=1e-5, atol=1e-6) if dtype == torch.float32 else dict(rtol=2e-2, atol=1e-3)),
    )


@pytest.mark.parametrize("family", ATTENTION)
def test_whole_passes(family, monkeypatch):
    from dmtd_demo.backbone import kernels

    passes = []
    for used in (None, kernels):
        monkeypatch.setattr(graphs, "triton_kernels", lambda device, used=used: (used, ""))
        backbone = Backbone(tiny_module(family).to(DEVICE))
        backbone.static = True
        with torch.inference_mode():
            cache = backbone.new_cache()
            passes.append(
                [
                    backbone.run_layers(backbone.embed(ids), 0, 4, cache)
                    for ids in ([1, 2, 3], [4], [5, 6], [7])
                ]
            )
        assert backbone._passes.refused is None
    for plain, joined in zip(*passes):
        torch.testing.assert_close(joined, plain, rtol=0, atol=1e-5 * plain.abs().max().item())
