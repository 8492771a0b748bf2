"""Add-ons for any Qwen from hidden states that are computed once.

The backbone is frozen, so every update draws from the same (docs/methods.md, section 3).
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Iterator, Sequence

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from dmtd_demo.backbone.qwen import Backbone
from dmtd_demo.backbone.split import Split
from dmtd_demo.errors import UserError
from dmtd_demo.models.addons import (
    OF_HEADS,
    CollocationLengthPredictor,
    LateHeads,
    MTPHeads,
    SpanGate,
    drop_addons,
    save_addon,
)
from dmtd_demo.models.model import Model
from dmtd_demo.progress import Progress as Told
from dmtd_demo.progress import no_progress
from dmtd_demo.training.clp import CAREFUL, OwnHead, length_loss, prefix_length, right_guesses
from dmtd_demo.training.cycles import LATE_K, LONGEST, late_prefix, random_cycles
from dmtd_demo.training.data import IGNORED, Row, collate
from dmtd_demo.training.heads import FALL, K, shifted
from dmtd_demo.training.loop import Lost, Position, Progress, Recipe
from dmtd_demo.training.masking import masked_hidden

# positions of an update; heads read the whole vocabulary at each
DRAWN = {
    "heads": 256,
    "head0": 256,
    "clp": 2048,
    "native_clp": 2048,
    "gate": 2048,
    "adaptive": 2048,
    "mixed": 256,
}
# rows are padded to multiples of this: in bfloat16 on a CPU, each new length costs seconds
LENGTH = 64
# tokens outside the data that an update's softmax has beside those in it
SAMPLED = 2048
METHODS = {
    "heads": "mtp_heads",
    "head0": "head0",
    "clp": "clp",
    "native_clp": "native_clp",
    "gate": "gate",
    "adaptive": "adaptive",
    "mixed": "mixed",
}


@dataclass(frozen=True)
class Features:
    """Hidden states that a decoder reads, h [m, hidden], and what the add-on should say there.

    labels: [m] or [m, k].
    """

    h: Tensor
    labels: Tensor

    @property
    def tokens(self) -> int:
        """How many positions there are."""
        return len(self.h)

    def to(self, device: torch.device) -> Features:
        """Return the positions on this device."""
        return Features(self.h.to(device), self.labels.to(device))

    def piece(self, index: int, of: int) -> Features:
        """Return every `of`-th position, from this index on."""
        return Features(self.h[index::of], self.labels[index::of])

    def draws(self, name: str, seed: int, position: Position) -> Iterator[Features]:
        """Draw positions at random, the same at each step whether or not a run was interrupted."""
        while True:
            generator = torch.Generator().manual_seed(seed * 1_000_003 + position.progress.step)
            chosen = torch.randint(len(self.h), (DRAWN[name],), generator=generator)
            yield Features(self.h[chosen], self.labels[chosen])


@dataclass(frozen=True)
class Source:
    """What hidden states are computed by. heads: the trained ones that clp and gate choose from."""

    backbone: Backbone
    split: Split
    heads: MTPHeads | OwnHead | None = None
    seed: int = 0


@torch.no_grad()
def collect(
    name: str, source: Source, rows: Sequence[Row], room: int, tell: Told = no_progress
) -> Features:
    """Run one pass over each row, until its hidden states fill `room` bytes.

    They are kept on the CPU in the backbone's dtype. Raises UserError where no row has a position
    to learn `name` from.
    """
    backbone, split = source.backbone, source.split
    rng = random.Random(f"cycles:{source.seed}")
    kept: list[tuple[Tensor, Tensor]] = []
    size = 0
    quiet = tell is not no_progress
    bar = tqdm(rows, desc="hidden states", unit="row", dynamic_ncols=True, disable=quiet)
    for number, row in enumerate(bar):
        tell("Hidden states", number, len(rows))
        batch = collate([row], -(-len(row.ids) // LENGTH) * LENGTH, 0).to(backbone.device)
        everywhere = torch.ones_like(batch.ids, dtype=torch.bool)
        h = masked_hidden(backbone, split, batch.ids, everywhere)
        read = (batch.phase >= -1) & (batch.targets != IGNORED)
        if name == "heads":
            labels = torch.stack([shifted(batch.targets, i) for i in range(1, K + 1)], dim=-1)
        elif name == "head0":
            labels = batch.targets[..., None]
        elif name == "adaptive":
            at_head, whole = random_cycles(rng, batch.phase)
            greedy = backbone.logits(h).argmax(-1)
            h = masked_hidden(backbone, split, batch.ids, at_head)
            labels, read = (
                late_prefix(backbone.logits(h).argmax(-1), greedy, batch.targets),
                whole & read,
            )
        elif name == "mixed":
            at_head, _ = random_cycles(rng, batch.phase)
            own = torch.where(batch.targets == IGNORED, IGNORED, backbone.logits(h).argmax(-1))
            h = masked_hidden(backbone, split, batch.ids, at_head)
            labels = torch.stack([shifted(own, i) for i in range(1, LATE_K + 1)], dim=-1)
            read = ~at_head & (batch.targets != IGNORED)
        elif source.heads is None:
            raise ValueError(f"{name} is trained on MTP heads")
        else:
            greedy = backbone.logits(h).argmax(-1)
            if isinstance(source.heads, OwnHead):
                right = source.heads.right(h, batch.ids, batch.targets, greedy)
            else:
                right = right_guesses(backbone, source.heads, h.float(), batch.targets, greedy)
            labels = right if name == "gate" else prefix_length(right)
        kept.append((h[read].cpu(), labels[read].cpu()))
        size += kept[-1][0].numel() * h.element_size()
        if size > room:
            break
    h, labels = (torch.cat(parts) for parts in zip(*kept))
    if not len(h):
        raise UserError(
            f"training {name} needs longer answers: none of the {len(rows)} rows has a position "
            "to learn from"
        )
    return Features(h, labels)


@torch.no_grad()
def confusion(predictor: CollocationLengthPredictor, seen: Features) -> list[list[int]]:
    """Count how often each length was predicted (columns) where each was right (rows), 0..k."""
    n = predictor.k + 1
    said = torch.cat(
        [
            predictor(h.float().to(predictor.linear.weight.device)).argmax(-1).cpu()
            for h in seen.h.split(DRAWN["clp"])
        ]
    )
    return torch.bincount(seen.labels * n + said, minlength=n * n).view(n, n).tolist()


def recipe(
    name: str,
    model: Model,
    seed: int,
    k: int,
    facts: dict[str, object],
    labels: Tensor | None = None,
) -> Recipe[Features]:
    """Return the recipe of an add-on. name: as on the command line.

    facts: what the card says of the data. k: of the MTP heads that clp and gate choose from.
    labels: all that will be learned, whose tokens alone heads then choose from.
    """
    torch.manual_seed(seed)
    backbone = model.backbone
    module, loss, rate = {
        "heads": lambda: _heads(backbone, K, 1, labels),
        "head0": lambda: _heads(backbone, 1, 0, labels),
        "clp": lambda: _lengths(backbone, k),
        "native_clp": lambda: _lengths(backbone, k),
        "gate": lambda: _gate(backbone, k),
        "adaptive": lambda: _lengths(backbone, LONGEST - 1),
        "mixed": lambda: _late_heads(backbone, labels),
    }[name]()
    method = METHODS[name]
    more = facts if isinstance(module, MTPHeads) else {"threshold": CAREFUL, **facts}

    def save(output: Path) -> None:
        heads = module if isinstance(module, MTPHeads) and name == "heads" else None
        others = heads is not None and not _are_there(output, heads)
        save_addon(output / "addons", method, module, model.base, backbone.hidden_size, **more)
        if others:
            leave_behind(output)

    # the others are small, and weigh classes over the whole batch
    counts = (
        (lambda batch: (batch.labels != IGNORED).sum(0)) if isinstance(module, MTPHeads) else None
    )
    return Recipe(
        name,
        module,
        loss,
        save,
        counts,
        learning_rate=rate,
        warm_up=0.05,
        decay=0.8,
        weight_decay=0.01 if name in ("heads", "head0", "gate") else 0.0,
    )


def _are_there(output: Path, heads: MTPHeads) -> bool:
    """Whether a training's folder has these very heads: a run that had ended, asked to go on."""
    path = output / "addons" / f"{METHODS['heads']}.safetensors"
    try:
        was = load_file(path)
    except (OSError, SafetensorError):
        return False
    return all(
        name in was and torch.equal(was[name], t.cpu().to(was[name]))
        for name, t in heads.state_dict().items()
    )


