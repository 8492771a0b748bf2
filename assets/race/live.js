// The two small charts under a panel's text, on screen while the race runs: tokens per second over
// the panel's clock, and its span lengths. Drawn in the page's own elements, since they follow
// every token; the large charts, with axes, are below (charts.js). All panels share one scale, so
// that heights compare.

const POINTS = 160; // of a line, at most: more do not fit its pixels
const SHORTEST_SCALE = 4; // lengths that the span chart has room for at least

/**
 * What all panels are drawn against.
 * @param {Panel[]} panels
 * @param {number} duration  ms of the clock that the race is known to take
 */
function liveScale(panels, duration) {
  const lines = panels.flatMap((panel) => [
    panel.rate,
    ...(panel.before ? [panel.before.rate] : []),
  ]);
  return {
    seconds: Math.max(
      duration / 1000,
      ...panels.map((panel) => panel.ms / 1000),
      ...panels.map((panel) => panel.before?.rate.x.at(-1) || 0),
      1e-9,
    ),
    rate: roundUp(
      Math.max(1, ...lines.map(({ y }) => y.reduce((most, each) => Math.max(most, each), 0))),
    ),
    length: Math.max(
      SHORTEST_SCALE,
      ...panels.flatMap((panel) =>
        [panel.spanLengths, panel.before?.spans || {}].flatMap((counts) =>
          Object.keys(counts).map(Number),
        ),
      ),
    ),
  };
}

/**
 * The next of 1, 1.5, 2, 3, 4, 5, 6, 8 or 10 times a power of ten: a scale that seldom moves.
 * @param {number} value
 */
function roundUp(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return power * [1, 1.5, 2, 3, 4, 5, 6, 8, 10].find((step) => step * power >= value);
}

class Live {
  constructor() {
    this.line = svg("path", { class: "line", "vector-effect": "non-scaling-stroke" });
    this.before = svg("path", { class: "was-line", "vector-effect": "non-scaling-stroke" });
    this.most = el("span", { class: "most", ...FIGURE });
    this.bars = el("div", { class: "bars", ...FIGURE });
    this.tps = el(
      "div",
      {
        class: "live-chart",
        "data-live-chart": "tps",
        role: "img",
        "data-hint": t("live.tps.hint"),
      },
      el("span", { class: "name" }, t("unit.speed")),
      this.most,
      svg(
        "svg",
        { viewBox: "0 0 100 100", preserveAspectRatio: "none", "aria-hidden": "true" },
        this.before,
        this.line,
      ),
    );
    this.span = el(
      "div",
      {
        class: "live-chart",
        "data-live-chart": "span",
        role: "img",
        "data-hint": t("live.span.hint"),
      },
      el("span", { class: "name" }, t("live.span")),
      this.bars,
    );
    this.node = el("div", { class: "live" }, this.tps, this.span);
    this.columns = 0;
  }

  /**
   * @param {Panel} panel
   * @param {{seconds: number, rate: number, length: number}} scale
   */
  draw(panel, scale) {
    const { y } = panel.rate,
      points = this.points(panel.rate, scale),
      before = panel.before ? this.points(panel.before.rate, scale) : [];
    for (const [line, along] of [
      [this.line, points],
      [this.before, before],
    ])
      line.setAttribute("d", along.length ? `M${along.join("L")}` : "");
    this.most.textContent = points.length ? scale.rate.toLocaleString("en") : "";
    this.tps.setAttribute("aria-label", t("live.tps.now", { value: speed(y.at(-1)) }));
    this.drawSpans(panel.spanLengths, scale.length, panel.before?.spans);
  }

  points({ x, y }, scale) {
    const every = Math.max(1, Math.ceil(x.length / POINTS));
    return x.flatMap((seconds, i) =>
      i % every && i < x.length - 1
        ? []
        : [
            `${((100 * seconds) / scale.seconds).toFixed(2)} ${(100 - (100 * y[i]) / scale.rate).toFixed(2)}`,
          ],
    );
  }

  drawSpans(counts, length, before = null) {
    if (this.columns !== length) {
      this.columns = length;
      this.bars.replaceChildren(
        ...Array.from({ length }, (_, i) =>
          el("span", { class: "column" }, el("i"), el("b", {}, String(i + 1))),
        ),
      );
    }
    const most = Math.max(1, ...Object.values(counts));
    [...this.bars.children].forEach((column, i) => {
      const count = counts[i + 1] || 0;
      column.classList.toggle("none", !count);
      column.querySelector("i").style.setProperty("--share", (count / most).toFixed(3));
      /** @type {HTMLElement} */ (column).style.setProperty(
        "--was",
        before ? ((before[i + 1] || 0) / Math.max(1, ...Object.values(before))).toFixed(3) : "0",
      );
    });
    const said = Object.entries(counts).map(([spanLength, count]) =>
      t("chart.spans_of", { count, length: spanLength }),
    );
    this.span.setAttribute(
      "aria-label",
      said.length ? said.join(t("list.comma")) : t("chart.span.about"),
    );
  }
}
