"""The page's own script, which the page and the file that replays a race share."""

from __future__ import annotations

import json

from dmtd_demo.shipped import ASSETS
from dmtd_demo.web.texts import LANGUAGES

ICON = ASSETS / "icon.svg"
# in this order: they share one scope
SCRIPTS = (
    "texts",
    "format",
    "tape",
    "cycle",
    "turns",
    "live",
    "panel",
    "legend",
    "tooltip",
    "figures",
    "charts",
    "table",
    "finish",
    "player",
    "keys",
    "presenter",
    "record",
    "keep",
    "link",
    "reply",
    "branch",
    "room",
    "memory",
    "caution",
    "before",
    "lacking",
    "tour_steps",
    "tour",
    "race",
)


def script() -> str:
    """The scripts in one piece, after the texts that they ask for."""
    texts = json.dumps(LANGUAGES, ensure_ascii=False).replace("<", "\\u003c")
    return f"const TEXTS = {texts};\n" + "\n".join(
        (ASSETS / "race" / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS
    )