def leave_behind(output: Path) -> None:
    """Take out of a training's folder what learned on MTP heads whose place others took."""
    folder = output / "addons"
    # what was interrupted would go on with labels of other heads
    begun = [output / "checkpoint" / f"{method}.safetensors" for method in OF_HEADS]
    gone = [f"{path.stem}'s checkpoint" for path in begun if path.exists()]
    for path in begun:
        path.unlink(missing_ok=True)
    if gone := [*drop_addons(folder, OF_HEADS), *gone]:
        print(
            f"heads: removed with the MTP heads before, which it knew, from {output}: "
            f"{', '.join(gone)}; train clp and gate again"
        )


Loss = Callable[[Features, Progress], Lost]


def _heads(
    backbone: Backbone, k: int, first: int, labels: Tensor | None
) -> tuple[nn.Module, Loss, float]:
    """Return k heads, their loss and its rate.

    first: the number of the first one: 1 beside the LM head, 0 in its place. labels: see `recipe`.
    """
    module = MTPHeads(backbone.hidden_size, k).to(backbone.device)
    sampled = _Sampled.of(backbone, labels)

    def loss(batch: Features, progress: Progress) -> Lost:
        logits_of = sampled.drawn(progress.step) if sampled else None
        parts, figures, _ = _tokens_loss(backbone, module, batch, sampled, logits_of)
        return torch.stack(parts), {f"acc{first + i}": acc for i, acc in figures.items()}

    return module, loss, 1e-3


