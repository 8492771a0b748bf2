// Presenter mode, for the last row of a lecture hall: big type, the controls away. And one panel
// that fills the page, with it or without.

class Presenter {
  constructor(grid, panels) {
    this.grid = grid;
    this.panels = panels;
    this.focused = null; // the index of the panel that fills the page
    this.asked = el("span", { class: "asked" });
    this.run = el("button", { type: "button", class: "run" }, t("presenter.run"));
    this.run.addEventListener("click", () => document.querySelector("#run")?.click());
    this.leave = el("button", { type: "button", class: "leave" }, t("presenter.leave"));
    this.leave.addEventListener("click", () => this.toggle());
    // the prompt, which has its box no more; nothing to run in an exported file
    this.stage = el(
      "div",
      { class: "stage" },
      this.asked,
      document.querySelector("#race") ? this.run : null,
      this.leave,
    );
  }

  get on() {
    return "presenter" in document.documentElement.dataset;
  }

  toggle() {
    if (this.on) delete document.documentElement.dataset.presenter;
    else document.documentElement.dataset.presenter = "";
    this.name();
    window.dispatchEvent(new Event("resize")); // the charts take their size from the page
  }

  // The prompt that Run would race; and the panels, where no race has named them yet.
  name() {
    /** @type {HTMLTextAreaElement | null} */
    const box = document.querySelector("#prompt textarea");
    this.asked.textContent = box?.value || "";
    for (const panel of this.panels()) {
      /** @type {HTMLInputElement | null} */
      const decoder = document.querySelector(`#panel-${panel.index}-decoder input`);
      if (!panel.decoder) panel.spec.textContent = this.on && decoder ? decoderOf(decoder) : "";
    }
  }

  // One panel fills the page; null: all of them stand side by side.
  focus(index) {
    this.focused = index === null || index >= this.panels().length ? null : index;
    if (this.focused === null) delete document.documentElement.dataset.focused;
    else document.documentElement.dataset.focused = index;
    this.panels().forEach((panel) => {
      panel.node.hidden = this.focused !== null && panel.index !== this.focused;
      panel.fill.setAttribute("aria-pressed", String(panel.index === this.focused));
    });
    this.grid.style.setProperty("--count", this.focused === null ? this.panels().length : 1);
  }

  // F: the panel that the keyboard is in, else the first; then the next one; after the last, all of
  // them.
  next(node) {
    const own = node.closest?.(".panel");
    const index = this.panels().findIndex((panel) => panel.node === own);
    this.focus(this.focused !== null ? this.focused + 1 : Math.max(index, 0));
  }

  // Lets go of one of the two; false where there is nothing to let go of.
  escape() {
    if (this.focused !== null) this.focus(null);
    else if (this.on) this.toggle();
    else return false;
    return true;
  }
}
