"""A thin view over transformers' own Qwen2, Qwen3 and Qwen3.5 modules.

What depends on transformers' internals lies in this file, in `qwen_modules.py` and in `hybrid.py`;
their modules are called, never patched or copied, so that quantized linears and accelerate's hooks
work as they are. Passes with a cache take the fused layers instead, where there are any.
"""

from __future__ import annotations

import inspect
from functools import cached_property
from typing import Mapping, Sequence, cast

import torch
import transformers
from torch import Tensor, nn

from dmtd_demo.backbone import batched, reading
from dmtd_demo.backbone.adapted import adapted_layer, masked_layer
from dmtd_demo.backbone.avx512 import WholeLayer, WholeLayers, final_norm
from dmtd_demo.backbone.batched import BatchCache
from dmtd_demo.backbone.cache import KVCache
from dmtd_demo.backbone.fused import FEW, FusedLayer, can_fuse, line_mask
from dmtd_demo.backbone.graphs import StaticCache, StaticPasses, triton_kernels
from dmtd_demo.backbone.hybrid import HybridCache, HybridLayer, is_recurrent, layers_of
from dmtd_demo.backbone.linears import Dense, Linear, picked
from dmtd_demo.backbone.norms import CentredNorm, FusedNorm
from dmtd_demo.backbone.qwen_modules import does_not_fit, parts_of
from dmtd_demo.backbone.rope import Rope
from dmtd_demo.backbone.row_blocks import RowBlockLinear
from dmtd_demo.backbone.split import Split
from dmtd_demo.backbone.supported import HYBRID, SILU, check_config
from dmtd_demo.backbone.tree import Tree
from dmtd_demo.errors import UserError
from dmtd_demo.machine import on_zero_gpu

# positions before those by which `alike` is tried
TRIED_AFTER = 20