def _tokens_loss(
    backbone: Backbone,
    heads: MTPHeads,
    batch: Features,
    sampled: _Sampled | None,
    logits_of: Callable[[Tensor], Tensor] | None,
) -> tuple[list[Tensor], dict[int, float], Tensor]:
    """Return each head's cross-entropy and accuracy, and where it is right, [m, k] bool.

    batch: hidden states, and the tokens that the heads should say, [m, k]; an IGNORED one lies past
    the text's end, where whatever a head says is dropped, and so right.
    """
    states = heads(batch.h.float())
    parts, figures = [], {}
    right = batch.labels == IGNORED
    for i in range(heads.k):
        wanted = batch.labels[:, i]
        known = wanted != IGNORED
        parts.append(states.new_zeros(()))
        if known.any():
            state, of_it = states[known, i], wanted[known]
            if sampled is None or logits_of is None:
                logits = backbone.logits(state).float()
            else:
                logits, of_it = logits_of(state), sampled.number[of_it]
            parts[-1] = FALL**i * F.cross_entropy(logits, of_it)
            hit = logits.argmax(-1) == of_it
            right[known, i] = hit
            figures[i] = hit.float().mean().item()
    return parts, figures, right


def _late_heads(backbone: Backbone, labels: Tensor | None) -> tuple[nn.Module, Loss, float]:
    """Return the heads of `mixed` with their lengths, their loss and its rate.

    The heads learn the model's own next tokens from late hidden states, the lengths how many of
    them the heads know at the time.
    """
    module = LateHeads(backbone.hidden_size, LATE_K).to(backbone.device)
    sampled = _Sampled.of(backbone, labels)

    def loss(batch: Features, progress: Progress) -> Lost:
        logits_of = sampled.drawn(progress.step) if sampled else None
        parts, figures, right = _tokens_loss(backbone, module.heads, batch, sampled, logits_of)
        lengths, seen = length_loss(module.lengths, batch.h.float(), prefix_length(right))
        return torch.stack(parts).sum() + lengths, {
            **seen,
            **{f"acc{1 + i}": acc for i, acc in figures.items()},
        }

    return module, loss, 1e-3


