// Before and after: the race before stays as a pale second line in figures and charts, so that
// turning a knob shows what it did; one click brings it back.

/**
 * @typedef {{speed: number | null, audit: number | null, perPass: number | null, rate: Line, spans: Record<string, number>}} Was
 */

class Before {
  // view: the race view.
  constructor(view) {
    this.view = view;
    this.race = null; // what restore takes, and the panels' figures
    this.latest = true; // whether the race on screen is the latest one, not the one brought back
    this.button = el(
      "button",
      {
        type: "button",
        id: "race-before",
        "aria-pressed": "false",
        "data-hint": t("before.hint"),
        hidden: true,
      },
      t("before"),
    );
    this.button.addEventListener("click", () => this.swap());
  }

  // The race on screen, where it came to its end.
  get onScreen() {
    const { tape, panels } = this.view;
    if (
      !tape.header ||
      !panels.every((panel) => ["eos", "length"].includes(tape.summaries[panel.index]?.stop))
    )
      return null;
    const figures = panels.map((panel) => {
      const summary = tape.summaries[panel.index];
      return {
        speed: summary.tokens_per_second ?? null,
        audit: summary.audit_agreement ?? null,
        perPass: summary.tokens_per_full_pass ?? null,
        rate: panel.rate,
        spans: panel.spanLengths,
      };
    });
    return {
      ...this.view.snapshot(),
      following: true,
      status: "done",
      sentence: this.view.verdict("done"),
      figures,
    };
  }

  // Another race begins.
  keep() {
    if (this.latest) this.race = this.onScreen || this.race;
    this.latest = true;
    this.draw();
  }

  forget() {
    this.race = null;
    this.latest = true;
    this.draw();
  }

  swap() {
    if (this.view.racing) return;
    if (this.view.player.first) this.view.player.toEnd();
    const shown = this.onScreen,
      wanted = this.race;
    if (!shown || !wanted) return;
    this.race = shown;
    this.latest = !this.latest;
    this.view.restore({ ...wanted, source: this.latest ? undefined : "before" });
    this.draw();
  }

  draw() {
    this.button.hidden = !this.race;
    this.button.setAttribute("aria-pressed", String(!this.latest));
    this.button.textContent = t(this.latest ? "before" : "before.back");
    this.view.panels.forEach((panel) => panel.showBefore(this.race?.figures[panel.index] || null));
  }
}
