"""Trees of drafts: several candidates for each place, all verified by one pass.

Medusa (arXiv 2401.10774, section 2.1.2) and SpecInfer (arXiv 2305.09781) verify trees; that the
likeliest branches grow, by what the head itself holds its drafts likely, is EAGLE-2's (arXiv
2406.16858).
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Sequence

import torch
from torch import Tensor

from dmtd_demo.backbone.fused import FEW
from dmtd_demo.backbone.tree import Tree
from dmtd_demo.decoders.base import Pass, Step, Token, option
from dmtd_demo.decoders.drafting import Drafting
from dmtd_demo.decoders.native import NativeText
from dmtd_demo.decoders.stack import Stack
from dmtd_demo.errors import UserError
from dmtd_demo.sampling import Choice, not_finite

if TYPE_CHECKING:
    from dmtd_demo.models.model import Model

# candidates that may follow a draft, and drafts of one depth that a head is applied to together
FOLLOWERS, WIDE = 8, 4


def tree_option() -> Any:
    """Declare the option tree of a decoder that verifies drafts: how many one pass verifies."""
    return option(
        0,
        int,
        "tree",
        "how many drafts one pass verifies, several for a place, by the likeliest branches; 0: one "
        "for each place",
        within=(0, FEW - 1, 1),
    )


def check_tree(tree: int, model: Model) -> None:
    """Raise UserError where a tree is asked for and the model has recurrent layers.

    It computes nothing: where a GPU is lent for one call, this runs in the process that forks.
    """
    if tree and model.backbone.hybrid:
        raise UserError(
            f"the option tree needs layers of attention alone; {model.name} has recurrent ones: "
            f"take 0; got {tree}"
        )


@dataclass(frozen=True)
class Node:
    """A drafted token.

    parent: the draft before it; None behind the text. row, entry: the logits that it was chosen by,
    and where in them it is. chance: how probable the head holds it and all before it together.
    ranks: its place, and that of each before it, among those of the same parent.
    """

    id: int
    parent: Node | None
    row: int
    entry: int
    chance: float
    ranks: tuple[int, ...]


@dataclass(frozen=True)
class DraftTree:
    """Drafts to be verified together. parents: for each the place of its parent among them, or -1.
    logits: the rows that they name."""

    nodes: Sequence[Node]
    parents: Sequence[int]
    logits: Tensor

    @classmethod
    def of(cls, nodes: Sequence[Node], logits: Tensor) -> DraftTree:
        """Lay them in order: the likeliest branch first and in one piece."""
        ordered = sorted(nodes, key=lambda node: node.ranks)
        places = {node.ranks: i for i, node in enumerate(ordered)}
        return cls(ordered, [places.get(node.ranks[:-1], -1) for node in ordered], logits)


def _likeliest(nodes: Sequence[Node], size: int) -> list[Node]:
    """Return so many of them; no node comes without its parent, which is at least as likely."""
    return sorted(nodes, key=lambda node: (-node.chance, len(node.ranks)))[:size]


def _followers(
    states: Tensor, parents: Sequence[Node | None], first_row: int, drafting: Drafting
) -> tuple[list[Node], Tensor]:
    """Return the likeliest tokens behind each of these nodes, by a head's states [n, hidden], and
    the logits, [n, …], whose first is row `first_row` of all.

    Raises ModelError where the logits are NaN or infinite.
    """
    logits = drafting.logits(states)
    values, entries = logits.float().log_softmax(-1).topk(min(FOLLOWERS, logits.shape[-1]))
    ids = drafting.ids(entries.flatten()).view_as(entries).tolist()
    found = []
    rows = zip(parents, values.exp().tolist(), entries.tolist(), ids)
    for row, (parent, chances, places, tokens) in enumerate(rows, first_row):
        # NaN comes first
        if not math.isfinite(chances[0]):
            raise not_finite()
        before, ranks = (1.0, ()) if parent is None else (parent.chance, parent.ranks)
        for rank, (chance, entry, token) in enumerate(zip(chances, places, tokens)):
            node = Node(token, parent, row, entry, before * chance, (*ranks, rank))
            found.append(node)
    return found, logits


def tree_of_heads(states: Tensor, size: int, drafting: Drafting) -> DraftTree:
    """Return the likeliest tree of so many drafts of Medusa's heads.

    states: of each head, [k, hidden]. Each guesses its place whatever stands before it, so a
    branch's chance is the product of its drafts'.
    """
    guesses, logits = _followers(states, [None] * len(states), 0, drafting)
    by_depth = [[node for node in guesses if node.row == row] for row in range(len(states))]
    nodes: list[Node] = []
    # ranks of a branch, the likeliest first
    waiting: list[tuple[float, tuple[int, ...], Node | None]] = []
    if by_depth:
        waiting.append((-by_depth[0][0].chance, (0,), None))
    while waiting and len(nodes) < size:
        chance, ranks, parent = heapq.heappop(waiting)
        guess = by_depth[len(ranks) - 1][ranks[-1]]
        node = Node(guess.id, parent, guess.row, guess.entry, -chance, ranks)
        nodes.append(node)
        before = 1.0 if parent is None else parent.chance
        if ranks[-1] + 1 < len(by_depth[len(ranks) - 1]):
            beside = by_depth[len(ranks) - 1][ranks[-1] + 1]
            heapq.heappush(waiting, (-before * beside.chance, (*ranks[:-1], ranks[-1] + 1), parent))
        if len(ranks) < len(by_depth):
            first = by_depth[len(ranks)][0]
            heapq.heappush(waiting, (-node.chance * first.chance, (*ranks, 0), node))
    return DraftTree.of(nodes, logits)


def tree_of_drafts(
    text: NativeText, m: Tensor, k: int, size: int, p_min: float, drafting: Drafting
) -> DraftTree:
    """Return a tree of at most so many drafts, up to k deep, by a head that reads its drafts.

    Depth by depth the head is applied to the WIDE likeliest of those that still belong to the tree,
    all at once. m: the head's state of the text, [1, hidden]. p_min: how likely a draft and all
    before it have to be together. The head's cache holds no more than before.
    """
    trunk = text.cache.length(0)
    nodes: list[Node] = []
    rows: list[Tensor] = []
    first_row = 0
    # of those that the head has read: their places in its cache behind the trunk, by their ranks,
    # and the places of their parents
    places: dict[tuple[int, ...], int] = {}
    places_before: list[int] = []
    alive: list[Node | None] = [None]
    for depth in range(1, k + 1):
        found, logits = _followers(m, alive, first_row, drafting)
        rows.append(logits)
        nodes = _likeliest([*nodes, *(node for node in found if node.chance >= p_min)], size)
        grown = [node for node in nodes if len(node.ranks) == depth][:WIDE]
        if depth == k or not grown:
            break
        for node in grown:
            places_before.append(places.get(node.ranks[:-1], -1))
            places[node.ranks] = len(places)
        drafted_by = m[[node.row - first_row for node in grown]]
        embedded = text.backbone.embed([node.id for node in grown])[0]
        m = text.head.run(drafted_by, embedded, text.cache, Tree(trunk, places_before))
        first_row += len(logits)
        alive = [*grown]
    text.cache.crop(trunk)
    return DraftTree.of(nodes, torch.cat(rows))


def verify_tree(
    stack: Stack, pending: int, tree: DraftTree, drafting: Drafting
) -> tuple[Step, Tensor]:
    """Verify a tree by one full pass over the pending token and its drafts.

    From the pending token on the backbone's own choice is made at each place, and what follows is
    the draft that equals it, as long as there is one. So the text is `ar`'s, drawn text too: the
    backbone draws every token, and drafts only say what may be read along. Returns the step, its
    tokens the drafts that stand, origin `mtp`, and the pass's own next token after them, `full`;
    and the kept positions' states after the final norm, [1 + accepted, hidden].
    """
    trunk, sampler, nodes = stack.length, drafting.sampler, tree.nodes
    branches = Tree(trunk, [-1, *(parent + 1 for parent in tree.parents)])
    ids = [pending, *(node.id for node in nodes)]
    out, runs = stack.full(ids, branches if nodes else None)
    hidden = stack.backbone.final_norm(out[0])
    logits = stack.backbone.logits(hidden)
    place_of = {(node.ranks[:-1], node.id): i for i, node in enumerate(nodes)}
    best = sampler.draw(logits).tolist() if sampler.sampling.temperature == 0 else None
    places: list[int] = [0]
    ranks: tuple[int, ...] = ()
    drawn: list[Choice] = []
    while True:
        row = logits[places[-1] : places[-1] + 1]
        if best is None:
            drawn = sampler.choose(row)
        found = place_of.get((ranks, drawn[0].id if best is None else best[places[-1]]))
        if found is None:
            break
        places.append(found + 1)
        ranks = nodes[found].ranks
    following = (drawn or sampler.choose(row))[0]
    stack.cache.take_branch(trunk, places)
    drafted: list[Choice] = []
    stood = tuple(place - 1 for place in places[1:])
    if stood:
        entries = torch.tensor([nodes[i].entry for i in stood], device=tree.logits.device)
        drafted = drafting.describe(entries, tree.logits[[nodes[i].row for i in stood]])
    tokens = (*(Token.of(draft, "mtp") for draft in drafted), Token.of(following, "full"))
    step = Step(tokens, (Pass("verify", runs),), tree=tuple(tree.parents), stood=stood)
    return step, hidden[places]
