"""The page's texts, by key and language: assets/texts, one file per language.

The browser chooses the language, so Python names keys.

What a decoder says of itself and of its options stays in its class, where the command line reads it
too; translations have it as decoder.<name>.label, option.<option>.label and option.<option>.help,
or option.<decoder>.<option>.label where decoders differ. Sentences that the core makes (errors,
what a model lacks, reasons for a placement) are English in every language.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import fields
from html import escape

from dmtd_demo.decoders import DECODERS
from dmtd_demo.shipped import ASSETS

FOLDER = ASSETS / "texts"


def _of_decoders() -> dict[str, str]:
    """Return what the decoders say of themselves and of their options, by key."""
    texts: dict[str, str] = {}
    for name, decoder in DECODERS.items():
        texts[f"decoder.{name}.label"] = decoder.label
        for option in fields(decoder.Options):
            for part in ("label", "help"):
                text = option.metadata[part]
                if texts.setdefault(f"option.{option.name}.{part}", text) != text:
                    texts[f"option.{name}.{option.name}.{part}"] = text
    return texts


LANGUAGES: dict[str, dict[str, str]] = {
    path.stem: json.loads(path.read_text(encoding="utf-8"))
    for path in sorted(FOLDER.glob("*.json"))
}
ENGLISH = LANGUAGES["en"] = _of_decoders() | LANGUAGES["en"]


def option_key(decoder: str, option: str, part: str) -> str:
    """Return the key of an option's label or help."""
    own = f"option.{decoder}.{option}.{part}"
    return own if own in ENGLISH else f"option.{option}.{part}"


def english(key: str, /, **values: object) -> str:
    """Return the English text with the values in its {places}."""
    return filled(ENGLISH[key], values)


def span(key: str, attributes: str = "", /, **values: object) -> str:
    """Return the text as HTML, which assets/race/texts.js translates.

    attributes: further ones of the element. A value made by `slot` goes in as it is.
    """
    slots = {f"{{{name}}}": value for name, value in values.items() if isinstance(value, Slot)}
    plain = {name: str(value) for name, value in values.items() if not isinstance(value, Slot)}
    text = "".join(
        slots.get(part) or escape(filled(part, plain))
        for part in re.split(r"(\{\w+\})", ENGLISH[key])
    )
    data = f' data-values="{escape(json.dumps(plain))}"' if plain else ""
    return f'<span data-t="{key}"{data}{" " + attributes if attributes else ""}>{text}</span>'


class Slot(str):
    """HTML in a place of a text."""


def slot(name: str, html: str) -> Slot:
    """Return HTML for the place {name} of a span."""
    return Slot(f'<span data-slot="{name}">{html}</span>')


def hint(key: str) -> str:
    """Return the attributes of an element that explains itself."""
    return f'data-hint="{escape(ENGLISH[key])}" data-t-hint="{key}"'


def label(key: str) -> str:
    """Return the attributes of an element whose name is not on screen."""
    return f'aria-label="{escape(ENGLISH[key])}" data-t-label="{key}"'


def filled(text: str, values: Mapping[str, object]) -> str:
    """Return the text with each {name} replaced by its value; unknown names stay."""
    return re.sub(r"\{(\w+)\}", lambda place: str(values.get(place[1], place[0])), text)
