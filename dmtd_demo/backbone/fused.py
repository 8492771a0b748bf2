"""A layer of Qwen2 or Qwen3 in few operations, over the new positions of one text with a cache."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache as cached
from types import ModuleType

import torch
from torch import Tensor
from torch.backends.cuda import SDPAParams, can_use_cudnn_attention
from torch.nn import functional as F

from dmtd_demo.backbone.avx512 import WholeLayer, WholeLayers, takes_heads
from dmtd_demo.backbone.cache import KVCache, PlacedEntries
from dmtd_demo.backbone.integers import ByBytes
from dmtd_demo.backbone.linears import Kernel, Linear, Several, is_known, together
from dmtd_demo.backbone.norms import FusedNorm
from dmtd_demo.backbone.row_blocks import RowBlockLinear
from dmtd_demo.backbone.tree import Tree

# keys from which on one float32 position on a CPU attends by two products: 3 to 14 % of a whole
# step of `classroom` after 1,024 tokens, nothing after 500
LONG = 512
# up to so many, the query heads of a group stand in line as positions: the mask is as many times as
# large
FEW = 16
# keys and queries that attention on a CPU computes together; what is left over of either is summed
# in another order: keys are filled up by masked ones, queries where fewer than ROWS are left
BLOCK = 32
ROWS = 4
# keys that are read together, and parts in which they are summed: more than one part and fewer than
# two are halved, wherever that is (docs/performance.md, "Lossless below float32")
READ = 512
PART = 192
# lengths after which attention is tried: where BLOCKs, PARTs and READs end
TRIED_AFTER = (24, 182, 249, 376, 506, 696)


@dataclass(frozen=True)
class LayerParts:
    """The linears and norm weights of one layer.

    eps: of every RMSNorm. q_norm, k_norm: weights of the norms over each head, [head size], or None
    (Qwen2).
    """

    index: int
    head_size: int
    eps: float
    q: Linear
    k: Linear
    v: Linear
    o: Linear
    gate: Linear
    up: Linear
    down: Linear
    before_attention: Tensor
    before_mlp: Tensor
    q_norm: Tensor | None
    k_norm: Tensor | None


def can_attend_apart(queries: Tensor, keys: Tensor, mask: Tensor) -> bool:
    """Whether cuDNN takes the positions as a batch over the same keys.

    Shapes as in `GroupedAttention._attention`; mask [q, 1, 1, positions].
    """
    if not queries.is_cuda:
        return False
    keys = keys.expand(queries.shape[0], -1, -1, -1)
    return can_use_cudnn_attention(
        SDPAParams(queries[:, :, None], keys, keys, mask, 0.0, False, True)
    )


def filled(positions: int) -> int:
    """Return how many keys attention reads for so many positions, the masked ones included.

    So many that a key's part of the sum does not depend on how many positions come after it.
    """
    keys = -(-positions // BLOCK) * BLOCK
    over = keys % READ
    return keys + 2 * PART - over if PART < over < 2 * PART else keys


def missing_rows(queries: int) -> int:
    """Return how many rows have to be added to so many queries."""
    over = queries % BLOCK
    return ROWS - over if 0 < over < ROWS else 0


@cached
def attends_in_line(group: int, head_size: int, dtype: torch.dtype) -> bool:
    """Whether attention on this CPU gives a position of 1 to FEW the same result, bit for bit.

    It is tried, after some lengths, since it is the kernels' own affair; over many heads, since a
    sum in another order seldom rounds to another 16 bits.
    """
    generator = torch.Generator().manual_seed(0)
    layer, kv_heads = GroupedAttention(), 24
    layer.head_size, layer.kv_heads, layer.group = head_size, kv_heads, group
    heads = torch.randn(FEW, kv_heads * (group + 2), head_size, generator=generator).to(dtype)
    shape = (2, 1, kv_heads, filled(TRIED_AFTER[-1] + FEW), head_size)
    keys, values = torch.randn(shape, generator=generator).to(dtype)

    def attend(past: int, first: int, stop: int) -> Tensor:
        mask = line_mask(past + first, stop - first, group, heads)
        return layer._attend_in_line(
            heads[first:stop, : kv_heads * group],
            keys[:, :, : mask.shape[1]],
            values[:, :, : mask.shape[1]],
            mask,
        )

    for past in TRIED_AFTER:
        alone = torch.cat([attend(past, at, at + 1) for at in range(FEW)])
        for stop in (2, 3, 5, 7, FEW):
            if not torch.equal(attend(past, 0, stop), alone[:stop]):
                return False
    return True


def line_mask(past: int, positions: int, group: int, like: Tensor) -> Tensor:
    """Return the mask of positions that attend in line, of the dtype and device of `like`.

    [1, keys] for one position, else [group x positions and what `missing_rows` adds, keys]; keys as
    `filled` says.
    """
    keys = filled(past + positions)
    mask = like.new_full((positions, keys), -torch.inf).triu(past + 1)
    if positions == 1:
        return mask
    more = missing_rows(group * positions)
    return torch.cat([mask] * group + [mask[:1].expand(more, -1)])


def can_fuse(parts: LayerParts) -> bool:
    """Whether the linears are of known kinds, without hooks, on one device and of one dtype.

    None but the three of attention's inputs may have a bias.
    """
    linears = (parts.q, parts.k, parts.v, parts.o, parts.gate, parts.up, parts.down)
    return (
        all(map(is_known, linears))
        and len({(linear.weight.device, linear.weight.dtype) for linear in linears}) == 1
        and parts.o.bias is None
        and parts.gate.bias is None
        and parts.down.bias is None
    )


class GroupedAttention:
    """Attention whose query heads share keys and values in groups.

    by_products: the weights are float32 on a CPU, where one position after many attends by two
    products. in_line: up to FEW positions attend over keys and queries that are filled up, so that
    each has the result, bit for bit, that it has in a pass of its own.
    """

    head_size: int
    kv_heads: int
    group: int
    by_products: bool
    in_line = False

    def _attention(
        self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None
    ) -> Tensor:
        """Attend, and return [q, heads x head size].

        queries [q, heads, head size]; keys, values [1, kv heads, past + q, head size]; mask as in
        `FusedLayer`.
        """
        positions = queries.shape[0]
        if positions > FEW:
            return self._attend_many(queries, keys, values, mask)
        if self.in_line and mask is not None:
            return self._attend_in_line(queries, keys, values, mask)
        # a batch over the same keys: cuDNN then divides those among its blocks
        if mask is not None and mask.dim() == 4:
            keys, values = keys.expand(positions, -1, -1, -1), values.expand(positions, -1, -1, -1)
            return torch.ops.aten._scaled_dot_product_cudnn_attention(
                queries[:, :, None], keys, values, mask, False
            )[0].reshape(positions, -1)
        if positions > 1 and queries.dtype != torch.float32 and not queries.is_cuda:
            return self._attend_in_turn(queries, keys, values)
        # the query heads of a group share their keys: they stand in line as positions,
        # [1, kv heads, group x q, head size]
        queries = queries.view(positions, self.kv_heads, self.group, self.head_size)
        if positions == 1 and mask is None and self.by_products and keys.shape[2] >= LONG:
            weights = torch.bmm(queries[0] * self.head_size**-0.5, keys[0].transpose(1, 2)).softmax(
                -1
            )
            return torch.bmm(weights, values[0]).view(1, -1)
        if positions > 1:
            queries = queries.permute(1, 2, 0, 3).reshape(1, self.kv_heads, -1, self.head_size)
        seen = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        if positions > 1:
            seen = seen.view(self.kv_heads, self.group, positions, self.head_size).permute(
                2, 0, 1, 3
            )
        return seen.reshape(positions, -1)

    def _attend_many(
        self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None
    ) -> Tensor:
        """Attend for more than FEW positions, by keys and values repeated for their groups."""
        keys, values = (
            keys.repeat_interleave(self.group, dim=1),
            values.repeat_interleave(self.group, dim=1),
        )
        seen = F.scaled_dot_product_attention(
            queries.transpose(0, 1)[None], keys, values, attn_mask=mask, is_causal=mask is None
        )
        return seen[0].transpose(0, 1).reshape(queries.shape[0], -1)

    def _attend_in_line(
        self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor
    ) -> Tensor:
        """Attend by one call for all positions. mask: of `line_mask`.

        Behind the queries lie keys and values of the same positions, as `FusedLayer.heads` has
        them.
        """
        positions, size = queries.shape[0], self.head_size
        rows = self.group * positions
        more = missing_rows(rows)
        if positions == 1:
            # rows that are missing are the heads that follow: a copy would take 5 µs more
            queries = queries.as_strided(
                (1, self.kv_heads, rows + more, size), (size, self.group * size, size, 1)
            )
        else:
            queries = queries.view(positions, self.kv_heads, self.group, size)
            queries = queries.permute(1, 2, 0, 3).reshape(1, self.kv_heads, rows, size)
            if more:
                queries = F.pad(queries, (0, 0, 0, more))
        seen = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        if more:
            seen = seen[:, :, :rows]
        if positions > 1:
            seen = seen.reshape(self.kv_heads, self.group, positions, size).permute(2, 0, 1, 3)
        return seen.reshape(positions, -1)

    def _attend_branches(self, queries: Tensor, keys: Tensor, values: Tensor, tree: Tree) -> Tensor:
        """Attend for the last places of a tree, each over the trunk and its own branch.

        Shapes as in `_attention`; keys and values are those of the trunk and of the tree, and what
        `filled` adds to them. In 16 bits on a CPU one place after another, its branch laid behind
        the trunk meanwhile, so that it has the result, bit for bit, of a pass of its own.
        """
        positions, trunk, held = queries.shape[0], tree.trunk, len(tree.parents)
        if queries.dtype == torch.float32 or queries.is_cuda:
            mask = F.pad(tree.sees[-positions:].to(queries), (trunk, 0))
            held_keys, held_values = (x[:, :, : trunk + held] for x in (keys, values))
            return self._attend_many(queries, held_keys, held_values, mask)
        behind = slice(trunk, trunk + held)
        own_keys, own_values = keys[:, :, behind].clone(), values[:, :, behind].clone()
        seen = []
        for i, place in enumerate(range(held - positions, held)):
            branch = tree.branch(place)
            length = trunk + len(branch)
            keys[:, :, trunk:length] = own_keys[:, :, branch]
            values[:, :, trunk:length] = own_values[:, :, branch]
            if self.in_line:
                mask = line_mask(length - 1, 1, self.group, queries)
                window = mask.shape[1]
                one = queries[i : i + 1]
                rows = self._attend_in_line(one, keys[:, :, :window], values[:, :, :window], mask)
            else:
                rows = self._attention(
                    queries[i : i + 1], keys[:, :, :length], values[:, :, :length], None
                )
            seen.append(rows)
        keys[:, :, behind], values[:, :, behind] = own_keys, own_values
        return torch.cat(seen)

    def _attend_in_turn(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attend for positions one after another, in 16 bits on a CPU that cannot do so in line.

        Each has the result then, bit for bit, that it has in a pass of its own, so that verified
        drafts are `ar`'s own choices.
        """
        positions = queries.shape[0]
        past = keys.shape[2] - positions
        return torch.cat(
            [
                self._attention(
                    queries[at : at + 1],
                    keys[:, :, : past + at + 1],
                    values[:, :, : past + at + 1],
                    None,
                )
                for at in range(positions)
            ]
        )


