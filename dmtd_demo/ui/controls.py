"""The controls of one panel: its decoder, and that decoder's own options.

They are built from the decoder's Options dataclass.

Every option of any decoder has its component from the start; choosing a decoder shows its own and
hides the rest. So the inputs of the Run button stay the same components whatever is chosen.
"""

from __future__ import annotations

from dataclasses import Field, fields
from html import escape
from typing import Any

import gradio as gr

from dmtd_demo.decoders import DECODERS
from dmtd_demo.errors import UserError
from dmtd_demo.measure.availability import TRAINED
from dmtd_demo.models.catalog import CATALOG
from dmtd_demo.models.model import Model
from dmtd_demo.models.residents import Residents
from dmtd_demo.race.panels import PanelSpec
from dmtd_demo.race.remote_server import Remote
from dmtd_demo.ui.i18n import control
from dmtd_demo.web.texts import option_key, span


class OpenNumber(gr.Number):
    """A number field whose range the core checks, not Gradio.

    The core answers with a sentence in the race view.
    """

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


class OpenDropdown(gr.Dropdown):
    """A list whose choices change while the page is open; what it sends is checked by the core."""

    def preprocess(self, payload: Any) -> Any:
        return payload

    def get_block_name(self) -> str:
        return "dropdown"


class OpenRadio(gr.Radio):
    """Buttons of which one is pressed, likewise."""

    def preprocess(self, payload: Any) -> Any:
        return payload

    def get_block_name(self) -> str:
        return "radio"


def kind_of(option: Field) -> str:
    """Return the kind of component that suits an option: a list for choices, a slider for a share
    of something, a field for the rest."""
    meta = option.metadata
    if meta["choices"]:
        return "choice"
    return {int: "number", float: "slider"}.get(meta["kind"], "text")


def settings_of(decoder: str, option: Field, value: Any) -> dict[str, Any]:
    """Return the settings of an option's component for one decoder.

    Label, range and default differ between decoders.
    """
    meta = option.metadata
    return {"label": control(option_key(decoder, option.name, "label")), "value": value} | {
        name: meta[name]
        for name in ("minimum", "maximum", "step", "choices")
        if meta[name] is not None
    }


COMPONENTS = {
    "choice": OpenDropdown,
    "text": gr.Textbox,
    "slider": OpenSlider,
    "number": OpenNumber,
}


def kinds() -> list[tuple[str, str]]:
    """Return every (option name, kind of component) that some decoder has, each once."""
    return list(
        dict.fromkeys(
            (option.name, kind_of(option))
            for decoder in DECODERS.values()
            for option in fields(decoder.Options)
        )
    )


def decoder_choices(model: Model, servers: dict[str, PanelSpec]) -> list[tuple[str, str]]:
    """Return the entries of the decoder list; one that the model cannot run stays in it, and says
    so."""
    # both from the start: control says why
    names = {
        name: (f"decoder.{name}.label", control("decoder.cannot", label=f"decoder.{name}.label"))
        for name in DECODERS
    }
    return [
        (
            f"{name} · " + (names[name][1] if decoder.missing(model) else control(names[name][0])),
            name,
        )
        for name, decoder in DECODERS.items()
    ] + [
        (f"{Remote.name} · {spec.options.get('name') or spec.options['url']}", key)
        for key, spec in servers.items()
    ]


