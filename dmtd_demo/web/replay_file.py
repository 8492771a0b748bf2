"""The HTML file that replays a race, and its kin, the page that shows a lecture's race live.

The page's own script and stylesheet are inlined, with a place for the record: the file needs no
network, no server and no model. The live page belongs to server/lecture.py.

The race goes in as JSON in a block that no browser runs, and the policy lets only the two inlined
blocks work, by their hashes: whatever a model wrote stays text.
"""

from __future__ import annotations

import base64
import hashlib

from dmtd_demo.web.files import ASSETS, script
from dmtd_demo.web.stylesheet import style
from dmtd_demo.web.texts import english, label, span

HOLE = "{{RECORD}}"  # as in assets/race/keep.js

THEME = """
const look = document.documentElement.classList;
look.toggle("dark", matchMedia("(prefers-color-scheme: dark)").matches);
document.querySelector("#theme-switch").addEventListener("click", () => look.toggle("dark"));
"""

START = (
    THEME
    + """
const element = document.querySelector("main"), watch = () => {};
const record = JSON.parse(document.querySelector("#record").textContent);
const given = { ...record, hints: {}, plotly: "", template: "" }, props = given;
"""
)

LIVE_START = (
    THEME
    + """
let changed = () => {};
const element = document.querySelector("main"), watch = (_, then) => { changed = then; };
const given = { hints: {}, plotly: "", pictures: [], template: "" }, props = { value: "" };
"""
)

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; \
script-src 'sha256-{script_hash}'; style-src 'sha256-{style_hash}'; img-src data:; \
{connect}base-uri 'none'; form-action 'none'">
<title>{title}</title><style>{style}</style></head>
<body class="replay-file"><header class="page-head"><h1>{name}</h1><p id="about"></p>
{links}<div class="switches">\
<button id="theme-switch" type="button" {theme}>◐</button></div></header>
<main><section class="race" data-status="idle"></section></main>
{record}<script>{script}</script></body></html>
"""
RECORD = f'<script type="application/json" id="record">{HOLE}</script>\n'

PLAIN = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; \
style-src 'sha256-{style_hash}'; base-uri 'none'; form-action 'none'">
<title>{title}</title><style>{style}</style></head>
<body class="replay-file">{body}</body></html>
"""


def template() -> str:
    """Return the file with HOLE where the race goes, as JSON with every < escaped."""
    return _page(f"{START}{script()}\n", record=RECORD)


def live(links: str) -> str:
    """Return the page that listens to /class/events. links: HTML at its head."""
    return _page(
        f"{LIVE_START}{script()}\n{(ASSETS / 'race' / 'lecture.js').read_text(encoding='utf-8')}",
        connect="connect-src 'self'; ",
        links=links,
    )


def plain(body: str) -> str:
    """Return a page of this HTML alone, without scripts."""
    look = style()
    return PLAIN.format(style_hash=_hash(look), style=look, title=english("page.title"), body=body)


def _page(code: str, record: str = "", connect: str = "", links: str = "") -> str:
    """Return the page that runs `code`. connect: a further directive of its policy."""
    code = f"(() => {{{code}}})();"
    look = style()
    for text in (code, look):
        if "</s" in text.lower() or "<!--" in text:
            raise ValueError(
                "what is inlined in the replay file must not hold the end of its own block"
            )
    return PAGE.format(
        script_hash=_hash(code),
        style_hash=_hash(look),
        style=look,
        script=code,
        record=record,
        connect=connect,
        links=links,
        title=english("replay.title"),
        name=span("page.title"),
        theme=label("page.theme"),
    )


def _hash(text: str) -> str:
    """Return the SHA-256 of what is inlined, as a Content-Security-Policy names it."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