class Backbone:
    """The Qwen decoder stack of a causal model of transformers: Qwen2, Qwen3 or Qwen3.5.

    Hidden states are [batch, positions, hidden size]; with a cache the batch is 1 and positions
    continue where its layers end. Raises UserError for a model that it cannot run rightly.
    """

    def __init__(self, module: transformers.PreTrainedModel) -> None:
        config = module.config
        check_config(config)
        try:
            inner = module.model
            self._embed, self._layers, self._norm, rotary = (
                inner.embed_tokens,
                list(inner.layers),
                inner.norm,
                inner.rotary_emb,
            )
            self._head = module.lm_head
        except AttributeError as error:
            raise does_not_fit(error) from error
        # transformers 5.24 gave the argument another name, which layers before it would take
        # without a word and ignore
        self._cache_argument = (
            "cache"
            if any(
                "cache" in inspect.signature(layer.forward).parameters for layer in self._layers[:1]
            )
            else "past_key_values"
        )
        self.module = module
        self.config = config
        self.layers: int = len(self._layers)
        self.hidden_size: int = config.hidden_size
        self.vocab_size: int = config.vocab_size
        self.context: int = config.max_position_embeddings
        if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
            # run_layers builds plain causal masks: inside the window the two are the same
            self.context = min(self.context, config.sliding_window)
        # all layers as late-layer-only passes of the split `adapted_to` run them: the late ones
        # differ
        self._adapted: list[nn.Module] = []
        self.adapted_to: Split | None = None
        # set once the layers are fused
        self._fused_norm: FusedNorm | None = None
        # by start, stop and whether the late layers are adapted, the layers that are one call
        self._calls: dict[tuple[int, int, bool], WholeLayers] = {}
        # the LM head without a module's call, where its linear has such a product
        self._head_product = self._head.kernel() if type(self._head) is RowBlockLinear else None
        # by layer, whether it has a recurrent state in place of keys and values
        self.recurrent = [is_recurrent(layer) for layer in self._layers]
        self.hybrid = config.model_type == HYBRID
        self.rope = Rope(rotary, threefold=self.hybrid)
        # short passes over buffers that stay, as CUDA graphs; a GPU that is lent for one call gains
        # nothing
        self.static = self.device.type == "cuda" and not on_zero_gpu() and not self.hybrid

    @property
    def device(self) -> torch.device:
        return self._embed.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the hidden states."""
        return self._embed.weight.dtype

    def adapt(self, split: Split, differences: Sequence[Mapping[str, Tensor]]) -> None:
        """Give this split's late-layer-only passes late layers of their own. Once.

        differences: for each late layer what is added to its linears, by name. Full passes stay as
        they are. Raises UserError.
        """
        assert self.adapted_to is None
        if self.hybrid:
            raise UserError(
                "late layers of their own need layers that are all alike; those of Qwen3.5 are not"
            )
        late = self._layers[split.late_start :]
        adapted = [adapted_layer(*pair) for pair in zip(late, differences, strict=True)]
        self._adapted = [*self._layers[: split.late_start], *adapted]
        self.adapted_to = split

    @property
    def adapted(self) -> nn.ModuleList:
        """The layers that `adapt` made; none where it was not called."""
        start = self.adapted_to.late_start if self.adapted_to else 0
        return nn.ModuleList(self._adapted[start:])

    def linears(self) -> dict[str, nn.Module]:
        """Return the last layer's linears, by name; all layers are alike."""
        return {
            name: part
            for name, part in self._layers[-1].named_modules()
            if hasattr(part, "out_features")
        }

    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """Return out and in of a layer's linears, by name."""
        return {
            name: (cast(Linear, part).out_features, cast(Linear, part).in_features)
            for name, part in self.linears().items()
        }

    def new_cache(self, capacity: int = 256) -> KVCache:
        """Return an empty cache for one text. capacity: positions that it has room for at first."""
        if self.hybrid:
            return HybridCache(self.recurrent, capacity)
        if self.static and self._fused and self._passes.refused is None:
            return self._passes.new_cache()
        return KVCache(self.layers, capacity)

    @cached_property
    def _passes(self) -> StaticPasses:
        return StaticPasses(
            self._fused, lambda window: self.rope.signed(self._embed.weight, 0, window)
        )

    @cached_property
    def alike(self) -> bool:
        """Whether a position is the same, bit for bit, alone and beside up to FEW - 1 others.

        Tried on the first layer, the final norm and the LM head: their kernels are those of all.
        """
        if self.hybrid or not self._fused:
            return False
        ids = [(7 * i + 1) % self.vocab_size for i in range(TRIED_AFTER + FEW)]

        def read(*sizes: int) -> Tensor:
            cache, at = self.new_cache(), 0
            out = []
            for n in (TRIED_AFTER, *sizes):
                h = self.run_layers(self.embed(ids[at : at + n]), 0, 1, cache)
                at += n
                if at > TRIED_AFTER:
                    out.append(self.logits(self.final_norm(h[0])))
            return torch.cat(out)

        with torch.inference_mode():
            alone = read(1, 1, 1, 1, 1)
            return all(torch.equal(read(*n)[:5], alone) for n in ((2, 3), (4, 1), (5,), (FEW,)))

    @property
    def preparing(self) -> float:
        """The seconds that capturing CUDA graphs has taken so far."""
        return self._passes.seconds if "_passes" in self.__dict__ else 0.0

    @torch.inference_mode()
    def prepare(self, runs: Sequence[tuple[int, int, int]]) -> str | None:
        """Capture the CUDA graphs of these passes before anybody waits for them.

        runs: (start, stop, positions) of each; other passes come with the first of their kind.
        Returns what came of it, for the model's reasons; None where there are none to be had.
        """
        if self.hybrid and self.device.type == "cuda":
            return (
                "no CUDA graphs: they need buffers that stay, and recurrent layers make new states"
            )
        if not isinstance(self.new_cache(), StaticCache):
            return None
        runs = [run for run in runs if run[0] < run[1]]
        for start, stop, q in runs:
            self.run_layers(self.embed([0] * q), start, stop, self.new_cache())
            if self.adapted_to and (start, q) == (self.adapted_to.late_start, 1):
                self.run_layers(self.embed([0]), start, stop, self.new_cache(), adapted=True)
        if self._passes.refused is not None:
            return f"no CUDA graphs: {self._passes.refused}"
        _, without = triton_kernels(self.device)
        return (
            f"CUDA graphs of {len(runs)} kinds of pass, captured in {self.preparing:.1f} s; others "
            "come with the first of their kind"
            + (f"; slower without Triton's kernels ({without})" if without else "")
        )

    def read_ahead(self) -> str | None:
        """Let dense products read their matrices first, where a measurement finds it faster.

        Returns what it found, for the model's reasons; None where there was nothing to measure.
        """
        if self.hybrid or self.device.type != "cpu":
            return None
        cache = self.new_cache()

        def step() -> Tensor:
            return self.logits(
                self.final_norm(self.run_layers(self.embed([0]), 0, self.layers, cache))
            )

        products = [product for layer in self._fused for product in layer.products]
        return reading.choose([each for each in products if isinstance(each, Dense)], step)

    def embed(self, ids: Tensor | list[int]) -> Tensor:
        """Return the embeddings of token ids, a list or [batch, positions]."""
        if not isinstance(ids, Tensor):
            # no ids that a device would have to wait for
            if len(ids) <= FEW and self._fused_norm is not None:
                rows = [self._embed.weight[i : i + 1] for i in ids]
                return (rows[0] if len(rows) == 1 else torch.cat(rows))[None]
            ids = torch.tensor([ids], dtype=torch.long, device=self.device)
        return self._embed(ids)

    def run_layers(
        self,
        h: Tensor,
        start: int,
        stop: int,
        cache: KVCache | None = None,
        *,
        adapted: bool = False,
        at_head: Tensor | None = None,
    ) -> Tensor:
        """Run layers [start, stop) over h, [batch, q, hidden], causally.

        The positions come after what these layers hold in the cache; without one they are 0 .. q-1,
        the whole text. The final norm is not included. adapted: by the late layers that `adapt`
        made. at_head, without a cache: [batch, q] bool, by those except at these positions.
        """
        if start >= stop:
            return h
        q = h.shape[1]
        # transformers' own recurrent layers are many times slower without packages of their own
        if cache is None and self.hybrid and len(h) == 1 and not torch.is_grad_enabled():
            cache = self.new_cache(q)
        past = 0 if cache is None else cache.length(start)
        if isinstance(cache, HybridCache):
            return self._run_hybrid(h, start, stop, past, cache)
        if cache is not None and not torch.is_grad_enabled() and self._fused:
            return self._run_fused(h, start, stop, cache, adapted)
        position_embeddings = self.rope.span(h, past, past + q)
        # one position sees everything; with nothing before it transformers' SDPA is causal by
        # itself
        mask = None
        if q > 1 and past:
            mask = torch.ones((q, past + q), dtype=torch.bool, device=h.device).tril(past)[
                None, None
            ]
        layers = (self._adapted if adapted else self._layers)[start:stop]
        if at_head is not None:
            pairs = zip(layers, self._adapted[start:stop], strict=True)
            layers = [
                own if own is other else masked_layer(own, other, at_head) for own, other in pairs
            ]
        try:
            for layer in layers:
                h = layer(
                    h,
                    attention_mask=mask,
                    position_embeddings=position_embeddings,
                    **{self._cache_argument: cache},
                )
        except (TypeError, AttributeError) as error:
            raise does_not_fit(error) from error
        return h.to(self.device)  # where the layers lie on several devices

    def run_tree(self, h: Tensor, start: int, stop: int, cache: KVCache, tree: Tree) -> Tensor:
        """Run layers [start, stop) over the last places of a tree, as `run_layers` with a cache.

        Without gradients. Raises UserError where the layers run as transformers' own modules.
        """
        if self.hybrid or not self._fused:
            raise UserError(
                "a tree of drafts needs layers that the app runs by itself; those of this model "
                "run as transformers' own modules: take tree=0"
            )
        return h if start >= stop else self._run_fused(h, start, stop, cache, False, tree)

    def _run_fused(
        self,
        h: Tensor,
        start: int,
        stop: int,
        cache: KVCache,
        adapted: bool,
        tree: Tree | None = None,
    ) -> Tensor:
        past, q = cache.length(start), h.shape[1]
        fused = self._fused_adapted if adapted else self._fused
        all_of_tree = tree is None or len(tree.parents) == q
        if isinstance(cache, StaticCache) and q <= FEW and all_of_tree:
            out = self._passes.run(h[0], start, stop, cache, fused if adapted else None, tree)
            if out is not None:
                return out[None]
        cos, sin, mask = self.attending(h, past, q, tree)
        h = h[0]
        if q <= FEW and self._whole:
            return self._call(start, stop, adapted)(h, cos, sin, cache, tree)[None]
        for layer in fused[start:stop]:
            h = layer(h, cos, sin, mask, cache, tree)
        return h[None]

    def _call(self, start: int, stop: int, adapted: bool) -> WholeLayers:
        """Return the layers [start, stop), all of which are the kernel's, as one call."""
        call = self._calls.get((start, stop, adapted))
        if call is None:
            fused = self._fused_adapted if adapted else self._fused
            wholes = [cast(WholeLayer, layer.whole) for layer in fused[start:stop]]
            call = self._calls[start, stop, adapted] = WholeLayers(wholes, start)
        return call

    def _run_hybrid(
        self, h: Tensor, start: int, stop: int, past: int, cache: HybridCache
    ) -> Tensor:
        cos, sin, mask = self.attending(h, past, h.shape[1])
        h = h[0]
        for layer in self._hybrid_layers[start:stop]:
            h = layer(h, cos, sin, mask, cache)
        return h[None].to(self.device)

    @property
    def can_batch(self) -> bool:
        """Whether `begin_texts` and `step_texts` have layers to run."""
        return not self.hybrid and bool(self._fused)

    def begin_texts(self, ids: Tensor, cache: BatchCache, rows: Sequence[int]) -> Tensor:
        """Read texts from their first position on, ids [n, q], each into its row of the cache.

        Returns hidden states before the final norm, [n, q, hidden].
        """
        h = self.embed(ids)
        where = torch.tensor(list(rows), device=h.device)
        return batched.begin(self._fused, h, self.rope.signed(h, 0, h.shape[1]), cache, where)

    def step_texts(self, ids: Sequence[int], cache: BatchCache) -> Tensor:
        """Read one more position of every text of the cache: its hidden state, [B, hidden]."""
        h = self._embed(torch.tensor(ids, device=self.device))
        angles = self.rope.signed(h, 0, max(cache.lengths) + 1)
        return batched.step(self._fused, h, angles, cache)

    @cached_property
    def _whole(self) -> bool:
        """Whether every layer takes few positions in one call, and reads no mask."""
        return (
            not self.hybrid
            and bool(self._fused)
            and all(layer.whole is not None for layer in self._fused)
        )

    @property
    def in_line(self) -> bool:
        """Whether the masks of `attending` are those of layers that attend in line."""
        return not self.hybrid and bool(self._fused) and self._fused[0].in_line

    def attending(
        self, h: Tensor, past: int, q: int, tree: Tree | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return cos, sin and mask as `FusedLayer` reads them beside h.

        They are those of q positions after `past` others, or of the last q of a tree.
        """
        if tree is not None:
            places = tree.positions[-q:]
            cos, sin = self.rope.signed(h, 0, max(places) + 1)
            return cos[places], sin[places], None
        cos, sin = self.rope.signed(h, past, past + q)
        mask = None
        if q <= FEW and self._whole:
            return cos, sin, None
        if q <= FEW and self.in_line:
            return cos, sin, line_mask(past, q, self._fused[0].group, h)
        if 1 < q and (past or q <= FEW):
            mask = torch.full((q, past + q), -torch.inf, dtype=h.dtype, device=h.device).triu(
                past + 1
            )
            if q <= FEW:
                group = self.config.num_attention_heads // self.config.num_key_value_heads
                mask = mask.repeat(group, 1)
        return cos, sin, mask

    @cached_property
    def _hybrid_layers(self) -> list[HybridLayer]:
        """Qwen3.5's layers, wherever they lie: transformers' own have no cache to be rewound."""
        with torch.inference_mode(self._embed.weight.is_inference()):
            if not hasattr(self._norm, "_hf_hook"):
                self._fused_norm = CentredNorm(self._norm.weight, self._norm.eps)
            return layers_of(
                self._layers, self.config.num_attention_heads // self.config.num_key_value_heads
            )

    @cached_property
    def _fused(self) -> list[FusedLayer]:
        """The layers of a Qwen2 or Qwen3 in few operations.

        None of them where the linears are of no known kind or lie on several devices, or where the
        MLP's activation is another than SiLU: those run as transformers' own modules.
        """
        if self.config.hidden_act not in SILU:
            return []
        parts = parts_of(0, self._layers)
        # as the parameters are, so that they stay trainable
        with torch.inference_mode(self._embed.weight.is_inference()):
            if not all(can_fuse(p) and p.q.weight.device == self.device for p in parts):
                return []
            self._fused_norm = final_norm(self._norm.weight, self._norm.variance_epsilon)
            return [FusedLayer(p) for p in parts]

    @cached_property
    def _fused_adapted(self) -> list[FusedLayer]:
        """All layers in few operations, the late ones being those that `adapt` made."""
        assert self.adapted_to is not None
        start = self.adapted_to.late_start
        with torch.inference_mode(self._embed.weight.is_inference()):
            late = [FusedLayer(p) for p in parts_of(start, self._adapted[start:])]
        return [*self._fused[:start], *late]

    def compile_layers(self) -> None:
        """Compile each layer by torch.compile, for training on a few fixed shapes.

        The layers share what is compiled for a shape.
        """
        torch._dynamo.config.recompile_limit = 64
        for layer in self._layers:
            layer.compile(dynamic=False)

    def weight_bytes(self) -> tuple[list[int], int]:
        """Return the bytes of the weights of each layer, and of the LM head, as they are held."""

        def held(module: nn.Module) -> int:
            return sum(
                p.numel() * p.element_size() for p in (*module.parameters(), *module.buffers())
            )

        return [held(layer) for layer in self._layers], held(self._head)

    def final_norm(self, h: Tensor) -> Tensor:
        """Return the last hidden state, as the LM head, MTP heads and predictors read it."""
        if self._fused_norm is not None and not torch.is_grad_enabled():
            return self._fused_norm(h)
        return self._norm(h).to(self.device)

    def logits(self, normed: Tensor) -> Tensor:
        """Run the LM head over hidden states after the final norm, [..., hidden].

        Returns [..., vocabulary].
        """
        if self._head_product is not None and not torch.is_grad_enabled():
            return self._head_product(normed.to(self.dtype))
        return self._head(normed.to(self.dtype)).to(self.device)

    def head_of(self, ids: Tensor) -> nn.Module | None:
        """Return the LM head's rows of these tokens [n] alone, as they are held; None where it
        cannot be divided, or lies on no CPU."""
        return picked(self._head, ids)
