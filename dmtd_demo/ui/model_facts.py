"""What the page says of a model, in HTML: what it is, what it needs, how far it has come."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from dmtd_demo.errors import UserError
from dmtd_demo.measure.availability import (
    RENTED,
    describe_model,
    lacking,
    minutes,
    training,
    untaught,
)
from dmtd_demo.models.catalog import CatalogEntry
from dmtd_demo.models.memory import amount
from dmtd_demo.models.residents import Arrival, Residents
from dmtd_demo.ui.i18n import control
from dmtd_demo.web.texts import label, slot, span

# What the core says that it does -> key.
STAGES = {
    "Beginning": "stage.begin",
    "Looking at the model": "stage.look",
    "Downloading": "stage.download",
    "Checking the file": "stage.file",
    "Checking the weights": "stage.check",
    "Loading the weights": "stage.load",
}


class ModelFacts:
    """What is said of models beside those in memory, on the device that those are on."""

    def __init__(self, models: Residents) -> None:
        self.models = models
        self.device = models.get(models.keys[0]).device.partition(":")[0]

    def plan(self, entry: CatalogEntry, quantization: str | None) -> Any:
        return self.models.plan(
            entry.sizes,
            int(entry.shape["max_position_embeddings"]),
            quantization,
        )

    def describe(self, entry: CatalogEntry, paths: bool) -> str:
        """Describe a model in HTML. paths: whether the visitor may see where folders lie."""
        d = describe_model(entry, self.device)
        model = entry.source if entry.is_local and paths else d["name"]
        where = _where(d)
        if not paths and Path(d["source"]).is_absolute():
            where = span("where.folder", source=d["name"])
            d |= {"label": d["name"], "source": d["name"]}
        size = span(
            "models.size",
            parameters=parameters_of(d["parameters"]),
            layers=d["num_hidden_layers"],
            bytes=amount(d["bytes"]),
            where=slot("where", where),
        )
        missing = ", ".join(d["missing"])
        facts = [
            f"<h3>{escape(d['label'])}</h3>",
            f"<p>{size}</p>",
            f"<p><b>{span('models.runs')}</b> {', '.join(d['decoders'])}.</p>",
        ]
        if d["missing"] and d["published"]:
            facts.append(
                f"<p><b>{span('models.not_yet')}</b> "
                f"{span('models.published', decoders=missing, addons=d['published'])}</p>"
            )
        elif d["missing"]:
            none = (
                f" {span('models.untaught', decoders=', '.join(untaught(d)))}"
                if untaught(d)
                else ""
            )
            commands = escape(
                "\n".join(
                    [
                        *training(d),
                        f"python app.py --model {model} --addons runs/{d['name']}/addons",
                    ]
                )
            )
            needs = span("models.lacking", decoders=missing, addons=", ".join(lacking(d)))
            time_needed = span("models.minutes", minutes=minutes(d), device=RENTED.label)
            facts.append(
                f"<details><summary><b>{span('models.not_yet')}</b> {needs}</summary>"
                f"<pre>{commands}</pre><p>{time_needed}{none}</p></details>"
            )
        if d["never"]:
            facts.append(f"<p>{span('models.never', decoders=', '.join(d['never']))}</p>")
        return "".join(facts) + (f"<p>{escape(d['note'])}.</p>" if d["note"] else "")

    def quantizations(self, entry: CatalogEntry) -> dict[str, Any]:
        d = describe_model(entry, self.device)
        default = self._default(entry)
        return {
            "value": default,
            "choices": [
                (_choice(name, amount(need), name == default, name in d["fits"]), name)
                for name, need in d["memory"].items()
            ],
        }

    def _default(self, entry: CatalogEntry) -> str:
        try:
            return self.plan(entry, None).quantization
        except UserError:  # nothing fits; the sentence says so where it is asked for
            return "nf4"

    def reason(self, entry: CatalogEntry, quantization: str | None) -> str:
        try:
            placement = self.plan(entry, quantization)
        except UserError as error:
            return complaint(error)
        default = self._default(entry)
        name = placement.quantization
        begin = (
            f"<b>{span('models.by_default', quantization=name)}</b>"
            if name == default
            else f"<b>{name}:</b> {span(f'quantization.{name}')};"
        )
        reasons = (
            placement.reasons
            if placement.quantization != default
            else self.plan(entry, None).reasons
        )
        need = placement.need
        memory = span(
            "models.memory",
            weights=amount(need.weights),
            cache=amount(need.cache),
            working=amount(need.working),
        )
        return f"<p>{begin} {escape('; '.join(reasons))}. {memory}</p>"

    def loaded(self, key: str | None = None) -> dict[str, Any]:
        keys = self.models.keys
        return {
            "choices": [(f"{key} · {amount(self.models.peek(key).memory)}", key) for key in keys],
            "value": key or (keys[-1] if keys else None),
        }

    def welcome(self, arrival: Arrival, seconds: float) -> str:
        model = self.models.get(arrival.key)
        words = [
            span(
                "models.arrived",
                key=arrival.key,
                memory=amount(model.memory),
                seconds=f"{seconds:.1f}",
            )
            if arrival.fresh
            else span("models.was_there", key=arrival.key)
        ]
        if arrival.left:
            words.append(span("models.made_room", keys=", ".join(arrival.left)))
        return f'<p role="status">{" ".join([*words, span("models.used")])}</p>'

    def cancelled(self) -> str:
        return f'<p role="status">{span("models.cancelled", keys=", ".join(self.models.keys))}</p>'


def bar(name: str, state: tuple[str, int, int]) -> str:
    stage, done, total = state[0] or "Beginning", *state[1:]
    names = label(STAGES[stage]) if stage in STAGES else f'aria-label="{escape(stage)}"'
    if not total:
        doing = span("models.stage", name=name, stage=slot("stage", _stage(stage)))
        return f'<p role="status">{doing}</p><progress {names}></progress>'
    parts = (
        {"done": done, "total": total}
        if stage == "Loading the weights"
        else {"done": amount(done), "total": amount(total)}
    )
    much = span("models.tensors" if stage == "Loading the weights" else "models.bytes", **parts)
    doing = span(
        "models.doing", name=name, stage=slot("stage", _stage(stage)), much=slot("much", much)
    )
    return f'<p>{doing}</p><progress value="{done}" max="{total}" {names}></progress>'


def complaint(error: Exception) -> str:
    words = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    return (
        f'<p class="complaint" role="alert">{escape(words[:1].upper() + words[1:])}. '
        f"{span('models.goes_on')}</p>"
    )


def _stage(stage: str) -> str:
    return span(STAGES[stage]) if stage in STAGES else escape(stage)


def _where(described: dict[str, Any]) -> str:
    """Say where a model lies, as availability.where says it on the command line."""
    source = described["source"]
    if source == "assets":
        return span("where.ships")
    if described["at"]:
        return span("where.folder", source=described["at"])
    return span(
        "where.folder"
        if Path(source).is_absolute()
        else "where.here"
        if described["here"]
        else "where.index"
        if described["package"]
        else "where.hub",
        source=source,
        package=described["package"],
    )


def _choice(name: str, memory: str, default: bool, fits: bool) -> str:
    """Return a quantization with the memory that it needs.

    What does not fit is not called the default: nothing fits then.
    """
    if not fits:
        return f"{name} · {memory} · {control('models.more_than_free')}"
    return f"{name} {control('models.default')} · {memory}" if default else f"{name} · {memory}"


def parameters_of(number: int) -> str:
    return f"{number / 1e9:.1f} B" if number >= 1e9 else f"{number / 1e6:.0f} M"
