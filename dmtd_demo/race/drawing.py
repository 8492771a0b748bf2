"""A decoder's passes as a picture, drawn from the record of a race.

It shows which layers ran, over how many positions, and which tokens they made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby

from dmtd_demo.backbone.split import Split
from dmtd_demo.race.trace import Record

# as on the page
ORIGIN_COLOURS = {"full": "#0072b2", "late": "#d55e00", "mtp": "#009e73", "draft": "#b3589a"}
ORIGIN_NAMES = {
    "full": "full pass",
    "late": "late layers alone",
    "mtp": "MTP head",
    "draft": "verified draft",
}
# pixels
CELL, LAYER, GAP, LEFT, TOP = 15, 9, 14, 92, 34
# tokens named above one another over a pass
NAMED = 5


def passes_svg(records: Sequence[Record], panel: int, split: Split | None, passes: int = 9) -> str:
    """Draw the first passes of a panel after its prefill as an SVG document.

    Each pass is a block of layers (bottom to top) by positions (left to right), blue where all
    layers ran and orange where the late ones ran alone; positions that it took along are paler than
    its newest one. The tokens that it emitted stand above it in the colour of their origin, the
    first at the bottom.

    Layers of attention are as wide as a position, recurrent ones narrower. A model's own MTP head
    is a layer above the stack, once for each time that it was applied and its draft stood.

    records: of a race, header to summary. split: the checkpoint's, where the panel has none of its
    own.
    """
    header = next(r for r in records if r["type"] == "header")["panels"][panel]
    layers: int = header["layers"]
    if header["options"].get("split"):
        split = Split.parse(header["options"]["split"], layers, "replace")
    steps = [
        r
        for r in records
        if r["type"] == "step"
        and r["panel"] == panel
        and r["passes"]
        and r["passes"][0]["kind"] != "prefill"
    ]
    drawn = [
        (p, step["tokens"] if p is step["passes"][-1] else [])
        for step in steps
        for p in step["passes"]
    ][:passes]
    ground = _Ground(
        layers,
        frozenset(header.get("recurrent", ())),
        native=header["decoder"].startswith("mtp-native"),
    )
    parts: list[str] = []
    x: float = LEFT
    for p, tokens in drawn:
        block, width = _pass(ground, p, tokens, x)
        parts += block
        x += width + GAP
    parts += _groups(ground, split, x)
    legend, end = _legend(ground, [token["origin"] for _, tokens in drawn for token in tokens])
    style = "text{font:13px system-ui,sans-serif}.quiet{font-size:11px;fill:#6b7280}"
    width, height = max(x, end) + 8, ground.floor + 48
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}"><style>{style}</style>'
        f'<rect width="100%" height="100%" fill="#fff" rx="6"/>{"".join(parts + legend)}</svg>\n'
    )


@dataclass(frozen=True)
class _Ground:
    """What passes stand on. layers: of the backbone. native: a layer of the model's own MTP head
    lies above them."""

    layers: int
    recurrent: frozenset[int]
    native: bool

    @property
    def above(self) -> int:
        """Height of the layers, in pixels."""
        return self.layers * LAYER + (LAYER + 4 if self.native else 0)

    @property
    def floor(self) -> int:
        """Where the lowest layer ends, in pixels from the top."""
        return TOP + NAMED * 15 + self.above


def _pass(
    ground: _Ground, p: Record, tokens: Sequence[Record], x: float
) -> tuple[list[str], float]:
    """Draw a pass from x on, with the tokens that it emitted; returns its elements and width."""
    floor, layers = ground.floor, ground.layers
    colour = ORIGIN_COLOURS["late" if p["kind"] == "late" else "full"]
    words = [escape(_visible(token["text"])) for token in tokens[:NAMED]]
    reach = max(positions for _, _, positions in p["runs"])
    width = max(reach * CELL, 28, *(8 * len(word) for word in words), 0)
    centre = x + width / 2
    # the runs of a pass end at the same, newest position: a refill reaches further back
    right = centre + reach * CELL / 2
    parts = []
    for start, stop, positions in p["runs"]:
        for position in range(positions):
            opacity = 1 if position == positions - 1 else 0.55
            parts += [
                _block(right - (positions - position) * CELL, floor, each, colour, opacity)
                for each in _alike(start, stop, ground.recurrent)
            ]
    if ground.native:
        own, drafts = ORIGIN_COLOURS["mtp"], sum(token["origin"] == "mtp" for token in tokens)
        parts += [
            _block(right - (1 - index) * CELL, floor - 4, (layers, layers + 1), own)
            for index in range(drafts)
        ]
        width = max(width, (reach + 2 * drafts) * CELL)
    for row, (token, word) in enumerate(zip(tokens, words)):
        parts.append(
            f'<text x="{centre - 1}" y="{floor - ground.above - 8 - 15 * row}" '
            f'text-anchor="middle" fill="{ORIGIN_COLOURS[token["origin"]]}">{word}</text>'
        )
    parts.append(
        f'<text x="{centre - 1}" y="{floor + 14}" text-anchor="middle" class="quiet">'
        f"{p['kind']}</text>"
    )
    return parts, width


def _groups(ground: _Ground, split: Split | None, end: float) -> list[str]:
    """Name the groups of layers at the left, each above a line that goes on to `end`."""
    floor, layers = ground.floor, ground.layers
    groups = (
        [
            (0, split.early, "early"),
            (split.early, split.late_start, "middle"),
            (split.late_start, layers, "late"),
        ]
        if split
        else [(0, layers, "layers")]
    )
    parts = []
    for start, stop, name in groups:
        if start == stop:
            continue
        middle = floor - (start + stop) / 2 * LAYER + 4
        parts.append(f'<text x="8" y="{middle}" class="quiet">{name} {start}–{stop - 1}</text>')
        parts.append(
            f'<line x1="{LEFT - 8}" x2="{end}" y1="{floor - start * LAYER}" '
            f'y2="{floor - start * LAYER}" stroke="#8a919e" stroke-opacity="0.4"/>'
        )
    return parts


def _legend(ground: _Ground, origins: Sequence[str]) -> tuple[list[str], int]:
    """Say what the colours of these origins mean; returns the elements, and where they end."""
    parts, x = [], LEFT
    for origin in ORIGIN_COLOURS:
        if origin in origins:
            parts.append(
                f'<rect x="{x}" y="{ground.floor + 26}" width="11" height="11" rx="2" '
                f'fill="{ORIGIN_COLOURS[origin]}"/>'
                f'<text x="{x + 16}" y="{ground.floor + 36}" class="quiet">'
                f"{ORIGIN_NAMES[origin]}</text>"
            )
            x += 36 + 7 * len(ORIGIN_NAMES[origin])
    return parts, x


def _alike(start: int, stop: int, recurrent: frozenset[int]) -> Iterator[tuple[int, int, int]]:
    """Split layers [start, stop) into runs of one kind.

    Yields the bounds of each, and by how much it is drawn narrower.
    """
    for is_one, run in groupby(range(start, stop), recurrent.__contains__):
        each = list(run)
        # each recurrent layer apart, so that one sees how many there are
        yield from ((i, i + 1, 3) for i in each) if is_one else [(each[0], each[-1] + 1, 0)]


def _block(x: float, floor: float, layers: tuple[int, ...], colour: str, opacity: float = 1) -> str:
    start, stop, inset = (*layers, 0)[:3]
    return (
        f'<rect x="{x + inset}" y="{floor - stop * LAYER}" width="{CELL - 2 - 2 * inset}" '
        f'height="{(stop - start) * LAYER - 1}" rx="2" fill="{colour}" fill-opacity="{opacity}"/>'
    )


def _visible(text: str) -> str:
    """Show white space by its signs, and nothing that an XML document cannot hold.

    The end mark, and a piece held back, is ∎.
    """
    text = text.replace("\n", "⏎").strip() or ("␣" if text else "∎")
    return "".join(c if c.isprintable() else "·" for c in text)
