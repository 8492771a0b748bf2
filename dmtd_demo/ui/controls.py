"""The controls of one panel: its decoder, and that decoder's own options, built from the decoder's Options dataclass.

Every option of any decoder has its component from the start; choosing a decoder shows its own and hides the rest. So the inputs of
the Run button stay the same components whatever is chosen.
"""
from __future__ import annotations

from dataclasses import Field, fields
from typing import Any

import gradio as gr

from dmtd_demo.decoders import DECODERS, PanelSpec
from dmtd_demo.errors import UserError
from dmtd_demo.loading import Model

MOST_PANELS = 4
FEWEST_PANELS = 2


class OpenNumber(gr.Number):
    """A number field whose range is checked by the core, which answers with a sentence in the race view, not by Gradio."""

    def preprocess(self, payload: float | None) -> float | int | None:
        return int(payload) if isinstance(payload, float) and payload.is_integer() else payload

    def get_block_name(self) -> str:
        return "number"


class OpenSlider(gr.Slider):
    """A slider, likewise."""

    def preprocess(self, payload: float) -> float:
        return payload

    def get_block_name(self) -> str:
        return "slider"


def kind_of(option: Field) -> str:
    """Which component suits an option: a list for choices, a slider for a share of something, a field for the rest."""
    meta = option.metadata
    if meta["choices"]:
        return "choice"
    return {int: "number", float: "slider"}.get(meta["kind"], "text")


def settings_of(option: Field, value: Any) -> dict[str, Any]:
    """What the component of an option shows for one decoder: label, range and default differ between decoders."""
    meta = option.metadata
    return {"label": meta["label"], "value": value} | {name: meta[name] for name in ("minimum", "maximum", "step", "choices") if meta[name] is not None}


COMPONENTS = {"choice": gr.Dropdown, "text": gr.Textbox, "slider": OpenSlider, "number": OpenNumber}


def kinds() -> list[tuple[str, str]]:
    """Every (option name, kind of component) that some decoder has, each once."""
    return list(dict.fromkeys((option.name, kind_of(option)) for decoder in DECODERS.values() for option in fields(decoder.Options)))


def decoder_choices(model: Model) -> list[tuple[str, str]]:
    """What the decoder list shows; one that the model cannot run stays in it, and says so."""
    return [(f"{name} · {decoder.label}" + (" (not with this model)" if decoder.missing(model) else ""), name) for name, decoder in DECODERS.items()]


class PanelControls:
    """The controls of panel `index`, made inside the current layout; hidden where the panel is not in use."""

    def __init__(self, model: Model, index: int, spec: PanelSpec, shown: bool) -> None:
        self.model = model
        self.index = index
        with gr.Column(elem_id=f"panel-{index}-controls", elem_classes="panel-controls", visible=shown, min_width=220) as self.column:
            self.decoder = gr.Dropdown(decoder_choices(model), value=spec.decoder, label=f"Decoder of panel {index + 1}", show_label=False, container=False, elem_id=f"panel-{index}-decoder", filterable=True)
            self.sentence = gr.HTML(elem_classes="cannot", **self._sentence(spec.decoder))
            with gr.Row(elem_classes="decoder-options"):
                self.options = {key: self._component(key, spec) for key in kinds()}
            # The decoder that the options on the page belong to: it changes in one go with them, a moment after the list.
            self.shown_for = gr.Textbox(spec.decoder, visible=False)
        self.decoder.input(self.choose, [self.decoder, self.shown_for], [self.sentence, *self.options.values(), self.shown_for],
                           queue=False, show_progress="hidden", api_visibility="private")

    def _component(self, key: tuple[str, str], spec: PanelSpec) -> gr.components.Component:
        name, kind = key
        settings = self._settings(spec.decoder).get(key)
        if settings is None:
            option = next(f for d in DECODERS.values() for f in fields(d.Options) if (f.name, kind_of(f)) == key)
            settings = settings_of(option, None) | {"visible": False}
        elif name in spec.options:
            settings["value"] = spec.options[name]
        return COMPONENTS[kind](elem_id=f"panel-{self.index}-opt-{name}", elem_classes=f"opt-{kind}", min_width=80, interactive=True, **settings)

    def _settings(self, name: str) -> dict[tuple[str, str], dict[str, Any]]:
        """The settings of the components that a decoder's options need; none where the model cannot run it."""
        decoder = DECODERS[name]
        if decoder.missing(self.model):
            return {}
        defaults = decoder.defaults(self.model)
        return {(option.name, kind_of(option)): settings_of(option, getattr(defaults, option.name)) for option in fields(decoder.Options)}

    def _sentence(self, name: str) -> dict[str, Any]:
        missing = DECODERS[name].missing(self.model)
        return {"value": " ".join(missing), "visible": bool(missing)}

    def choose(self, name: str, shown_for: str) -> list[Any]:
        """The options of another decoder. The keyboard that only passes through the list chooses nothing, and no option is lost."""
        return [gr.skip()] * (len(self.options) + 2) if name == shown_for else self.show_options(name)

    def show_options(self, name: str) -> list[Any]:
        """The options of a newly chosen decoder, at their defaults."""
        settings = self._settings(name)
        updates = [gr.update(visible=True, **settings[key]) if key in settings else gr.update(visible=False) for key in self.options]
        return [gr.update(**self._sentence(name)), *updates, name]

    def show_spec(self, spec: PanelSpec) -> list[Any]:
        """Updates of `inputs` and the sentence that put this panel on the page."""
        sentence, *options, shown_for = self.show_options(spec.decoder)
        for key, update in zip(self.options, options):
            if key[0] in spec.options and update.get("visible"):
                update["value"] = spec.options[key[0]]
        return [spec.decoder, shown_for, *options, sentence]

    @property
    def inputs(self) -> list[gr.components.Component]:
        return [self.decoder, self.shown_for, *self.options.values()]

    def spec(self, values: list[Any]) -> PanelSpec:
        """The panel that these values of `inputs` ask for. An empty field leaves its option to the model's default."""
        name, shown_for, *given = values
        if not isinstance(name, str) or name not in DECODERS:
            raise UserError(f"panel {self.index + 1} needs one of the decoders {', '.join(DECODERS)}; got {name!r}")
        own = {(option.name, kind_of(option)) for option in fields(DECODERS[name].Options)}
        if shown_for != name:
            return PanelSpec(decoder=name, options={})   # the page has not shown this decoder's options yet: nothing was chosen
        chosen = {key[0]: value for key, value in zip(self.options, given) if key in own and value not in (None, "")}
        return PanelSpec(decoder=name, options=self._worth_naming(name, chosen))

    def _worth_naming(self, name: str, chosen: dict[str, Any]) -> dict[str, Any]:
        """The decoder's first option, by which one speaks of it (τ, k), and what differs from the defaults: the panel's name stays short."""
        if DECODERS[name].missing(self.model):
            return chosen
        defaults = DECODERS[name].defaults(self.model)
        first = [option.name for option in fields(defaults)][:1]
        return {option: value for option, value in chosen.items() if option in first or value != getattr(defaults, option)}


def option_hints() -> dict[str, str]:
    """What each option does, for the page's tooltips, by the end of its element id."""
    return {f"opt-{option.name}": option.metadata["help"] for decoder in DECODERS.values() for option in fields(decoder.Options)}
