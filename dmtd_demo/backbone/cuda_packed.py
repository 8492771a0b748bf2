"""Linears in 8 or 4 bits on CUDA by kernels of our own (`cuda_packed.cu`).

They are what `--quantization fast-int8` and `fast-int4` mean on a GPU of compute capability 8.0 and
up. The kernels take one position up to sixteen at once; longer passes dequantize a matrix and
multiply by it. The weights are rounded as on a CPU (`packed.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from dmtd_demo.backbone.packed import (
    DENSE,
    GROUP,
    IN_ONE,
    ROWS_AT_ONCE,
    Held,
    Levels,
    Packed,
    PackedLinear,
    eight_bits,
    four_bits,
)
from dmtd_demo.cuda import nvrtc

SOURCE = Path(__file__).with_suffix(".cu").read_text(encoding="utf-8")
# the least compute capability: tensor cores that take bfloat16
CAPABILITY = (8, 0)
# rows that lie together
TILE = 16
# what the columns of a row are padded to a multiple of
COLUMNS = 64
# positions of one launch
AT_ONCE = 16
# positions from which on the matrix is dequantized: four launches read as much
MANY = 64
# the order of eight columns in a word, by the bits of a weight
ORDER = {4: (0, 2, 4, 6, 1, 3, 5, 7), 8: (0, 2, 1, 3, 4, 6, 5, 7)}


@dataclass(frozen=True)
class Shape:
    """The division of a product among blocks.

    tiles: row tiles of a block. warps: of a block; the columns go round over them. ahead: steps of
    16 bytes a lane that are read before they are used.
    """

    tiles: int = 1
    warps: int = 8
    ahead: int = 4


def shape_of(bits: int, rows: int, columns: int) -> Shape:
    """Return what is fastest for a matrix, for one position and for several.

    It must not depend on their number, so that their results do not. By Qwen3-4B's matrices on an
    H200 (docs/performance.md, `benchmarks/cuda_linears.py`); those of 385 to 1,215 tiles lie
    between.
    """
    tiles = -(-rows // TILE)
    if tiles >= 768:  # a few warps each are enough to keep every multiprocessor reading
        return Shape(1, 4, 4) if bits == 8 else Shape(2, 4, 2)
    return Shape(1, 16, 2) if bits == 8 or tiles <= 256 else Shape(1, 8, 4)


# launches overlap where the GPU can
OVERLAP = True


class CudaLinear(PackedLinear):
    """A linear for the kernels of `cuda_packed.cu`.

    weight uint8 [tiles, steps, 512]: of 16 rows and 64 columns (4 bits) or 32 (8 bits), in the
    kernel's order; rows and columns are padded with zeros. scale: in 4 bits [tiles, steps, 32, 2],
    a group's step and middle; in 8 bits [rows]. Both bfloat16. gated: the weights are a gate's and
    an up's, and `kernel` gives silu(gate) up, [out / 2].
    """

    bits: int

    def __init__(self, packed: Packed, gated: bool = False) -> None:
        super().__init__(packed)
        self.gated = gated
        in_one = packed.out_features * packed.in_features / packed.weight.numel()
        setattr(self.weight, IN_ONE, in_one)
        # in a list, so that it is not this module's part
        self.whole: list[CudaLinear] = []
        # of `whole`
        self.rows: slice | None = None
        self.shape = shape_of(self.bits, packed.out_features, self.columns)
        self._kernels: dict[tuple, nvrtc.Kernel] = {}

    @classmethod
    @torch.no_grad()
    def of(
        cls, linear: nn.Linear, shared: bool = False, device: torch.device | str | None = None
    ) -> CudaLinear:
        """Round a dense linear, on its device or on another, ROWS_AT_ONCE rows at once."""
        weight, scale = cls._room(linear, device)
        width = weight.shape[1] * 256 // cls.bits
        for start in range(0, weight.shape[0] * TILE, ROWS_AT_ONCE):
            some = linear.weight[start : start + ROWS_AT_ONCE].to(weight.device).float()
            some = F.pad(some, (0, width - linear.in_features, 0, -len(some) % TILE))
            part = slice(start // TILE, start // TILE + len(some) // TILE)
            cls._pack(some, weight[part], scale, part)
        return cls._with_bias(weight, scale, linear, shared)

    @classmethod
    def _room(cls, linear: nn.Linear, device: torch.device | str | None) -> tuple[Tensor, Tensor]:
        """Return an empty weight and scale for a linear's padded shape."""
        device = linear.weight.device if device is None else torch.device(device)
        rows, columns = linear.weight.shape
        tiles, width = -(-rows // TILE), -(-columns // COLUMNS) * COLUMNS
        steps = width * cls.bits // 256
        weight = torch.empty((tiles, steps, 512), dtype=torch.uint8, device=device)
        return weight, cls._scale(tiles, steps, device)

    @classmethod
    def _with_bias(
        cls, weight: Tensor, scale: Tensor, linear: nn.Linear, shared: bool
    ) -> CudaLinear:
        bias = None if linear.bias is None else linear.bias.to(weight.device)
        return cls(Packed(weight, scale, bias, linear.out_features, linear.in_features, shared))

    @staticmethod
    def _scale(tiles: int, steps: int, device: torch.device) -> Tensor:
        raise NotImplementedError

    @staticmethod
    def _pack(rows: Tensor, weight: Tensor, scale: Tensor, part: slice) -> None:
        """Pack rows, float32 and padded, into weight [tiles, steps, 512] and the scales' part."""
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
        """Return `dense` without a GPU."""
        raise NotImplementedError

    def _rows(self, values: Tensor) -> Tensor:
        """Put values [tile, half, row, …] into the order of the rows of W."""
        if self.gated:
            values = values.transpose(0, 1)
        return values.reshape(-1, self.columns)[: self.out_features, : self.in_features]

    def _compiled(self, name: str, positions: int, shape: Shape) -> nvrtc.Kernel:
        """Return the compiled kernel: `product` of so many positions, or `dense`."""
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
        """Return the product of x [q, in] with the bias and a residual, [q, out].

        Gated, it is silu(gate) up, [q, out / 2], without a residual.
        """
        # half of a gated one: nobody's fast way
        if self.rows is not None:
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
    """A linear in 4 bits; the levels of a group of GROUP are evenly apart."""

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
    ) -> CudaLinear:
        """Keep levels as they are; steps and middles are rounded to bfloat16.

        The linear gives its shape and its bias alone.
        """
        weight, scale = cls._room(linear, device)
        below = weight.shape[0] * TILE - linear.out_features
        beside = weight.shape[1] * COLUMNS - linear.in_features
        levels = F.pad(held.levels, (0, beside, 0, below), value=8).to(weight.device)
        by = torch.stack((held.step.t(), held.middle.t()), dim=-1).to(torch.bfloat16)
        by = F.pad(by.to(weight.device), (0, 0, 0, beside // GROUP, 0, below))
        cls._lay(levels, by, weight, scale)
        return cls._with_bias(weight, scale, linear, shared)

    @staticmethod
    def _lay(levels: Tensor, scales: Tensor, weight: Tensor, scale: Tensor) -> None:
        """Put levels [rows, columns] and scales [rows, groups, 2] into the kernel's order."""
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
    """A linear in 8 bits; each row's largest weight is at 127."""

    bits = 8

    @staticmethod
    def _scale(tiles: int, steps: int, device: torch.device) -> Tensor:
        return torch.empty(tiles * TILE, dtype=torch.bfloat16, device=device)

    @staticmethod
    def _pack(rows: Tensor, weight: Tensor, scale: Tensor, part: slice) -> None:
        values, scale[part.start * TILE : part.stop * TILE] = eight_bits(rows, torch.bfloat16)
        # 0 to 255
        values = values.view(torch.uint8) ^ 128
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
    """Return one linear for all, which are of one kind; their own tensors become views of its.

    gated: a gate and its up, row by row beside each other; each computes from the whole. None where
    they cannot be joined.
    """
    kind, first = type(linears[0]), linears[0]
    if any(linear.out_features % TILE for linear in linears[:-1]):
        return None
    if gated:
        if first.weight.shape != linears[1].weight.shape or first.bias is not None:
            return None
        weight, scale = _interleaved(linears)
    else:
        weight = torch.cat([linear.weight for linear in linears])
        scale = torch.cat([linear.scale for linear in linears])
    biases: list[Tensor] = [linear.bias for linear in linears if linear.bias is not None]
    bias = torch.cat(biases) if biases else None
    rows = sum(linear.out_features for linear in linears)
    whole = kind(Packed(weight, scale, bias, rows, first.in_features), gated)
    row = start = 0
    for linear in linears:
        own_rows = slice(row, row := row + linear.out_features)
        stop = start + linear.weight.shape[0]
        own, start = slice(start, stop), stop
        if gated:
            linear.whole, linear.rows = [whole], own_rows
            linear.weight, linear.scale = whole.weight, whole.scale
            continue
        each = slice(own.start * TILE, own.stop * TILE) if kind is CudaInt8Linear else own
        linear.weight.data, linear.scale = whole.weight.data[own], whole.scale[each]
        if bias is not None and linear.bias is not None:
            linear.bias.data = bias[own_rows]
    return whole


def _interleaved(linears: Sequence[CudaLinear]) -> tuple[Tensor, Tensor]:
    """Return weight and scale of a gate and its up, their rows in turn."""
    shape, four_bit = linears[0].weight.shape, isinstance(linears[0], CudaInt4Linear)
    both = torch.stack([linear.weight for linear in linears])
    # …, half of the rows, bytes
    unit = (4, 2, 2, 4) if four_bit else (4, 1, 2, 8)
    # linear, tile, step, row, lane, chunk, half, byte
    both = both.view(*both.shape[:3], 8, *unit)
    weight = both.permute(1, 6, 2, 3, 4, 5, 0, 7).reshape(-1, *shape[1:])
    scales = torch.stack([linear.scale for linear in linears])
    if not four_bit:
        return weight, scales.view(2, -1, 2, 8).permute(1, 2, 0, 3).reshape(-1)
    tiles, steps = shape[:2]
    scales = scales.view(2, tiles, steps, 8, 2, 2, 2).permute(1, 4, 2, 3, 0, 5, 6)
    return weight, scales.reshape(2 * tiles, steps, 32, 2)


@torch.no_grad()
def pack(
    module: PreTrainedModel, quantization: str, device: torch.device | str, held: Held | None = None
) -> None:
    """Replace every dense linear by a packed one on the device, and take all else there.

    One goes after another, so that no more than one dense matrix lies there. A tied LM head gets a
    packed copy. held: asked for each parameter in 4 bits.
    """
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