@torch.no_grad()
def late_lengths(backbone: Backbone, module: LateHeads, seen: Features) -> Features:
    """Return the hidden states that `mixed` was collected at, and how many heads are right there.

    Over the whole vocabulary, as the decoder asks.
    """
    right = torch.cat(
        [
            (backbone.logits(module.heads(piece.h.float())).argmax(-1) == piece.labels)
            | (piece.labels == IGNORED)
            for piece in (
                Features(h, labels).to(backbone.device)
                for h, labels in zip(
                    seen.h.split(DRAWN["mixed"]), seen.labels.split(DRAWN["mixed"])
                )
            )
        ]
    )
    return Features(seen.h, prefix_length(right).cpu())


@dataclass(frozen=True)
class _Sampled:
    """A softmax over the tokens of the data and a sample of all others, drawn for each update.

    Its cost is a fraction of the whole one's where the vocabulary is large. The logits of the
    sample are raised by log(others / sample), so that its part of the softmax's sum is, on average,
    that of all others (sampled softmax, Jean et al., arXiv 1412.2007, section 3): tokens that never
    come learn to stay away, as in the whole one. weight: the LM head's, [vocabulary, hidden];
    common: the tokens of the data; others: the rest; number: each common token's place.
    """

    weight: Tensor
    common: Tensor
    others: Tensor
    number: Tensor

    @staticmethod
    def of(backbone: Backbone, labels: Tensor | None) -> _Sampled | None:
        """Return it; None where it would spare little, or the LM head is not a plain matrix."""
        head = backbone.module.get_output_embeddings()
        dense = getattr(head, "dense", None)
        weight = head.weight if type(head) is nn.Linear else dense() if dense else None
        if labels is None or weight is None or head.bias is not None:
            return None
        common = labels[labels != IGNORED].unique().to(weight.device)
        if len(common) + SAMPLED > len(weight) // 2:
            return None
        number = torch.full((len(weight),), -1, device=weight.device)
        number[common] = torch.arange(len(common), device=weight.device)
        others = (number < 0).nonzero()[:, 0]
        return _Sampled(weight.detach().to(backbone.dtype), common, others, number)

    def drawn(self, step: int) -> Callable[[Tensor], Tensor]:
        """Draw the sample of an update; return what computes logits of hidden states with it."""
        generator = torch.Generator().manual_seed(step)
        chosen = torch.randint(len(self.others), (SAMPLED,), generator=generator)
        sample = self.others[chosen.to(self.others.device)]
        weight = self.weight[torch.cat([self.common, sample])]
        raised = math.log(len(self.others) / SAMPLED)

        def logits(states: Tensor) -> Tensor:
            found = F.linear(states.to(weight.dtype), weight).float()
            found[:, len(self.common) :] += raised
            return found

        return logits


def _lengths(backbone: Backbone, k: int) -> tuple[nn.Module, Loss, float]:
    """Return a predictor of lengths 0..k, its loss and its rate."""
    module = CollocationLengthPredictor(backbone.hidden_size, k).to(backbone.device)
    return module, lambda batch, progress: length_loss(module, batch.h.float(), batch.labels), 5e-3


def _gate(backbone: Backbone, k: int) -> tuple[nn.Module, Loss, float]:
    """Return a gate over k heads, its loss and its rate."""
    module = SpanGate(backbone.hidden_size, k).to(backbone.device)

    def loss(batch: Features, progress: Progress) -> Lost:
        logits = module(batch.h.float())
        return F.binary_cross_entropy_with_logits(logits, batch.labels.float()), {
            "acc": ((logits > 0) == batch.labels).float().mean().item()
        }

    return module, loss, 2e-3
