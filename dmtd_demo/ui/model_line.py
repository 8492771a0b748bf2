"""The line under the title: which model runs how, and what the numbers of the page are measured against."""
from __future__ import annotations

import json
from html import escape

import torch

from dmtd_demo.loading import Model


def count(parameters: int) -> str:
    return f"{parameters / 1e9:.2f} B" if parameters >= 1e9 else f"{parameters / 1e6:.1f} M"


def model_line(model: Model) -> str:
    threads = model.threads or torch.get_num_threads()
    split = f", split {model.split}" if model.split else ", no split of its own"
    quantization = "not quantized" if model.quantization == "none" else f"quantized to {model.quantization}"
    device = f"{model.device}, {threads} thread{'' if threads == 1 else 's'}" if str(model.device) == "cpu" else str(model.device)
    reasons = escape("; ".join(model.reasons) + ".", quote=True)
    return (f"<p><b>{escape(model.label)}</b> · {count(model.parameters)} parameters, {model.layers} layers{escape(split)} · "
            f'<span tabindex="0" data-hint="{reasons}">{escape(str(model.dtype))}, {escape(quantization)} · {escape(device)}</span></p>')


BASELINE = (
    '<p class="baseline">Panel 1 is the baseline: <span id="weights-note">the same weights</span> and prompt, <span id="sampling-note">greedy</span>, batch 1, warmed up, one device. '
    '<span tabindex="0" data-hint="The panels share one device, so they take turns. Each has a clock that counts only its own steps, and the one whose clock is '
    'furthest behind goes next: they move as fast, relative to each other, as each would alone.">Virtual clock</span>: each panel runs as fast as it would alone.</p>')


TOUR_MODEL = "classroom"   # what the texts of the tour say was seen with these weights
TOUR_SWITCH = '<button id="tour-switch" type="button" data-hint="Ten short steps, each with a race of its own. Afterwards the page is as it was.">Tour</button>'


def model_lines(models: list[Model]) -> str:
    """The lines of the models that the panels have, as JSON for the page's script."""
    used = list(dict.fromkeys(models))
    lines = [model_line(model).replace("<p>", f"<p>{_panels(models, model)}: ", 1) if len(used) > 1 else model_line(model) for model in used]
    return json.dumps({"lines": "".join(lines), "weights": "the same weights" if len(used) == 1 else "its own model, the same machine"})


def _panels(models: list[Model], model: Model) -> str:
    numbers = [str(index + 1) for index, own in enumerate(models) if own is model]
    return f"Panel{'s' if len(numbers) > 1 else ''} {', '.join(numbers)}"


SHOW_LINES = """(text) => {
  if (!text) return;
  const { lines, weights } = JSON.parse(text);
  document.querySelector("#model-lines").innerHTML = lines;
  document.querySelector("#weights-note").textContent = weights;
}"""


def header(model: Model) -> str:
    return (f'<header class="page-head"><h1>Multi-token decoding, side by side</h1><div id="model-lines">{model_line(model)}</div>{BASELINE}'
            f'<div class="switches">{TOUR_SWITCH if model.name == TOUR_MODEL else ""}<button id="presenter-switch" type="button" data-hint="Presenter mode: big type, controls away (P)." aria-label="Presenter mode">'
            '<svg viewBox="0 0 16 16" width="15" height="15" aria-hidden="true"><path fill="currentColor" d="M1 2h14v9H1zM2.6 3.6v5.8h10.8V3.6zM7.2 11h1.6v1.6h2.7v1.4h-7v-1.4h2.7z"/></svg></button>'
            '<button id="keys-switch" type="button" data-hint="What the keys do (?)." aria-label="Keys">?</button>'
            '<button id="theme-switch" type="button" aria-label="Switch between light and dark">◐</button></div></header>')


# Gradio keeps light and dark in a class; where it sits has changed between versions, so both places get it.
HEADER_SCRIPT = """
element.querySelector("#theme-switch").addEventListener("click", () => {
  const dark = !document.body.classList.contains("dark") && !document.documentElement.classList.contains("dark");
  for (const node of [document.documentElement, document.body]) node.classList.toggle("dark", dark);
});
element.querySelector("#presenter-switch").addEventListener("click", () => window.dmtdRace?.presenter());   // the race view comes a moment later
element.querySelector("#keys-switch").addEventListener("click", () => window.dmtdRace?.help());
"""
