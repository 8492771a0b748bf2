"""A panel in text: `decoder`, or `decoder:name=value,name=value`.

A value with a comma or a colon is quoted.
"""

from __future__ import annotations

import re
from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, cast

from dmtd_demo.decoders import DECODERS, Decoder
from dmtd_demo.errors import UserError
from dmtd_demo.race.remote_server import Remote

Writer = Decoder[Any] | Remote
# what can write a panel, by name
WriterClass = type[Decoder[Any]] | type[Remote]
PANELS: Mapping[str, WriterClass] = ChainMap(
    {Remote.name: Remote}, cast("dict[str, WriterClass]", DECODERS)
)
RESERVED = ("model",)


@dataclass(frozen=True)
class PanelSpec:
    """A panel as the user asks for it.

    decoder: a key of PANELS. options: those that the user set; the others are defaults.
    """

    decoder: str
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        if not self.options:
            return self.decoder
        return (
            self.decoder
            + ":"
            + ",".join(f"{name}={_quoted(value)}" for name, value in self.options.items())
        )


def parse_panel(text: str) -> PanelSpec:
    """Parse `decoder` or `decoder:name=value,name=value`.

    Values are checked by type and range here, against the model later. Raises UserError; for an
    unknown decoder or option it names the choices.
    """
    name, _, rest = text.strip().partition(":")
    if name not in PANELS:
        raise UserError(f"a panel needs one of the decoders {', '.join(PANELS)}; got {name!r}")
    pairs: list[tuple[str, str]] = []
    if rest:
        for part in _split_commas(rest):
            key, equals, value = part.partition("=")
            if not equals or not key.strip():
                raise UserError(
                    f"a panel's options need the form name=value; got {part!r} in {text!r}"
                )
            pairs.append((key.strip(), _unquoted(value.strip())))
    return make_panel(name, pairs)


def make_panel(name: str, pairs: list[tuple[str, str]]) -> PanelSpec:
    """Make a panel from a decoder's name, or `remote`, and its options in text.

    Raises UserError.
    """
    if name not in PANELS:
        raise UserError(f"the decoder needs to be one of {', '.join(PANELS)}; got {name!r}")
    known = {f.name: f.metadata["kind"] for f in fields(PANELS[name].Options)}
    options: dict[str, Any] = {}
    for key, value in pairs:
        if key in RESERVED:
            raise UserError(
                f"the option {key}= is reserved for panels on another model, which this version "
                f"does not run; got {key}={value}"
            )
        if key not in known:
            choices = "the options " + ", ".join(known) if known else "no options"
            raise UserError(f"{name} has {choices}; got {key!r}")
        if '"' in value:
            raise UserError(f"the option {key} cannot hold a double quote; got {value!r}")
        if key in options:
            raise UserError(f"{name}: the option {key} is given twice")
        options[key] = _converted(key, value, known[key])
    # ranges and choices
    PANELS[name].Options(**options)
    return PanelSpec(name, options)


def make_writer(panel: PanelSpec) -> Writer:
    """Make the decoder of a panel, its options not yet resolved, or its server."""
    cls = PANELS[panel.decoder]
    return cls(cls.Options(**panel.options))


def make_decoder(panel: PanelSpec) -> Decoder[Any]:
    """Make the decoder of a panel, its options not yet resolved against a model.

    Raises UserError for a server: its panel has no decoder.
    """
    if panel.decoder == Remote.name:
        raise UserError(f"a decoder of this machine is needed, {', '.join(DECODERS)}; got {panel}")
    cls = DECODERS[panel.decoder]
    return cls(cls.Options(**panel.options))


def _converted(key: str, value: str, kind: type) -> Any:
    try:
        if kind is int and not re.fullmatch(r"[+-]?\d{1,9}", value):
            raise ValueError
        return kind(value)
    except ValueError:
        needed = "a whole number" if kind is int else "a number"
        raise UserError(f"the option {key} needs {needed}; got {value!r}") from None


def _split_commas(text: str) -> list[str]:
    """Split at commas outside double quotes, quotes kept."""
    return re.findall(r'(?:[^,"]|"[^"]*"?)+', text)


def _quoted(value: Any) -> str:
    text = str(value)
    return f'"{text}"' if re.search(r"[,:]", text) else text


def _unquoted(value: str) -> str:
    return value[1:-1] if len(value) >= 2 and value[0] == value[-1] == '"' else value
