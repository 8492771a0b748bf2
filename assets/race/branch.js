// What would ar have written? Asked of a token that is not its choice, as that one is pinned: ar's
// own text from there, beside the panel's. Python writes it (ui/branches.py), of the last race
// alone; what is only replayed has no model at hand.

const BRANCH_TOKENS = 40; // as many as ui/branches.py writes

class Branch {
  // tape: the race on screen. panels(): of it.
  constructor(tape, panels) {
    this.tape = tape;
    this.panels = panels;
    this.asked = null; // run, panel, index
  }

  // A token was pinned, or let go of (null).
  pinned(span, index) {
    for (const panel of this.panels()) panel.branch.hidden = true;
    this.asked = null;
    const panel = span && this.panels()[span.panel],
      button = document.querySelector("#branch-ask");
    const replayed =
      document.documentElement.dataset.source ||
      document.querySelector("[data-playing='recorded']");
    if (!panel?.differs(index) || !button || replayed) return;
    this.asked = [this.tape.header.run, span.panel, index];
    this.draw(panel, index, "…");
    button.click();
  }

  // The answer has come: for the token that is pinned, or too late.
  came(text) {
    if (!text) return;
    const { asked, text: own, message } = JSON.parse(text);
    if (!this.asked || (asked && JSON.stringify(asked) !== JSON.stringify(this.asked))) return;
    const [, panel, index] = this.asked;
    this.draw(this.panels()[panel], index, message || own, Boolean(message));
  }

  draw(panel, index, text, failed = false) {
    const before = panel.tokens
      .slice(Math.max(index - 6, 0), index)
      .map((token) => token.text)
      .join("");
    const own = panel.tokens
      .slice(index, index + BRANCH_TOKENS)
      .map((token) => token.text)
      .join("");
    const row = (name, said, kind) => [
      el("dt", {}, name),
      el(
        "dd",
        { class: kind, ...WRITTEN },
        el("span", { class: "before" }, `… ${readable(before)}`),
        readable(said),
      ),
    ];
    panel.branch.replaceChildren(
      el("b", {}, t("branch.title", { number: index + 1 })),
      el(
        "dl",
        {},
        ...row(t("branch.here"), own, "here"),
        ...(failed ? [el("dt", {}, "ar"), el("dd", {}, text)] : row("ar", text, "ar")),
      ),
    );
    panel.branch.hidden = false;
    const node = panel.text.children[index],
      { scroll } = panel; // the token stays in sight above it
    const over = node.getBoundingClientRect().bottom - panel.branch.getBoundingClientRect().top + 8;
    if (over > 0) scroll.scrollTop += over;
  }
}