class FusedLayer(GroupedAttention):
    """The function of transformers' decoder layer, over the new positions of one text."""

    @torch.no_grad()
    def __init__(self, parts: LayerParts) -> None:
        self.index, self.head_size = parts.index, parts.head_size
        self.query_heads = parts.q.out_features // parts.head_size
        self.kv_heads = parts.k.out_features // parts.head_size
        self.rotated_heads = self.query_heads + self.kv_heads
        self.group = self.query_heads // self.kv_heads
        self.qkv, self.o, self.gate_up, self.down = (
            together(parts.q, parts.k, parts.v),
            together(parts.o),
            together(parts.gate, parts.up, gated=True),
            together(parts.down),
        )
        self.products = (self.qkv, self.o, self.gate_up, self.down)
        self.before_attention, self.before_mlp = (
            FusedNorm(parts.before_attention, parts.eps),
            FusedNorm(parts.before_mlp, parts.eps),
        )
        self.by_products = (
            parts.q.weight.dtype == torch.float32 and parts.q.weight.device.type == "cpu"
        )
        dtype, device = parts.before_attention.dtype, parts.before_attention.device
        self.in_line = (
            device.type == "cpu"
            and dtype != torch.float32
            # products of bitsandbytes round by what is beside a position as it is
            and not isinstance(self.o, Several)
            # one query head and its key and value are fewer than ROWS
            and self.kv_heads * (self.group + 2) >= ROWS
            and attends_in_line(self.group, self.head_size, dtype)
        )
        self.qk_norm = None
        # one weight for each head's norm, queries first, [heads, head size]
        if parts.q_norm is not None and parts.k_norm is not None:
            self.qk_norm = FusedNorm(
                torch.cat(
                    [
                        parts.q_norm.expand(self.query_heads, -1),
                        parts.k_norm.expand(self.kv_heads, -1),
                    ]
                ),
                parts.eps,
            )
        linears = [
            product.linear
            for product in self.products
            if isinstance(product, Kernel) and isinstance(product.linear, (ByBytes, RowBlockLinear))
        ]
        self.whole = (
            WholeLayer(
                linears,
                (self.before_attention, self.before_mlp, self.qk_norm),
                self.rotated_heads + self.kv_heads,
                self.rotated_heads,
                self.head_size,
            )
            if len(linears) == len(self.products) and takes_heads(self.head_size)
            else None
        )
        self.alone = None if self.whole is None else WholeLayers([self.whole], self.index)

    def __call__(
        self,
        h: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor | None,
        cache: KVCache | PlacedEntries,
        tree: Tree | None = None,
    ) -> Tensor:
        """Run the layer over h [q, hidden], and append keys and values to the cache.

        cos, sin: [q, 1, head size], sin with its first half negated. mask, -inf where not seen:
        [group x q, past + q] up to FEW, then [q, past + q]; [q, 1, 1, past + q] where
        positions attend apart (`can_attend_apart`); as `line_mask` gives it up to FEW where they
        attend in line; else None for one position, where nothing came before them, or where all
        layers are the kernel's calls (`WholeLayers`). tree: the last places of which the positions
        are; no mask then.
        """
        if isinstance(cache, PlacedEntries) and cache.kernels is not None:
            return self._by_kernels(h, cos, sin, mask, cache, cache.kernels)
        if self.alone is not None and h.shape[0] <= FEW and isinstance(cache, KVCache):
            return self.alone(h, cos, sin, cache, tree)
        heads = self.heads(h, cos, sin)
        new = heads[:, self.query_heads :]
        if tree is not None:
            window = filled(tree.trunk + len(tree.parents)) if self.in_line else 0
            keys, values = cache.append(new, self.index, window)
            queries = heads[:, : self.query_heads]
            return self.rest(h, self._attend_branches(queries, keys, values, tree))
        if self.in_line and mask is not None and h.shape[0] <= FEW:
            keys, values = cache.append(new, self.index, mask.shape[1])
        else:
            keys, values = cache.append(new, self.index)
        return self.rest(h, self._attention(heads[:, : self.query_heads], keys, values, mask))

    def heads(self, h: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Return queries and keys, rotated, and values of h [q, hidden]: [q, heads, head size]."""
        if self.whole is not None:
            return self.whole.heads(h, cos, sin)
        heads = self.qkv(self.before_attention(h)).view(h.shape[0], -1, self.head_size)
        rotated = heads[:, : self.rotated_heads]
        qk = rotated if self.qk_norm is None else self.qk_norm(rotated)
        # the halves of each head exchanged
        turned = qk.roll(self.head_size // 2, -1).mul_(sin)
        # in place, so that keys and values lie side by side
        torch.addcmul(turned, qk, cos, out=rotated)
        return heads

    def rest(self, h: Tensor, seen: Tensor) -> Tensor:
        """Run the layer from what its attention saw, [q, heads x head size], to its output."""
        if self.whole is not None:
            return self.whole.rest(h, seen)
        h = self.o.add_to(h, seen)
        inner = self.gate_up(self.before_mlp(h))
        if not self.gate_up.gated:
            gate, up = inner.chunk(2, dim=-1)
            inner = F.silu(gate).mul_(up)
        return self.down.add_to(h, inner)

    def _by_kernels(
        self,
        h: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor | None,
        cache: PlacedEntries,
        kernels: ModuleType,
    ) -> Tensor:
        """Run the layer with `kernels.py` for all that lies between the products."""
        before, norm, after = self.before_attention, self.qk_norm, self.before_mlp
        heads = self.qkv(kernels.normed(h, before.weight, before.eps)).view(
            h.shape[0], -1, self.head_size
        )
        queries = kernels.rotate(
            heads,
            cos,
            sin,
            norm and norm.weight,
            before.eps,
            self.query_heads,
            cache.entries(self.index),
            cache.at,
        )
        h = self.o.add_to(h, self._attention(queries, *cache.held(self.index), mask))
        inner = self.gate_up(kernels.normed(h, after.weight, after.eps))
        return self.down.add_to(h, inner if self.gate_up.gated else kernels.gated(inner))