class PanelControls:
    """The controls of panel `index`, made inside the current layout; hidden where the panel is not
    in use."""

    def __init__(
        self,
        models: Residents,
        index: int,
        spec: PanelSpec,
        shown: bool,
        servers: dict[str, PanelSpec],
    ) -> None:
        """servers: the remote panels that may be chosen, each by its text; visitors name none of
        their own."""
        self.models = models
        self.servers = servers
        key = models.keys[0]
        model = models.get(key)
        self.index = index
        with gr.Column(
            elem_id=f"panel-{index}-controls",
            elem_classes="panel-controls",
            visible=shown,
            min_width=0,
        ) as self.column:
            with gr.Row(elem_classes="panel-top"):
                self.decoder = OpenDropdown(
                    decoder_choices(model, servers),
                    value=_choice(spec),
                    label=control("control.decoder", panel=index + 1),
                    show_label=False,
                    container=False,
                    elem_id=f"panel-{index}-decoder",
                    filterable=True,
                    min_width=0,
                )
                self.model = OpenDropdown(
                    [key],
                    value=key,
                    label=control("control.model", panel=index + 1),
                    show_label=False,
                    container=False,
                    elem_id=f"panel-{index}-model",
                    elem_classes="panel-model",
                    visible=False,
                    filterable=False,
                    min_width=0,
                )
            self.sentence = gr.HTML(elem_classes="cannot", **self._sentence(_choice(spec), model))
            with gr.Row(elem_classes="decoder-options"):
                self.options = {key: self._component(key, spec, model) for key in kinds()}
            # The decoder that the options on the page belong to: it changes in one go with them, a
            # moment after the list.
            self.shown_for = gr.Textbox(_choice(spec), visible=False)
        self.decoder.input(
            self.choose,
            [self.decoder, self.shown_for, self.model],
            [self.sentence, *self.options.values(), self.shown_for],
            queue=False,
            show_progress="hidden",
            api_visibility="private",
        )

    def _component(
        self, key: tuple[str, str], spec: PanelSpec, model: Model
    ) -> gr.components.Component:
        name, kind = key
        settings = self._settings(_choice(spec), model).get(key)
        if settings is None:
            decoder, option = next(
                (name, f)
                for name, d in DECODERS.items()
                for f in fields(d.Options)
                if (f.name, kind_of(f)) == key
            )
            settings = settings_of(decoder, option, None) | {"visible": False}
        elif name in spec.options:
            settings["value"] = spec.options[name]
        return COMPONENTS[kind](
            elem_id=f"panel-{self.index}-opt-{name}",
            elem_classes=f"opt-{kind}",
            min_width=0,
            interactive=True,
            **settings,
        )

    def _settings(self, name: str, model: Model) -> dict[tuple[str, str], dict[str, Any]]:
        """Return the settings of the components that a decoder's options need.

        There are none where the model cannot run it, and for a server.
        """
        if name in self.servers:
            return {}
        decoder = DECODERS[name]
        if decoder.missing(model):
            return {}
        defaults = decoder.defaults(model)
        return {
            (option.name, kind_of(option)): settings_of(
                name, option, getattr(defaults, option.name)
            )
            for option in fields(decoder.Options)
        }

    def _sentence(self, name: str, model: Model) -> dict[str, Any]:
        if name in self.servers:
            return {
                "value": span("remote.asked", server=self.servers[name].options["url"]),
                "visible": True,
            }
        missing = DECODERS[name].missing(model)
        value = f"<span>{escape(' '.join(missing))}</span>{help_for(name, model)}"
        return {"value": value, "visible": bool(missing)}

    def choose(self, name: str, shown_for: str, key: Any) -> list[Any]:
        """Show the options of another decoder.

        The keyboard that only passes through the list chooses nothing, and no option is lost; nor
        does a name that is not in it.
        """
        known = isinstance(name, str) and (name in DECODERS or name in self.servers)
        return (
            self.show_options(name, key)
            if known and name != shown_for
            else [gr.skip()] * (len(self.options) + 2)
        )

    def show_options(self, name: str, key: Any) -> list[Any]:
        """Show the options of a newly chosen decoder, at their defaults for this key's model."""
        model = self.models.peek(key)
        settings = self._settings(name, model)
        updates = [
            gr.update(visible=True, **settings[key])
            if key in settings
            else gr.update(visible=False)
            for key in self.options
        ]
        return [gr.update(**self._sentence(name, model)), *updates, name]

    def show_spec(self, spec: PanelSpec, key: Any) -> list[Any]:
        """Return the updates that put this panel, on the model of this key, on the page.

        They are for `inputs` and the sentence.
        """
        sentence, *options, shown_for = self.show_options(_choice(spec), key)
        for (name, _), update in zip(self.options, options):
            if name in spec.options and update.get("visible"):
                update["value"] = spec.options[name]
        keys = self.models.keys
        return [
            gr.update(
                choices=decoder_choices(self.models.peek(key), self.servers), value=_choice(spec)
            ),
            shown_for,
            gr.update(choices=keys, value=key, visible=len(keys) > 1),
            *options,
            sentence,
        ]

    def show_model(self, key: Any, values: list[Any]) -> list[Any]:
        """Return the updates that put the panel of these values on the model of another key."""
        return self.show_spec(self.spec_or_default(values), key)

    def spec_or_default(self, values: list[Any]) -> PanelSpec:
        """Return the panel as these values of `inputs` have it.

        Where they are half-typed, its options start anew.
        """
        try:
            return self.spec(values)
        except UserError:
            return PanelSpec(next((name for name in DECODERS if name == values[0]), "ar"))

    @property
    def inputs(self) -> list[gr.components.Component]:
        return [self.decoder, self.shown_for, self.model, *self.options.values()]

    def key(self, values: list[Any]) -> Any:
        """Return the key of the model that these values of `inputs` ask for."""
        return values[2]

    def spec(self, values: list[Any]) -> PanelSpec:
        """Return the panel that these values of `inputs` ask for.

        An empty field leaves its option to the model's default.
        """
        name, shown_for, key, *given = values
        if isinstance(name, str) and name in self.servers:
            return self.servers[name]
        if not isinstance(name, str) or name not in DECODERS:
            raise UserError(
                f"panel {self.index + 1} needs one of the decoders {', '.join(DECODERS)}; got "
                f"{name!r}"
            )
        own = {(option.name, kind_of(option)) for option in fields(DECODERS[name].Options)}
        if shown_for != name:
            # the page has not shown this decoder's options yet: nothing was chosen
            return PanelSpec(decoder=name, options={})
        chosen = {
            key[0]: value
            for key, value in zip(self.options, given)
            if key in own and value not in (None, "")
        }
        return PanelSpec(
            decoder=name, options=self._worth_naming(name, chosen, self.models.peek(key))
        )

    def _worth_naming(self, name: str, chosen: dict[str, Any], model: Model) -> dict[str, Any]:
        """Return the options that a panel's name has.

        These are the first, by which one speaks of the decoder (τ, k), and what differs from the
        defaults: the panel's name stays short.
        """
        if DECODERS[name].missing(model):
            return chosen
        defaults = DECODERS[name].defaults(model)
        first = [option.name for option in fields(defaults)][:1]
        return {
            option: value
            for option, value in chosen.items()
            if option in first or value != getattr(defaults, option)
        }


