// What a panel lacks, in its own body: what Python says of a decoder that the model cannot run
// (ui/controls.py), and the click that helps.

class Lacking {
  // row: where the panels' controls stand. panels(): of the race view.
  constructor(row, panels) {
    this.row = row;
    this.panels = panels;
    new MutationObserver(() => this.find()).observe(row, {
      childList: true,
      subtree: true,
      characterData: true,
    });
    this.find();
  }

  find() {
    for (const panel of this.panels()) {
      const said = this.row.querySelector(`#panel-${panel.index}-controls .cannot`),
        acts = said?.querySelector(".acts");
      const told = acts ? said.textContent : "";
      if (panel.lacking.dataset.told === told) continue;
      panel.lacking.dataset.told = told;
      panel.lacking.hidden = !acts;
      panel.lacking.replaceChildren(
        ...(acts ? [el("p", {}, said.querySelector("span").textContent), ...this.build(acts)] : []),
      );
    }
  }

  build(acts) {
    const command = acts.querySelector("pre").textContent;
    const buttons = [...acts.querySelectorAll("button")].map((given) => {
      const button = el(
        "button",
        { type: "button", "data-act": given.dataset.act },
        given.textContent,
      );
      button.addEventListener("click", () => this.act(given.dataset, command, button));
      return given.dataset.act === "train" && !document.querySelector("#train") ? null : button;
    });
    return [el("div", { class: "acts" }, ...buttons), el("pre", {}, command)];
  }

  act({ act, addon }, command, button) {
    if (act === "copy") return copyText(command, button);
    const place = act === "models" ? "#models" : "#train";
    const toggle = document.querySelector(`${place} > button:not(.open)`);
    toggle?.click();
    setTimeout(
      () => {
        // Gradio builds what is in it as it is opened
        document.querySelector(`#train-addon input[value="${addon}"]`)?.click();
        document.querySelector(place).scrollIntoView({ block: "center" });
      },
      toggle ? 300 : 0,
    );
  }
}
