// The control of caution, a probability, where it matters: near 1. Gradio's own slider is even,
// from 0 to 1, and has 0.97 to 0.9999 in four pixels; this one, in its place, is as long for each
// further nine, and its stops have names. The number beside it stays Gradio's: typed, or written by
// this control.

const CERTAIN = 4.4; // the right end of the scale, where the probability is 1: beyond it no nine is told from the next
const CAUTIONS = [
  [0.5, t("caution.daring")],
  [0.9, t("caution.bold")],
  [0.97, t("caution.even")],
  [0.99, t("caution.careful")],
  [0.999, t("caution.strict")],
  [0.9999, t("caution.strictest")],
];

/** @param {number} p */
const placeOf = (p) => (p >= 1 ? CERTAIN : Math.min(-Math.log10(1 - p), CERTAIN));
/** @param {number} place  to four digits, as the decoders take it */
const cautionAt = (place) =>
  place > (CERTAIN + placeOf(0.9999)) / 2
    ? 1
    : Number(Math.min(1 - 10 ** -place, 0.9999).toFixed(4));

class Cautions {
  // row: where the panels' controls stand; Gradio makes them anew as decoders change.
  constructor(row) {
    const watcher = new MutationObserver(() => this.find(row));
    watcher.observe(row, {
      childList: true,
      subtree: true,
      attributes: true,
      attributeFilter: ["style"],
    }); // Gradio's slider keeps its place in its style
    this.find(row);
  }

  find(row) {
    for (const block of row.querySelectorAll("[id$='-opt-threshold']")) {
      if (!block.querySelector(".caution")) this.build(block);
      this.follow(block);
    }
  }

  build(block) {
    const place = block.querySelector(".slider_input_container");
    if (!place) return;
    const scale = el("input", {
      type: "range",
      min: 0,
      max: CERTAIN,
      step: 0.01,
      "aria-label": t("caution.scale"),
    });
    const write = (p) => {
      const number = block.querySelector("input[type='number']");
      number.value = p;
      number.dispatchEvent(new Event("input", { bubbles: true }));
    };
    scale.addEventListener("input", () => write(cautionAt(Number(scale.value))));
    const stops = CAUTIONS.map(([p, name]) => {
      const stop = el("button", {
        type: "button",
        style: `left: ${(100 * placeOf(p)) / CERTAIN}%`,
        "data-hint": t("caution.stop", { name, p }),
        "aria-label": t("caution.stop", { name, p }),
      });
      stop.addEventListener("click", () => write(p));
      return stop;
    });
    place.before(
      el(
        "div",
        { class: "caution" },
        scale,
        el("div", { class: "stops" }, ...stops),
        el("output", {}),
      ),
    );
    block.classList.add("scaled");
  }

  // What the number says: its place, and the name of the stop that it is at, or is beyond.
  follow(block) {
    const typed = block.querySelector("input[type='number']")?.value,
      scale = block.querySelector(".caution > input");
    const p = Number(typed);
    if (!scale || typed === "" || !(p >= 0 && p <= 1)) return;
    if (Math.abs(Number(scale.value) - placeOf(p)) > 0.02) scale.value = placeOf(p);
    const name =
      p === 1
        ? t("caution.all")
        : CAUTIONS.findLast(([stop]) => stop <= p)?.[1] || t("caution.reckless");
    const said = block.querySelector(".caution > output");
    if (said.textContent !== name) said.textContent = name; // the watcher hears of it
    scale.setAttribute("aria-valuetext", `${p}, ${name}`);
  }
}
