// The guided tour: a card above the page. Every step puts its panels and its prompt into the page's
// own controls; the race starts as the reader asks for it. Closing puts everything back. What it
// needs of Python is in dmtd_demo/ui/tour.py; its comparisons are in tour_steps.js, its texts in
// assets/texts.

const TOUR_VALUES = {
  // what a step's text may quote of a race on screen: {name panel}
  tokens: (s) => plural(s.tokens, "token"),
  passes: (s) => plural(s.full_passes, "pass"),
  "per-pass": (s) => fixed(s.tokens_per_full_pass, 2),
  plt: (s) => percent(s.plt, 0),
  ratio: (s, base) =>
    s.tokens_per_second && base?.tokens_per_second
      ? ratio(s.tokens_per_second / base.tokens_per_second)
      : NONE,
  audit: (s) => percent(s.audit_agreement),
  agreement: (s) => percent(s.agreement, 0),
  repetition: (s) => percent(s.repetition_ratio),
  parameters: (s) => big(s.extra_parameters),
};

// Whether a panel of a race is what this text asks for. The page may name more of its options.
function asks(spec, panel) {
  const [name, options] = spec.split(":");
  return (
    panel.decoder === name &&
    (options ? options.split(",") : []).every(
      (option) => String(panel.options[option.split("=")[0]]) === option.split("=")[1],
    )
  );
}

/**
 * The steps that a model can do. kind: "classroom", another one of its "world", or "open"; able:
 * its decoders.
 * @param {DOMStringMap} facts
 */
function stepsFor({ kind, able }) {
  if (kind === "classroom")
    return TOUR.map((step, index) => ({ ...step, key: `tour.${index + 1}` }));
  const decoders = able.split(" ");
  return OPEN_TOUR.map((step, index) => ({
    ...step,
    prompt: kind === "world" ? step.world : step.prompt,
    key: `tour.open.${index + 1}`,
  })).filter(({ panels }) => panels.every((panel) => decoders.includes(panel.split(":")[0])));
}

class Tour {
  // view: the race view.
  constructor(view) {
    this.view = view;
    this.at = null; // the step on screen
    this.before = null; // the race on screen before the tour
    this.steps = []; // of the model's tour: {key, prompt, panels, tokens}
    this.ready = false; // the controls stand as the step wants them
    this.moves = 0; // counts what was asked for: an older wish gives way
    document.addEventListener("click", (event) => {
      if (event.target.closest?.("#tour-switch")) this.start();
    });
  }

  get on() {
    return this.at !== null;
  }

  get query() {
    const { prompt, panels, tokens } = this.steps[this.at];
    const values = /** @type {string[][]} */ ([
      ["prompt", prompt],
      ...panels.map((panel) => ["panel", panel]),
      ["max-tokens", tokens],
      ["seed", 0],
    ]);
    return new URLSearchParams(values).toString();
  }

  build() {
    const button = (name, hint, act) => {
      const node = el("button", { type: "button", "data-hint": hint }, name);
      node.addEventListener("click", act);
      return node;
    };
    this.title = el("h2", { id: "tour-title" });
    this.text = el("p", { id: "tour-text" });
    this.outcome = el("p", { class: "outcome", id: "tour-outcome" });
    this.back = button(t("tour.back"), t("tour.back.hint"), () => this.go(this.at - 1));
    this.next = button(t("tour.next"), t("tour.next.hint"), () =>
      this.at + 1 < this.steps.length ? this.go(this.at + 1) : this.close(),
    );
    this.race = button(t("tour.race"), t("tour.race.hint"), () => this.run());
    this.race.id = "tour-race";
    this.next.setAttribute("aria-describedby", "tour-title tour-text tour-outcome");
    this.card = document.querySelector("#tour-card");
    this.card.replaceChildren(
      el(
        "div",
        { class: "tour-head" },
        this.title,
        el(
          "div",
          { class: "tour-buttons" },
          this.back,
          this.race,
          this.next,
          button(t("tour.close"), t("tour.close.hint"), () => this.close()),
        ),
      ),
      el("div", { class: "tour-body" }, this.text, this.outcome),
    );
  }

  start() {
    if (this.on || this.view.racing || !document.querySelector("#tour-card")) return;
    if (!this.card) this.build();
    this.steps = stepsFor(document.querySelector("#tour-switch").dataset);
    if (this.view.player.first) this.view.player.toEnd();
    this.before = this.view.snapshot();
    this.view.tooltip.unpin();
    this.at = 0;
    document.documentElement.dataset.tour = "";
    this.card.hidden = false;
    this.draw();
    this.race.focus();
    document.querySelector("#tour-begin").click(); // Python remembers the controls; then first() is called
  }

  first() {
    this.go(0);
  }

  async go(step) {
    if (!this.on || step < 0) return;
    this.at = step;
    this.ready = false;
    this.draw();
    const move = ++this.moves;
    await this.settled();
    if (move !== this.moves || !this.on) return;
    this.view.clear();
    this.view.setStatus("idle", t("race.ready"));
    document.querySelector("#tour-show").click(); // Python sets the controls; then shown() is called
  }

  shown() {
    if (!this.on) return;
    this.ready = true;
    this.draw();
    this.race.focus();
  }

  // No race runs any more: one that did is stopped.
  async settled() {
    while (this.view.root.dataset.status === "running") {
      document.querySelector("#stop").click();
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  }

  // Gradio drops a click on Run while it still closes the race before: asked again until it is
  // heard.
  async run() {
    const move = this.moves,
      starts = this.view.starts;
    while (this.on && move === this.moves && starts === this.view.starts) {
      document.querySelector("#run").click();
      await new Promise((resolve) => setTimeout(resolve, 250));
    }
  }

  draw() {
    const step = this.steps[this.at],
      { summaries, header } = this.view.tape;
    this.title.textContent = t("tour.title", {
      step: this.at + 1,
      steps: this.steps.length,
      title: t(`${step.key}.title`),
    });
    this.text.textContent = t(`${step.key}.text`);
    const own =
      header?.prompt === step.prompt &&
      header.panels.length === step.panels.length &&
      header.panels.every((panel, index) => asks(step.panels[index], panel)); // the visitor may have run something else
    const over =
      own &&
      this.view.root.dataset.status === "done" &&
      step.panels.every((_, panel) => summaries[panel]);
    this.outcome.textContent = over
      ? t(`${step.key}.then`).replace(/\{([\w-]+) (\d)\}/g, (_, name, panel) =>
          TOUR_VALUES[name](summaries[panel - 1], summaries[0]),
        )
      : "…";
    this.back.disabled = this.at === 0;
    this.race.disabled = !this.ready;
    this.race.classList.toggle("next", !over);
    this.next.classList.toggle("next", Boolean(over));
    this.next.textContent = this.at + 1 < this.steps.length ? t("tour.next") : t("tour.finish");
  }

  async close() {
    if (!this.on) return;
    this.moves += 1;
    this.at = null;
    this.card.hidden = true;
    delete document.documentElement.dataset.tour;
    await this.settled();
    document.querySelector("#tour-end").click(); // Python puts the controls back
    this.view.restore(this.before);
    document.querySelector("#tour-switch")?.focus();
  }
}
