// The legend: the origins with their counts, each a filter; and the button that shows white space.

class Legend {
  // root: the race view, whose data-only names the origin that is shown alone.
  constructor(root, panels) {
    this.root = root;
    this.panels = panels;
    this.origins = el("div", {
      class: "legend",
      "data-legend": true,
      role: "group",
      "aria-label": t("legend"),
    });
    this.spaces = el(
      "button",
      {
        type: "button",
        class: "spaces",
        "aria-pressed": "false",
        "data-hint": t("legend.spaces.hint"),
      },
      `␣ ${t("legend.spaces")}`,
    );
    this.node = el("div", { class: "reading" }, this.origins, this.spaces);
    this.origins.addEventListener("click", (event) => this.filter(event.target.closest("button")));
    this.spaces.addEventListener("click", () => this.showSpaces(!this.spaced));
    root.addEventListener("copy", (event) => this.copySelection(event));
  }

  get spaced() {
    return this.spaces.getAttribute("aria-pressed") === "true";
  }

  draw() {
    const counts = {};
    for (const panel of this.panels())
      for (const [origin, count] of Object.entries(panel.origins))
        counts[origin] = (counts[origin] || 0) + count;
    const differs = this.panels().reduce((sum, panel) => sum + panel.disagreements, 0);
    const items = [...new Set([...ALWAYS_LISTED, ...Object.keys(counts)])].map((key) => [
      key,
      ORIGINS[key]?.name || key,
      ORIGINS[key]?.hint || "",
      counts[key] || 0,
    ]);
    const drawn = this.panels()[0]?.sampled;
    items.push([
      "differs",
      t(drawn ? "origin.improbable.name" : "origin.differs.name"),
      t(drawn ? "origin.improbable.hint" : "origin.differs.hint"),
      differs,
    ]);
    const wanted = items.map(([key, name]) => `${key} ${name}`).join();
    if (this.origins.dataset.keys !== wanted) {
      // the buttons stay while only counts change, so that they can be pressed
      this.origins.dataset.keys = wanted;
      this.origins.replaceChildren(
        ...items.map(([key, name, hint]) =>
          el(
            "button",
            { type: "button", "data-key": key, "data-hint": hint, "aria-pressed": "false" },
            el("span", { class: "swatch", "aria-hidden": "true" }, key === "differs" ? "≠" : "ab"),
            el("span", {}, name),
            el("b", FIGURE),
          ),
        ),
      );
      delete this.root.dataset.only;
    }
    items.forEach(([, , , count], index) => {
      this.origins.children[index].querySelector("b").textContent = count.toLocaleString("en");
    });
  }

  filter(button) {
    if (!button) return;
    const on = button.getAttribute("aria-pressed") !== "true";
    for (const other of this.origins.children)
      other.setAttribute("aria-pressed", String(on && other === button));
    if (on) this.root.dataset.only = button.dataset.key;
    else delete this.root.dataset.only;
  }

  showSpaces(on) {
    this.spaces.setAttribute("aria-pressed", String(on));
    this.panels().forEach((panel) => panel.showSpaces(on));
  }

  // What is copied out of the text of one panel is its tokens' own text, also where the page shows
  // signs for white space.
  copySelection(event) {
    const selection = document.getSelection();
    const own = (node) =>
      (node instanceof Element ? node : node?.parentElement)?.closest("[data-panel]");
    const text = own(selection.anchorNode);
    if (!text || text !== own(selection.focusNode) || !this.spaced) return;
    const tokens = this.panels()[Number(text.dataset.panel)].tokens;
    event.clipboardData.setData(
      "text/plain",
      tokens
        .filter((_, index) => selection.containsNode(text.children[index], true))
        .map((token) => token.text)
        .join(""),
    );
    event.preventDefault();
  }
}
