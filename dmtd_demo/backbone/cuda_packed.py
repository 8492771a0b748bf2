"""Linears in 8 or 4 bits on CUDA by kernels of our own (`cuda_packed.cu`), for one position up to
sixteen: `--quantization fast-int8` and `fast-int4`. The weights are rounded as on a CPU
(`cpu_packed.py`). Longer passes dequantize a matrix and multiply by it. Compute capability 8.0 and
up."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from dmtd_demo.backbone.cpu_packed import (
    DENSE,
    GROUP,
    IN_ONE,
    ROWS,
    Held,
    Levels,
    PackedLinear,
    eight_bits,
    four_bits,
)
from dmtd_demo.cuda import nvrtc

SOURCE = Path(__file__).with_suffix(".cu").read_text(encoding="utf-8")
CAPABILITY = (8, 0)  # tensor cores that take bfloat16
TILE = 16  # rows that lie together
COLUMNS = 64  # of a row: padded to a multiple
AT_ONCE = 16  # positions of one launch
# positions from which on the matrix is dequantized: four launches read as much
MANY = 64
ORDER = {4: (0, 2, 4, 6, 1, 3, 5, 7), 8: (0, 2, 1, 3, 4, 6, 5, 7)}  # of eight columns in a word


@dataclass(frozen=True)
class Shape:
    """How a product is divided: row tiles of a block, warps of a block, over which the columns go
    round, and steps of 16 bytes a lane that are read before they are used."""

    tiles: int = 1
    warps: int = 8
    ahead: int = 4


def shape_of(bits: int, rows: int, columns: int) -> Shape:
    """What is fastest for a matrix, for one position and for several: it must not depend on their
    number, so that their results do not. By Qwen3-4B's matrices on an H200 (docs/performance.md,
    `benchmarks/cuda_linears.py`); those of 385 to 1,215 tiles lie between."""
    tiles = -(-rows // TILE)
    if tiles >= 768:  # a few warps each are enough to keep every multiprocessor reading
        return Shape(1, 4, 4) if bits == 8 else Shape(2, 4, 2)
    return Shape(1, 16, 2) if bits == 8 or tiles <= 256 else Shape(1, 8, 4)


# launches overlap where the GPU can
OVERLAP = True


class CudaLinear(PackedLinear):
    """weight uint8 [tiles, steps, 512]: of 16 rows and 64 columns (4 bits) or 32 (8 bits), in the
    order of `cuda_packed.cu`; rows and columns are padded with zeros. scale: in 4 bits
    [tiles, steps, 32, 2], a group's step and middle; in 8 bits [rows]. Both bfloat16.

    gated: the weights are a gate's and an up's, and `kernel` gives silu(gate) up, [out / 2].
    """

    bits: int

    def __init__(
        self,
        weight: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        out_features: int,
        in_features: int,
        shared: bool = False,
        gated: bool = False,
    ) -> None:
        super().__init__(weight, scale, bias, out_features, in_features, shared)
        self.gated = gated
        setattr(self.weight, IN_ONE, out_features * in_features / weight.numel())
        self.whole: list[CudaLinear] = []  # in a list, so that it is not this module's part
        self.rows: slice | None = None  # of `whole`
        self.shape = shape_of(self.bits, out_features, self.columns)
        self._kernels: dict[tuple, nvrtc.Kernel] = {}

    @classmethod
    @torch.no_grad()
    def of(
        cls, linear: nn.Linear, shared: bool = False, device: torch.device | str | None = None
    ) -> CudaLinear:
        """Of a dense one, on its device or on another; ROWS rows lie in between at once."""
        device = linear.weight.device if device is None else torch.device(device)
        rows, columns = linear.weight.shape
        tiles, width = -(-rows // TILE), -(-columns // COLUMNS) * COLUMNS
        steps = width * cls.bits // 256
        weight = torch.empty((tiles, steps, 512), dtype=torch.uint8, device=device)
        scale = cls._scale(tiles, steps, device)
        for start in range(0, tiles * TILE, ROWS):
            some = linear.weight[start : start + ROWS].to(device).float()
            some = F.pad(some, (0, width - columns, 0, -len(some) % TILE))
            part = slice(start // TILE, start // TILE + len(some) // TILE)
            cls._pack(some, weight[part], scale, part)
        bias = None if linear.bias is None else linear.bias.to(device)
        return cls(weight, scale, bias, rows, columns, shared)

    @staticmethod
    def _scale(tiles: int, steps: int, device: torch.device) -> Tensor:
        raise NotImplementedError

    @staticmethod
    def _pack(rows: Tensor, weight: Tensor, scale: Tensor, part: slice) -> None:
        """Rows, float32 and padded, into weight [tiles, steps, 512] and the scales' part."""
        raise NotImplementedError

    @property
    def columns(self) -> int:
        return self.weight.shape[1] * 256 // self.bits

    def dense(self) -> Tensor:
        if self.rows is not None:
            return self.whole[0].dense()[self.rows]
        if not self.weight.is_cuda:
            return self._unpacked()
        out = torch.empty(
            (self.out_features, self.columns), dtype=torch.bfloat16, device=self.weight.device
        )
        tiles, steps, _ = self.weight.shape
        self._compiled("dense", AT_ONCE, self.shape)(
            -(-tiles * steps // 8),
            (self.weight, self.scale, out, self.out_features, self.columns, tiles),
        )
        return out[:, : self.in_features]

    def _unpacked(self) -> Tensor:
        """`dense` without a GPU."""
        raise NotImplementedError

    def _rows(self, values: Tensor) -> Tensor:
        """[tile, half, row, …] in the order of the rows of W."""
        if self.gated:
            values = values.transpose(0, 1)
        return values.reshape(-1, self.columns)[: self.out_features, : self.in_features]

    def _compiled(self, name: str, positions: int, shape: Shape) -> nvrtc.Kernel:
        """`product` of so many positions, or `dense`."""
        key = (name, positions <= 8, shape, OVERLAP)
        found = self._kernels.get(key)
        if found is None:
            device = self.weight.device
            overlapping = (
                name == "product"
                and OVERLAP
                and (torch.cuda.get_device_capability(device) >= nvrtc.OVERLAPS)
            )
            macros = {
                "BITS": self.bits,
                "GATED": int(self.gated),
                "PDL": int(overlapping),
                "POSITIONS": 8 if positions <= 8 else AT_ONCE,
                "TILES": shape.tiles,
                "WARPS": shape.warps,
                "AHEAD": shape.ahead,
            }
            index = torch.cuda.current_device() if device.index is None else device.index
            threads = shape.warps * 32 if name == "product" else 256
            found = nvrtc.kernel(SOURCE, name, tuple(macros.items()), threads, index, overlapping)
            self._kernels[key] = found
        return found

    def product(self) -> Callable[[Tensor], Tensor]:
        return lambda x: self.added(x, biased=False)

    def kernel(self) -> Callable[[Tensor], Tensor]:
        return self.added

    def added(
        self,
        x: Tensor,
        residual: Tensor | None = None,
        biased: bool = True,
        shape: Shape | None = None,
    ) -> Tensor:
        """x [q, in] to [q, out], with the bias and a residual, [q, out]; gated, to [q, out / 2]."""
        if self.rows is not None:  # half of a gated one: nobody's fast way
            return F.linear(x, self.dense())
        bias = self.bias if biased else None
        positions, shape = x.shape[0], shape or self.shape
        if positions > MANY or not x.is_cuda:
            y = F.linear(x, self.dense(), bias)
            if self.gated:
                gate, up = y.chunk(2, dim=-1)
                return F.silu(gate).mul_(up)
            return y if residual is None else y.add_(residual)
        if x.shape[1] != self.columns:
            x = F.pad(x, (0, self.columns - x.shape[1]))
        x = x.contiguous()
        tiles, rows = self.weight.shape[0], self.out_features // (1 + self.gated)
        y = torch.empty((positions, rows), dtype=torch.bfloat16, device=x.device)
        for start in range(0, positions, AT_ONCE):
            some = slice(start, start + AT_ONCE)
            count = min(AT_ONCE, positions - start)
            self._compiled("product", count, shape)(
                -(-tiles // shape.tiles),
                (
                    self.weight,
                    self.scale,
                    x[some],
                    bias,
                    None if residual is None else residual[some],
                    y[some],
                    rows,
                    self.columns,
                    count,
                    tiles,
                ),
            )
        return y


class CudaInt4Linear(CudaLinear):
    bits = 4

    @staticmethod
    def _scale(tiles: int, steps: int, device: torch.device) -> Tensor:
        return torch.empty((tiles, steps, 32, 2), dtype=torch.bfloat16, device=device)

    @staticmethod
    def _pack(rows: Tensor, weight: Tensor, scale: Tensor, part: slice) -> None:
        CudaInt4Linear._lay(*four_bits(rows, torch.bfloat16), weight, scale[part])

    @classmethod
    @torch.no_grad()
    def of_levels(
        cls,
        held: Levels,
        linear: nn.Linear,
        shared: bool = False,
        device: torch.device | str | None = None,
    ) -> CudaInt4Linear:
        """The levels as they are; steps and middles are rounded to bfloat16. The linear gives its
        shape and its bias alone."""
        device = linear.weight.device if device is None else torch.device(device)
        rows, columns = linear.weight.shape
        tiles, width = -(-rows // TILE), -(-columns // COLUMNS) * COLUMNS
        weight = torch.empty((tiles, width // COLUMNS, 512), dtype=torch.uint8, device=device)
        scale = cls._scale(tiles, width // COLUMNS, device)
        below, beside = tiles * TILE - rows, width - columns
        levels = F.pad(held.levels, (0, beside, 0, below), value=8).to(device)
        by = torch.stack((held.step.t(), held.middle.t()), dim=-1).to(torch.bfloat16).to(device)
        cls._lay(levels, F.pad(by, (0, 0, 0, beside // GROUP, 0, below)), weight, scale)
        bias = None if linear.bias is None else linear.bias.to(device)
        return cls(weight, scale, bias, rows, columns, shared)

    @staticmethod
    def _lay(levels: Tensor, scales: Tensor, weight: Tensor, scale: Tensor) -> None:
        """Levels [rows, columns] and scales [rows, groups, 2] into the kernel's order."""
        # tile, half of its rows, row, step, half of its columns, lane of a row, column
        levels = levels.view(-1, 2, 8, weight.shape[1], 2, 4, 8)[..., ORDER[4]]
        pairs = levels[..., 0::2] | levels[..., 1::2] << 4
        weight.view(-1, weight.shape[1], 8, 4, 2, 2, 4).copy_(pairs.permute(0, 3, 2, 5, 4, 1, 6))
        scales = scales.view(-1, 2, 8, weight.shape[1], 2, 2).permute(0, 3, 2, 1, 4, 5)
        scale.view(scales.shape).copy_(scales)

    def _unpacked(self) -> Tensor:
        tiles, steps, _ = self.weight.shape
        pairs = self.weight.view(tiles, steps, 8, 4, 2, 2, 4).permute(0, 5, 2, 1, 4, 3, 6)
        levels = torch.stack((pairs & 15, pairs >> 4), dim=-1).flatten(-2)
        # [tile, half, row, step, half, lane, 8]
        levels = levels[..., torch.tensor(ORDER[4]).argsort()]
        by = (
            self.scale.view(tiles, steps, 8, 2, 2, 2)
            .permute(0, 3, 2, 1, 4, 5)
            .float()[..., None, None, :]
        )
        return self._rows(((levels.float() - 8) * by[..., 0] + by[..., 1]).to(torch.bfloat16))


class CudaInt8Linear(CudaLinear):
    bits = 8

    @staticmethod
    def _scale(tiles: int, steps: int, device: torch.device) -> Tensor:
        return torch.empty(tiles * TILE, dtype=torch.bfloat16, device=device)

    @staticmethod
    def _pack(rows: Tensor, weight: Tensor, scale: Tensor, part: slice) -> None:
        values, scale[part.start * TILE : part.stop * TILE] = eight_bits(rows, torch.bfloat16)
        values = values.view(torch.uint8) ^ 128  # 0 to 255
        values = values.view(-1, 2, 8, weight.shape[1], 4, 8)[..., ORDER[8]]
        weight.view(-1, weight.shape[1], 8, 4, 2, 8).copy_(values.permute(0, 3, 2, 4, 1, 5))

    def _unpacked(self) -> Tensor:
        tiles, steps, _ = self.weight.shape
        values = self.weight.view(tiles, steps, 8, 4, 2, 8).permute(0, 4, 2, 1, 3, 5)
        values = values[..., torch.tensor(ORDER[8]).argsort()].float() - 128
        by = self.scale.view(tiles, 2, 8, 1, 1, 1).float()
        return self._rows((values * by).to(torch.bfloat16))


@torch.no_grad()
def joined(*linears: CudaLinear, gated: bool = False) -> CudaLinear | None:
    """One linear for all of them, of which their own tensors become views; None where they cannot
    be. gated: a gate and its up, row by row beside each other; each computes from the whole."""
    kind, first = type(linears[0]), linears[0]
    if any(linear.out_features % TILE for linear in linears[:-1]):
        return None
    if gated:
        if first.weight.shape != linears[1].weight.shape or first.bias is not None:
            return None
        both = torch.stack([linear.weight for linear in linears])
        # …, half of the rows, bytes
        unit = (4, 2, 2, 4) if kind is CudaInt4Linear else (4, 1, 2, 8)
        # linear, tile, step, row, lane, chunk, half, byte
        both = both.view(*both.shape[:3], 8, *unit)
        weight = both.permute(1, 6, 2, 3, 4, 5, 0, 7).reshape(-1, *first.weight.shape[1:])
        scales = torch.stack([linear.scale for linear in linears])
        if kind is CudaInt4Linear:
            tiles, steps = first.weight.shape[:2]
            scales = scales.view(2, tiles, steps, 8, 2, 2, 2).permute(1, 4, 2, 3, 0, 5, 6)
            scale = scales.reshape(2 * tiles, steps, 32, 2)
        else:
            scale = scales.view(2, -1, 2, 8).permute(1, 2, 0, 3).reshape(-1)
    else:
        weight = torch.cat([linear.weight for linear in linears])
        scale = torch.cat([linear.scale for linear in linears])
    biases: list[Tensor] = [linear.bias for linear in linears if linear.bias is not None]
    bias = torch.cat(biases) if biases else None
    whole = kind(
        weight,
        scale,
        bias,
        sum(linear.out_features for linear in linears),
        first.in_features,
        gated=gated,
    )
    row = start = 0
    for linear in linears:
        rows = slice(row, row := row + linear.out_features)
        stop = start + linear.weight.shape[0]
        own, start = slice(start, stop), stop
        if gated:
            linear.whole, linear.rows = [whole], rows
            linear.weight, linear.scale = whole.weight, whole.scale
            continue
        each = slice(own.start * TILE, own.stop * TILE) if kind is CudaInt8Linear else own
        linear.weight.data, linear.scale = whole.weight.data[own], whole.scale[each]
        if bias is not None and linear.bias is not None:
            linear.bias.data = bias[rows]
    return whole


@torch.no_grad()
def pack(
    module: PreTrainedModel, quantization: str, device: torch.device | str, held: Held | None = None
) -> None:
    """Replace every dense linear by a packed one on the device, one after another, so that no more
    than one dense matrix lies there; then all else goes there. A tied LM head gets a packed copy.
    held: asked for each parameter in 4 bits."""
    table = module.get_input_embeddings().weight
    for path, parent in list(module.named_modules()):
        for name, child in list(parent.named_children()):
            if type(child) is not nn.Linear or name in DENSE:
                continue
            kind, shared = KINDS[quantization], child.weight is table
            known = None
            if held and kind is CudaInt4Linear:
                known = held(f"{path}.{name}.weight".lstrip("."))
            if isinstance(known, Levels):
                packed: CudaLinear = CudaInt4Linear.of_levels(known, child, shared, device)
            else:
                packed = (CudaInt8Linear if known == 8 else kind).of(child, shared, device)
            setattr(parent, name, packed)
    nn.Module.to(module, device)


KINDS: dict[str, type[CudaLinear]] = {"fast-int8": CudaInt8Linear, "fast-int4": CudaInt4Linear}
