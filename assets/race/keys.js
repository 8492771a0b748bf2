// Keys of the whole page, and the dialog that lists them. None of them fires while somebody types,
// or with a modifier held.

const KEYS = [
  ["R", t("keys.run")],
  ["Space", t("keys.pause")],
  ["← →", t("keys.arrows")],
  ["Enter", t("keys.enter")],
  ["P", t("keys.presenter")],
  ["F", t("keys.fill")],
  ["Esc", t("keys.escape")],
  ["?", t("keys.help")],
];
const TYPING =
  "textarea, select, [contenteditable=''], [contenteditable='true'], [role='combobox'], [role='listbox'], input:not([type='range'], [type='button'], [type='checkbox'], [type='radio'], [type='file'])";

class Keys {
  // acts: what each key does, by its name: run, pause, step(direction), escape, presenter,
  // focus(node).
  constructor(acts) {
    this.acts = acts;
    this.help = el(
      "dialog",
      { class: "help", "aria-label": t("keys") },
      el("h2", {}, t("keys")),
      el(
        "dl",
        {},
        ...KEYS.flatMap(([key, what]) => [
          el("dt", {}, ...key.split(" ").map((each) => el("kbd", {}, each))),
          el("dd", {}, what),
        ]),
      ),
      el("form", { method: "dialog" }, el("button", { type: "submit" }, t("keys.close"))),
    );
    document.body.append(this.help);
    document.addEventListener("keydown", (event) => this.press(event));
    // A button that was clicked with the mouse would take the next Space for itself.
    document.addEventListener("click", (event) => {
      if (event.detail) event.target.closest?.("#run, #stop, .player button")?.blur();
    });
  }

  press(event) {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || this.help.open)
      return;
    const target = event.target instanceof Element ? event.target : document.body;
    if (target.closest(TYPING)) return;
    const act = this.actOf(event.key, target);
    if (!act) return;
    event.preventDefault();
    act();
  }

  actOf(key, target) {
    const walks = target.closest(
      "[data-panel] [data-origin], [role='radiogroup'], [role='tablist'], [role='slider'], input[type='range']:not(.player *)",
    );
    switch (key) {
      case "r":
      case "R":
        return this.acts.run;
      case "p":
      case "P":
        return this.acts.presenter;
      case "f":
      case "F":
        return () => this.acts.focus(target);
      case "?":
        return () => this.help.showModal();
      case "Escape":
        return this.acts.escape;
      case " ":
        return target.closest("button, summary, a, input, label") ? null : this.acts.pause;
      case "ArrowLeft":
        return walks ? null : () => this.acts.step(-1);
      case "ArrowRight":
        return walks ? null : () => this.acts.step(1);
      default:
        return null;
    }
  }
}
