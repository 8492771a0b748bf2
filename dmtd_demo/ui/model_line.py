"""The line under the title: which model runs how, and what it is measured against."""

from __future__ import annotations

from html import escape

import torch

from dmtd_demo.decoders import DECODERS
from dmtd_demo.models.model import Model
from dmtd_demo.ui.about import askable
from dmtd_demo.ui.examples import of_the_world
from dmtd_demo.web.texts import hint, label, slot, span


def count(parameters: int) -> str:
    return f"{parameters / 1e9:.2f} B" if parameters >= 1e9 else f"{parameters / 1e6:.1f} M"


def model_line(model: Model) -> str:
    threads = model.threads or torch.get_num_threads()
    facts = {"parameters": count(model.parameters), "layers": model.layers}
    size = (
        span(
            "model.with_split",
            **facts,
            split=slot(
                "split", f"<span {hint('model.split.hint')}>{escape(str(model.split))}</span>"
            ),
        )
        if model.split
        else span("model.without_split", **facts)
    )
    quantization = (
        span("model.not_quantized")
        if model.quantization == "none"
        else span("model.quantized", quantization=model.quantization)
    )
    device = escape(str(model.device)) + (
        f", {span('model.thread' if threads == 1 else 'model.threads', threads=threads)}"
        if str(model.device) == "cpu"
        else ""
    )
    reasons = escape("; ".join(model.reasons) + ".", quote=True)
    return (
        f'<p><b translate="no">{escape(model.label)}</b> · {size} · <span tabindex="0" '
        f'data-hint="{reasons}">{escape(str(model.dtype))}, {quantization} · {device}</span></p>'
    )


def baseline() -> str:
    clock = f'<span tabindex="0" {hint("baseline.clock.hint")}>{span("baseline.clock")}</span>'
    text = span(
        "baseline",
        weights=slot("weights", f'<span id="weights-note">{span("baseline.same_weights")}</span>'),
        sampling=slot("sampling", span("baseline.greedy", 'id="sampling-note"')),
        clock=slot("clock", clock),
    )
    return f'<p class="baseline">{text}</p>'


TOUR_MODEL = "classroom"  # what the texts of its tour say was seen with these weights


def tour_facts(model: Model) -> str:
    """Return the attributes by which the page's script chooses the tour for a model: `classroom`'s
    own; the one that any model can do as far as its decoders go, in the small world or in the open.
    """
    kind = "classroom" if model.name == TOUR_MODEL else "world" if of_the_world(model) else "open"
    able = " ".join(name for name, decoder in DECODERS.items() if not decoder.missing(model))
    return f'data-kind="{kind}" data-able="{able}"'


def model_lines(models: list[Model]) -> str:
    """Return the lines of the models that the panels have, as HTML.

    Each says whose it is; the page's script names those of the panels that are shown.
    """
    return "".join(
        model_line(model).replace("<p>", _whose(models, model), 1)
        for model in dict.fromkeys(models)
    )


def _whose(models: list[Model], model: Model) -> str:
    """Return the line's tag: the panels on the model, what it can be asked, and its tour."""
    asked = escape(askable([model]), quote=True)
    panels = _panels(models, model)
    return f'<p data-panels="{panels}" data-askable="{asked}" {tour_facts(model)}>'


def _panels(models: list[Model], model: Model) -> str:
    return ",".join(str(index + 1) for index, own in enumerate(models) if own is model)


SHOW_LINES = """(lines) => {
  if (!lines) return;
  // said beside the prompt: what the first of them can be asked
  const first = new DOMParser().parseFromString(lines, "text/html").querySelector("p");
  const { askable, kind, able } = first.dataset;
  document.querySelector("#askable").innerHTML = askable;
  const offer = document.querySelector("#offer");
  if (offer) offer.hidden = kind === "open";
  Object.assign(document.querySelector("#tour-switch").dataset, { kind, able });
  document.querySelector("#model-lines").innerHTML = lines;
  window.dmtdRace.nameModels();
}"""


def header(model: Model, lecture: bool = False) -> str:
    links = (
        f'<nav class="class-links"><a href="class" target="_blank">{span("class.live")}</a>'
        f'<a href="class/join" target="_blank">{span("class.how")}</a></nav>'
        if lecture
        else ""
    )
    tour = (
        f'<button id="tour-switch" type="button" {tour_facts(model)} '
        f"{hint('tour.switch.hint')}>{span('tour.switch')}</button>"
    )
    return (
        f'<header class="page-head"><h1>{span("page.title")}</h1>'
        f'<p class="lead">{span("page.lead")}</p>'
        f'<div id="model-lines">{model_line(model)}</div>{baseline()}{links}'
        f'<div class="switches">{tour}<button id="presenter-switch" type="button" '
        f"{hint('presenter.switch.hint')} {label('presenter.switch')}>"
        '<svg viewBox="0 0 16 16" width="15" height="15" aria-hidden="true">'
        '<path fill="currentColor" d="M1 2h14v9H1zM2.6 3.6v5.8h10.8V3.6zM7.2 '
        '11h1.6v1.6h2.7v1.4h-7v-1.4h2.7z"/></svg></button>'
        f'<button id="keys-switch" type="button" {hint("keys.switch.hint")} '
        f"{label('keys')}>?</button>"
        f'<button id="theme-switch" type="button" {label("page.theme")}>◐</button></div></header>'
    )


# Gradio keeps light and dark in a class; where it sits has changed between versions, so both places
# get it.
HEADER_SCRIPT = """
element.querySelector("#theme-switch").addEventListener("click", () => {
  const nodes = [document.documentElement, document.body];
  const dark = !nodes.some((node) => node.classList.contains("dark"));
  for (const node of nodes) node.classList.toggle("dark", dark);
});
// the race view comes a moment later
const press = (name, act) => element.querySelector(name).addEventListener("click", act);
press("#presenter-switch", () => window.dmtdRace?.presenter());
press("#keys-switch", () => window.dmtdRace?.help());
"""
