"""The line under the prompt: what the model can be asked, where a real language model is, and the
papers."""

from __future__ import annotations

from dmtd_demo.measure.availability import here
from dmtd_demo.models.catalog import CATALOG
from dmtd_demo.models.model import Model
from dmtd_demo.ui.examples import of_the_world
from dmtd_demo.web.texts import hint, span

REAL = "SmolLM2-135M-Instruct"
PAPERS = (("DMTD", "https://arxiv.org/abs/2510.11958"), ("CLP", "https://arxiv.org/abs/2606.10935"))


def askable(models: list[Model]) -> str:
    """Return what the first of these models can be asked, as HTML."""
    model = models[0]
    if of_the_world(model):
        return span("about.small_world", model=model.name)
    return span("about.anything", model=model.name)


def about(model: Model, offered: bool) -> str:
    """Return the line. offered: whether visitors may load another model."""
    entry = CATALOG[REAL]
    button = ""
    if offered and entry.stored:
        size = f"{entry.stored / 1e6:.0f} MB"
        said = span("about.at_hand") if here(entry) else span("about.to_get", size=size)
        button = (
            f'<button type="button" id="offer" data-model="{REAL}" {hint("about.offer.hint")}'
            # a language model needs none beside it
            f"{'' if of_the_world(model) else ' hidden'}>{said}</button>"
        )
    papers = " · ".join(
        f'<a href="{address}" target="_blank" rel="noreferrer">{name}</a>'
        for name, address in PAPERS
    )
    return (
        f'<p class="about"><button type="button" id="unfold" aria-expanded="false">'
        f'{span("about.unfold")}</button><span id="askable">{askable([model])}</span> {button}'
        f'<span class="papers">{span("about.papers")} {papers}</span></p>'
    )


# On a phone the settings are folded; the offer opens the list of models at the one that is offered.
OFFER_SCRIPT = """
element.querySelector("#unfold").addEventListener("click", ({ currentTarget }) => {
  const open = document.documentElement.toggleAttribute("data-unfolded");
  currentTarget.setAttribute("aria-expanded", open);
});
element.querySelector("#offer")?.addEventListener("click", async ({ currentTarget }) => {
  const wanted = `#model-choice input[value="${currentTarget.dataset.model}"]`;
  // after the click has gone through: it would close the list as one beside it
  await new Promise((resolve) => setTimeout(resolve));
  const toggle = document.querySelector("#models > button");
  if (!toggle.classList.contains("open")) toggle.click();
  // Gradio sets its own value a moment after it has built the list, over what was chosen: until the
  // choice stays, or the list is closed
  for (let waited = 0, kept = 0, seen = false; waited < 400 && kept < 6; waited += 1) {
    const choice = document.querySelector(wanted);
    if (seen && !choice) return;
    seen = Boolean(choice);
    kept = choice?.checked ? kept + 1 : 0;
    if (choice && !choice.checked) choice.click();
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  document.querySelector("#model-load")?.focus();
});
"""
