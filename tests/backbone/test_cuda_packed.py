"""CUDA's packed linears against the product with their own dequantized weights: on a GPU, and the
same source on a CPU, compiled by g++ with a host thread for each of the GPU's."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from dataclasses import astuple
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from dmtd_demo.backbone import cuda_packed
from dmtd_demo.backbone.cuda_packed import (
    AT_ONCE,
    KINDS,
    MANY,
    CudaLinear,
    Shape,
    joined,
    pack,
    shape_of,
)
from dmtd_demo.backbone.packed import Levels, eight_bits, four_bits, parameters
from dmtd_demo.backbone.qwen import Backbone
from dmtd_demo.backbone.supported import MODEL_TYPES
from dmtd_demo.models.catalog import CATALOG
from dmtd_demo.models.loading import load_random
from dmtd_demo.models.memory import Sizes, taken, weight_bytes
from dmtd_demo.race.panels import PanelSpec
from dmtd_demo.race.race import race_ids
from dmtd_demo.race.settings import RaceSettings
from tiny import fused_layers, tiny_module

HERE = Path(__file__).resolve().parents[1] / "cuda"
CUDA = torch.cuda.is_available() and torch.cuda.get_device_capability() >= cuda_packed.CAPABILITY
needs_cuda = pytest.mark.skipif(not CUDA, reason="needs a GPU of compute capability 8.0")
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
SIZES = [(16, 64), (97, 64), (160, 128), (48, 416), (5, 30), (256, 1024)]
kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))


def linear(rows: int, columns: int, bias: bool = False, device: str = "cpu") -> torch.nn.Linear:
    torch.manual_seed(rows + columns)
    made = torch.nn.Linear(columns, rows, bias=bias, dtype=torch.bfloat16).requires_grad_(False)
    return made.to(device)


def near(got: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, added=0) -> None:
    """got is x W^T + added up to the rounding of bfloat16, and of float32 over all its terms."""
    wanted = F.linear(x.double(), weight.double()) + added
    terms = F.linear(x.double().abs(), weight.double().abs())
    assert ((got.double() - wanted).abs() <= wanted.abs() * 2**-8 + terms * 2**-16 + 1e-30).all()


@kinds
@pytest.mark.parametrize("rows,columns", SIZES)
def test_what_is_packed_is_the_formula(kind, rows, columns):
    dense = linear(rows, columns)
    packed, padded = kind.of(dense), F.pad(dense.weight.float(), (0, -columns % 64))
    if packed.bits == 4:
        levels, scales = four_bits(padded, torch.bfloat16)
        by = scales.float().repeat_interleave(32, dim=1)
        wanted = (levels.float() - 8) * by[..., 0] + by[..., 1]
    else:
        values, scale = eight_bits(padded, torch.bfloat16)
        wanted = values.float() * scale.float()[:, None]
    assert torch.equal(packed.dense(), wanted[:, :columns].to(torch.bfloat16))
    assert (packed.dense() - dense.weight).abs().max() < (
        0.08 if packed.bits == 4 else 0.006
    ) * columns**-0.5 * 2
    assert round(packed.weight.numel() * packed.weight.in_one) == rows * columns


@pytest.mark.parametrize(
    "rows,columns,four,eight",
    [
        (6144, 2560, "1x8x4", "1x16x2"),
        (2560, 4096, "1x16x2", "1x16x2"),
        (19456, 2560, "2x4x2", "1x4x4"),
        (2560, 9728, "1x16x2", "1x16x2"),
        (151936, 2560, "2x4x2", "1x4x4"),
    ],
)
def test_blocks_are_those_that_were_fastest_on_an_h200(rows, columns, four, eight):
    for bits, wanted in ((4, four), (8, eight)):
        assert "x".join(map(str, astuple(shape_of(bits, rows, columns)))) == wanted


@pytest.mark.parametrize("rows,columns", [(16, 64), (97, 96), (48, 416)])
def test_levels_that_a_file_holds_are_kept(rows, columns):
    levels = torch.randint(0, 16, (rows, columns), dtype=torch.uint8)
    step, middle = torch.rand(2, columns // 32, rows)
    packed = cuda_packed.CudaInt4Linear.of_levels(
        Levels(levels, step, middle), linear(rows, columns)
    )
    by, of = (part.bfloat16().float().t().repeat_interleave(32, dim=1) for part in (step, middle))
    assert torch.equal(packed.dense(), ((levels.float() - 8) * by + of).bfloat16())


@lru_cache
def emulated(bits: int, gated: bool, positions: int, shape: Shape, folder: Path) -> ctypes.CDLL:
    macros = dict(
        BITS=bits,
        GATED=int(gated),
        POSITIONS=8 if positions <= 8 else 16,
        PDL=0,
        TILES=shape.tiles,
        WARPS=shape.warps,
        AHEAD=shape.ahead,
    )
    library = folder / ("-".join(map(str, macros.values())) + ".so")
    source = Path(cuda_packed.__file__).with_suffix(".cu")
    subprocess.run(
        [
            "g++",
            "-std=c++20",
            "-O1",
            "-shared",
            "-fPIC",
            "-pthread",
            "-w",
            "-include",
            HERE / "emulated.h",
            f'-DSOURCE="{source}"',
            *(f"-D{name}={value}" for name, value in macros.items()),
            HERE / "run.cpp",
            "-o",
            library,
        ],
        check=True,
    )
    return ctypes.CDLL(str(library))


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    return tmp_path_factory.mktemp("emulated")


def run(
    packed: CudaLinear, x: torch.Tensor, folder: Path, shape: Shape, residual=None
) -> torch.Tensor:
    """As CudaLinear.added launches it."""
    library = emulated(packed.bits, packed.gated, len(x), shape, folder)
    x = F.pad(x, (0, packed.columns - x.shape[1])).contiguous()
    tiles, rows = packed.weight.shape[0], packed.out_features // (1 + packed.gated)
    y = torch.full((len(x), rows), torch.nan, dtype=torch.bfloat16)
    tensors = [packed.weight, packed.scale, x, packed.bias, residual, y]
    library.run_product(
        -(-tiles // shape.tiles),
        *(ctypes.c_void_p(None if t is None else t.data_ptr()) for t in tensors),
        rows,
        packed.columns,
        len(x),
        tiles,
    )
    return y


@needs_compiler
@kinds
@pytest.mark.parametrize(
    "rows,columns,positions,shape",
    [
        (16, 64, 1, Shape(1, 1, 1)),
        (97, 64, 3, Shape(1, 2, 2)),
        (80, 416, 8, Shape(2, 2, 2)),
        (48, 320, 13, Shape(1, 2, 2)),
        (5, 30, 16, Shape(2, 2, 1)),
    ],
)
def test_the_kernel_is_the_product(kind, rows, columns, positions, shape, built):
    packed = kind.of(linear(rows, columns, bias=True))
    x, residual = (
        torch.randn(positions, columns).bfloat16(),
        torch.randn(positions, rows).bfloat16(),
    )
    near(run(packed, x, built, shape, residual), x, exact(packed), packed.bias.double() + residual)
    packed.bias = None
    alone = run(packed, x, built, shape)
    near(alone, x, exact(packed))
    for i in (0, positions - 1):  # how many others there are changes nothing
        assert torch.equal(run(packed, x[i : i + 1], built, shape), alone[i : i + 1])


def exact(packed: CudaLinear) -> torch.Tensor:
    """The weights before `dense` rounds them, float64; rows and columns of W."""
    if packed.bits == 8:
        whole = torch.nn.Linear(1, 1)
        whole.weight.data = packed.dense().double()
        scale = packed.scale.double()[: packed.out_features, None]
        return (whole.weight.data / scale).round() * scale
    tiles, steps, _ = packed.weight.shape
    scale = packed.scale.view(tiles, steps, 8, 2, 2, 2).permute(0, 3, 2, 1, 4, 5).double()
    by = scale.reshape(tiles * 16, steps * 2, 2).repeat_interleave(32, dim=1)
    step, middle = by[: packed.out_features, : packed.in_features].unbind(-1)
    return ((packed.dense().double() - middle) / step).round().clamp(-8, 7) * step + middle


@needs_compiler
@kinds
def test_the_kernel_of_a_gate_and_its_up(kind, built):
    gate, up = kind.of(linear(48, 128)), kind.of(linear(48, 160 - 32))
    up = kind.of(linear(48, 128, device="cpu"))
    up.weight.data = kind.of(torch.nn.Linear(128, 48, bias=False)).weight.data
    weights = [part.dense().clone() for part in (gate, up)]
    whole = joined(gate, up, gated=True)
    assert torch.equal(whole.dense(), torch.cat(weights))
    assert torch.equal(gate.dense(), weights[0]) and torch.equal(up.dense(), weights[1])
    x = torch.randn(5, 128).bfloat16()
    got = run(whole, x, built, Shape(1, 2, 2))
    wanted = F.silu(F.linear(x.float(), weights[0].float())) * F.linear(
        x.float(), weights[1].float()
    )
    torch.testing.assert_close(got.float(), wanted, rtol=0.03, atol=0.01)
    torch.testing.assert_close(whole.added(x).float(), wanted, rtol=0.03, atol=0.01)


@kinds
@pytest.mark.parametrize("bias", [False, True])
def test_joined_linears_hold_nothing_twice(kind, bias):
    parts = [kind.of(linear(n, 64, bias)) for n in (32, 16, 20)]
    x = torch.randn(3, 64).bfloat16()
    before = torch.cat([part(x) for part in parts], dim=-1)
    whole = joined(*parts)
    assert torch.equal(whole(x), before)
    assert torch.equal(torch.cat([part(x) for part in parts], dim=-1), before)
    assert {p.weight.untyped_storage().data_ptr() for p in parts} == {
        whole.weight.untyped_storage().data_ptr()
    }
    assert joined(*(kind.of(linear(n, 64)) for n in (20, 16))) is None


@pytest.mark.parametrize("family", MODEL_TYPES)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("quantization", KINDS)
def test_a_packed_model_is_fused(family, tied, quantization):
    """Here without the kernels: by the dequantized matrices."""
    module = tiny_module(
        family, tied=tied, initializer_range=0.15, hidden_size=64, intermediate_size=128
    ).bfloat16()
    ids, count = [5, 17, 60, 42, 9, 5, 17, 60], parameters(module)
    dense = module(torch.tensor([ids])).logits
    pack(module, quantization, "cpu")
    assert parameters(module) == count
    packed = module(torch.tensor([ids])).logits
    assert 0 < (packed - dense).abs().mean() < 0.5 * dense.abs().mean()
    backbone = Backbone(module)
    with torch.inference_mode():
        cache = backbone.new_cache()
        h = backbone.run_layers(backbone.embed(ids), 0, backbone.layers, cache)
        fused = backbone.logits(backbone.final_norm(h))
    assert fused_layers(backbone)[0].gate_up.gated and parameters(module) == count
    torch.testing.assert_close(fused, packed, rtol=0, atol=0.05 * packed.abs().max().item())
    again = module(torch.tensor([ids])).logits  # by layers that are parts of others now
    torch.testing.assert_close(again, packed, rtol=0, atol=0.05 * packed.abs().max().item())


@kinds
def test_gradients_go_through(kind):
    packed = kind.of(linear(16, 64))
    x = torch.randn(3, 64, dtype=torch.bfloat16, requires_grad=True)
    packed(x).sum().backward()
    torch.testing.assert_close(
        x.grad, packed.dense().float().sum(0).bfloat16().expand(3, -1), rtol=0.02, atol=0.02
    )


@needs_cuda
@kinds
@pytest.mark.parametrize(
    "rows,columns,shape",
    [
        *((*size, None) for size in (*SIZES, (2560, 4096))),
        *((160, 1024, shape) for shape in (Shape(1, 4, 2), Shape(2, 8, 2), Shape(1, 16, 1))),
    ],
)
def test_on_cuda_it_is_the_product(kind, rows, columns, shape):
    dense = linear(rows, columns, bias=True, device="cuda")
    packed, there = kind.of(dense), kind.of(linear(rows, columns, bias=True))
    assert torch.equal(packed.dense().cpu(), there.dense())
    weight = exact(there).cuda()
    for positions in (*range(1, AT_ONCE + 1), 33, MANY + 1):
        x = torch.randn(positions, columns, device="cuda").bfloat16()
        residual = torch.randn(positions, rows, device="cuda").bfloat16()
        got = packed.added(x, shape=shape)
        if positions <= MANY:
            near(got, x, weight, packed.bias.double())
            assert torch.equal(got[:1], packed.added(x[:1], shape=shape))
            assert torch.equal(got[-1:], packed.added(x[-1:], shape=shape))
        else:
            torch.testing.assert_close(
                got, F.linear(x, packed.dense(), packed.bias), rtol=0.02, atol=0.02
            )
        if positions <= MANY:
            near(packed.added(x, residual, shape=shape), x, weight, packed.bias.double() + residual)


@needs_cuda
@kinds
def test_on_cuda_a_gate_and_its_up(kind):
    gate, up = (
        kind.of(torch.nn.Linear(2560, 9728, bias=False, dtype=torch.bfloat16, device="cuda"))
        for _ in range(2)
    )
    weights = [part.dense().clone() for part in (gate, up)]
    whole = joined(gate, up, gated=True)
    assert torch.equal(whole.dense(), torch.cat(weights))
    for positions in (1, 4, 9, 16, 100):
        x = torch.randn(positions, 2560, device="cuda").bfloat16()
        wanted = F.silu(F.linear(x, weights[0])) * F.linear(x, weights[1])
        torch.testing.assert_close(whole.added(x), wanted, rtol=0.03, atol=0.01)


@needs_cuda
@pytest.mark.parametrize("quantization", KINDS)
def test_on_cuda_decoders_draw_the_same_tokens_with_and_without_graphs(quantization):
    """The kernels' results do not depend on the number of positions; what lies between them may."""
    model = load_random("Qwen3-0.6B", quantization=quantization, device="cuda")
    entry = CATALOG["Qwen3-0.6B"]
    wanted = weight_bytes(Sizes.of(entry.family, entry.shape), quantization, 2)
    assert abs(taken(model.backbone.module) / wanted - 1) < 0.01
    prompt = list(range(100, 140))
    drawn = {}
    for static in (True, False):
        model.backbone.static = static
        for panel in ("ar", "dmtd"):
            records = [
                r
                for batch in race_ids(
                    model,
                    [PanelSpec(panel)],
                    [prompt],
                    RaceSettings(max_new_tokens=24, ignore_eos=True, audit=False),
                )
                for r in batch
            ]
            assert records[-1].get("message") is None, records[-1]
            drawn[panel, static] = [
                t["id"] for r in records if r["type"] == "step" for t in r["tokens"]
            ]
    assert model.backbone._passes.refused is None
    assert all(len(ids) == 24 for ids in drawn.values())
    assert all(drawn[panel, True][:4] == drawn[panel, False][:4] for panel in ("ar", "dmtd"))
