"""A panel in text, `decoder` or `decoder:name=value,name=value`; a value with a comma or colon is quoted."""
from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from typing import Any

from dmtd_demo.decoders.base import Decoder
from dmtd_demo.errors import UserError

RESERVED = ("model",)


@dataclass(frozen=True)
class PanelSpec:
    """decoder: a key of the registry. options: what the user set; the rest are defaults."""
    decoder: str
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        if not self.options:
            return self.decoder
        return self.decoder + ":" + ",".join(f"{name}={_quoted(value)}" for name, value in self.options.items())


def parse_panel(text: str, decoders: dict[str, type[Decoder]]) -> PanelSpec:
    """Read a panel; unknown decoders and options name the choices. Values are checked by type here, against the model later."""
    name, _, rest = text.strip().partition(":")
    if name not in decoders:
        raise UserError(f"a panel needs one of the decoders {', '.join(decoders)}; got {name!r}")
    pairs: list[tuple[str, str]] = []
    if rest:
        for part in _split_commas(rest):
            key, equals, value = part.partition("=")
            if not equals or not key.strip():
                raise UserError(f"a panel's options need the form name=value; got {part!r} in {text!r}")
            pairs.append((key.strip(), _unquoted(value.strip())))
    return make_panel(name, pairs, decoders)


def make_panel(name: str, pairs: list[tuple[str, str]], decoders: dict[str, type[Decoder]]) -> PanelSpec:
    """A panel from a decoder's name and options in text."""
    if name not in decoders:
        raise UserError(f"the decoder needs to be one of {', '.join(decoders)}; got {name!r}")
    known = {f.name: f.metadata["kind"] for f in fields(decoders[name].Options)}
    options: dict[str, Any] = {}
    for key, value in pairs:
        if key in RESERVED:
            raise UserError(f"the option {key}= is reserved for panels on another model, which this version does not run; got {key}={value}")
        if key not in known:
            raise UserError(f"{name} has {'the options ' + ', '.join(known) if known else 'no options'}; got {key!r}")
        if '"' in value:
            raise UserError(f"the option {key} cannot hold a double quote; got {value!r}")
        if key in options:
            raise UserError(f"{name}: the option {key} is given twice")
        options[key] = _converted(key, value, known[key])
    decoders[name].Options(**options)   # ranges and choices
    return PanelSpec(name, options)


def _converted(key: str, value: str, kind: type) -> Any:
    try:
        if kind is int and not re.fullmatch(r"[+-]?\d{1,9}", value):
            raise ValueError
        return kind(value)
    except ValueError:
        raise UserError(f"the option {key} needs {'a whole number' if kind is int else 'a number'}; got {value!r}") from None


def _split_commas(text: str) -> list[str]:
    """Split at commas outside double quotes, quotes kept."""
    return re.findall(r'(?:[^,"]|"[^"]*"?)+', text)


def _quoted(value: Any) -> str:
    text = str(value)
    return f'"{text}"' if re.search(r'[,:]', text) else text


def _unquoted(value: str) -> str:
    return value[1:-1] if len(value) >= 2 and value[0] == value[-1] == '"' else value
