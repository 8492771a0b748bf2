"""A comparison as the query of a URL: what a link opens, and what a preset puts on the page.

    ?prompt=Hello&panel=ar&panel=dmtd:tau=4&max-tokens=80&seed=0
    &temperature=0.7&top-k=0&top-p=1&system=Be+brief&thinking=1&speed=watch

Each part may be left out; what is left out stays as the page has it at its start.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import parse_qs, urlencode

from dmtd_demo.errors import UserError
from dmtd_demo.models.chat import can_think, check_text
from dmtd_demo.models.model import Model
from dmtd_demo.race.panels import PANELS, PanelSpec, make_writer, parse_panel
from dmtd_demo.race.remote_server import Remote
from dmtd_demo.sampling import Sampling
from dmtd_demo.server.allowance import FEWEST_PANELS, MOST_PANELS

Number = TypeVar("Number", int, float)
Default = TypeVar("Default", int, float, None)
PARTS = (
    "prompt",
    "panel",
    "max-tokens",
    "seed",
    "temperature",
    "top-k",
    "top-p",
    "system",
    "thinking",
)
# The page's script reads `speed` itself (assets/race/player.js).
SPEEDS = ("watch", "pass", "0.02", "0.1", "1")
KNOWN = (*PARTS, "speed")
# Gradio's own, the hub's for its frames, and what mails and networks add to every link.
FOREIGN = re.compile("__.*|utm_.*|.*clid|view|deep_link|session_hash|logs")


@dataclass(frozen=True)
class LinkedComparison:
    """A comparison that a link asks for; None, or no panels: as the page has it."""

    prompt: str | None
    panels: tuple[PanelSpec, ...]
    max_new_tokens: int | None
    sampling: Sampling
    system: str | None = None
    thinking: bool | None = None


def query(
    prompt: str,
    panels: Sequence[PanelSpec],
    max_new_tokens: int,
    sampling: Sampling,
    system: str = "",
    thinking: bool = False,
) -> str:
    """Return the query that opens this comparison, without its question mark."""
    off = Sampling()
    parts: list[tuple[str, object]] = [
        ("prompt", prompt),
        *(("panel", panel) for panel in panels),
        ("max-tokens", max_new_tokens),
        ("seed", sampling.seed),
    ]
    parts += [
        (name.replace("_", "-"), getattr(sampling, name))
        for name in ("temperature", "top_k", "top_p")
        if getattr(sampling, name) != getattr(off, name)
    ]
    parts += [("system", system)] * bool(system.strip()) + [("thinking", 1)] * thinking
    return urlencode(parts)


def comparison(text: str, model: Model, servers: Collection[str] = ()) -> LinkedComparison | None:
    """Return the comparison that a query asks for; None where it asks for nothing.

    servers: the remote panels that this page has. Raises UserError, also for what this model cannot
    run.
    """
    asked = parse_qs(text, keep_blank_values=True)
    for speed in asked.get("speed", []):
        if speed not in SPEEDS:
            raise UserError(f"a link needs speed to be one of {', '.join(SPEEDS)}; got {speed!r}")
    given = {name: values for name, values in asked.items() if name in PARTS}
    if not given:
        return None
    for name, values in given.items():
        if len(values) > 1 and name != "panel":
            raise UserError(f"a link needs {name} once; got it {len(values)} times")
    panels = tuple(parse_panel(panel) for panel in given.get("panel", []))
    if panels and not FEWEST_PANELS <= len(panels) <= MOST_PANELS:
        raise UserError(f"a link needs {FEWEST_PANELS} to {MOST_PANELS} panels; got {len(panels)}")
    for panel in panels:
        # a link must not make this machine ask others
        if panel.decoder == Remote.name and str(panel) not in servers:
            known = ", ".join(servers) or "none"
            raise UserError(
                f"a link needs remote panels that this page was started with ({known}); got {panel}"
            )
        PANELS[panel.decoder].resolve(make_writer(panel).options, model)
    prompt = given.get("prompt", [None])[0]
    if prompt is not None:
        check_text(prompt)
    sampling = Sampling(
        temperature=_number(given, "temperature", float, 0.0),
        top_k=_number(given, "top-k", int, 0),
        top_p=_number(given, "top-p", float, 1.0),
        seed=_number(given, "seed", int, 0),
    )
    most = _number(given, "max-tokens", int, None)
    if most is not None and most < 1:
        raise UserError(f"a link needs max-tokens of 1 or more; got {most}")
    system = given.get("system", [None])[0]
    if system:
        check_text(system, "the system prompt")
    thinking = _number(given, "thinking", int, None)
    if thinking not in (None, 0, 1):
        raise UserError(f"a link needs thinking to be 0 or 1; got {thinking}")
    if thinking and not can_think(model.tokenizer):
        raise UserError(
            "a link with thinking=1 needs a model whose chat template has a thinking switch; "
            f"{model.name} has none"
        )
    return LinkedComparison(
        prompt, panels, most, sampling, system, None if thinking is None else bool(thinking)
    )


def unknown(text: str) -> list[str]:
    """Return the parameters of a query that nothing here reads, in their order."""
    names = parse_qs(text, keep_blank_values=True)
    return [name for name in names if name not in KNOWN and not FOREIGN.fullmatch(name)]


def _number(
    given: dict[str, list[str]], name: str, kind: Callable[[str], Number], default: Default
) -> Number | Default:
    """Return the number that a query gives a part, or the default. Raises UserError."""
    if name not in given:
        return default
    text = given[name][0]
    try:
        return kind(text)
    except ValueError:
        needed = "a whole number" if kind is int else "a number"
        raise UserError(f"a link needs {needed} for {name}; got {text!r}") from None
