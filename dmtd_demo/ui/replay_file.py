"""The HTML file that replays a race: the page's own script and stylesheet inlined, and a place for the record. It needs no network, no server and no model.

The race goes in as JSON in a block that no browser runs, and the policy lets only the two inlined blocks work, by their hashes: whatever a model wrote stays text.
"""
from __future__ import annotations

import base64
import hashlib

from dmtd_demo.ui.assets import STYLE, script
from dmtd_demo.ui.texts import english, label, span

HOLE = "{{RECORD}}"   # as in assets/race/keep.js

START = """
document.documentElement.classList.toggle("dark", matchMedia("(prefers-color-scheme: dark)").matches);
document.querySelector("#theme-switch").addEventListener("click", () => document.documentElement.classList.toggle("dark"));
const element = document.querySelector("main"), watch = () => {};
const given = { ...JSON.parse(document.querySelector("#record").textContent), hints: {}, plotly: "", template: "" }, props = given;
"""

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'sha256-{script_hash}'; style-src 'sha256-{style_hash}'; img-src data:; base-uri 'none'; form-action 'none'">
<title>{title}</title><style>{style}</style></head>
<body class="replay-file"><header class="page-head"><h1>{name}</h1><p id="about"></p>
<div class="switches"><button id="theme-switch" type="button" {theme}>◐</button></div></header>
<main><section class="race" data-status="idle"></section></main>
<script type="application/json" id="record">{hole}</script>
<script>{script}</script></body></html>
"""


def template() -> str:
    """The file with HOLE where the race goes, as JSON with every < escaped."""
    code = f"(() => {{{START}{script()}\n}})();"
    style = STYLE.read_text(encoding="utf-8")
    for text in (code, style):
        if "</s" in text.lower() or "<!--" in text:
            raise ValueError("what is inlined in the replay file must not hold the end of its own block")
    return PAGE.format(script_hash=_hash(code), style_hash=_hash(style), style=style, script=code, hole=HOLE, title=english("replay.title"), name=span("page.title"), theme=label("page.theme"))


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
