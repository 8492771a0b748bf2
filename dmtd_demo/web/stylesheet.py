"""The page's own stylesheet, which everything that a browser shows of us shares."""

from __future__ import annotations

from dmtd_demo.shipped import ASSETS

# one file for each component, in this order: where two rules are equally specific the later one
# holds, so what changes a component for another screen stands last
STYLES = tuple(
    ASSETS / "style" / f"{name}.css"
    for name in (
        "colours",
        "page",
        "replay_file",
        "waiting",
        "header",
        "tour",
        "ask",
        "settings",
        "models",
        "training",
        "controls",
        "panel",
        "cycle",
        "live",
        "tokens",
        "player",
        "status",
        "charts",
        "table",
        "tooltip",
        "presenter",
        "screens",
        "lecture",
    )
)


def style() -> str:
    """The stylesheet in one piece."""
    return "\n".join(path.read_text(encoding="utf-8") for path in STYLES)