def help_for(name: str, model: Model) -> str:
    """Return the acts that help a decoder that the model cannot run yet, as HTML.

    The page's script (assets/race/lacking.js) puts them into the panel's body and hears them.
    """
    lacks = [need for need in TRAINED if need in DECODERS[name].needs and not model.has(need)]
    if not lacks or len(lacks) < sum(not model.has(need) for need in DECODERS[name].needs):
        return ""
    short = model.name.rpartition("/")[2]
    commands = "\n".join(
        f"python -m dmtd_demo train {TRAINED[need]} --model {model.name} --output runs/{short}"
        for need in lacks
    )
    entry = next((entry for entry in CATALOG.values() if entry.name == model.name), None)
    get = (
        f'<button type="button" data-act="models">{span("lacking.get")}</button>'
        if entry and entry.addons
        else ""
    )
    return (
        f'<div class="acts" hidden>{get}<button type="button" data-act="train" '
        f'data-addon="all">{span("lacking.train")}</button>'
        f'<button type="button" data-act="copy">{span("lacking.copy")}</button>'
        f"<pre>{escape(commands)}</pre></div>"
    )


def _choice(spec: PanelSpec) -> str:
    """Return the entry of the decoder list for a panel."""
    return str(spec) if spec.decoder == Remote.name else spec.decoder


def option_hints() -> dict[str, str]:
    """Return the key of what each option does, for the page's tooltips, by the end of its element
    id."""
    return {
        f"opt-{option.name}": option_key(name, option.name, "help")
        for name, decoder in DECODERS.items()
        for option in fields(decoder.Options)
    }
