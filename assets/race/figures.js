// What each chart shows. A figure has the panels' data as Plotly traces, and draws what has come
// since it was drawn last.

const DASHES = ["solid", "dash", "dashdot", "dot"]; // panels are told apart without colour too
const PATTERNS = ["", "/", "x", "."];

class Figure {
  /**
   * @param {string} id
   * @param {string} caption
   * @param {string} description
   * @param {Charts} look  colours and fonts of the page
   * @param {() => Panel[]} panels  those of the race on screen
   */
  constructor(id, caption, description, look, panels) {
    this.look = look;
    this.panels = panels;
    this.caption = caption;
    this.plot = el("div", {
      id,
      class: "plot",
      ...FIGURE,
      role: "img",
      "aria-label": t("chart.label", { description }),
    });
  }

  // Plotly draws tags: a name from a file stays text.
  names() {
    return this.panels().map((panel) =>
      `${panel.index + 1} ${panel.spec.textContent || NONE}`
        .replaceAll("&", "&amp;")
        .replaceAll("<", "&lt;"),
    );
  }

  reset() {
    window.Plotly.newPlot(this.plot, this.traces(), this.layout(), {
      displayModeBar: false,
      responsive: true,
    });
  }

  /** @param {Span | null} span  the pinned one */
  mark(span) {}
}

// Lines that only grow while a race runs: one per panel.
class LineFigure extends Figure {
  /**
   * @param {string} id
   * @param {string} caption
   * @param {string} description
   * @param {Charts} look
   * @param {() => Panel[]} panels
   * @param {(panel: Panel) => Line} lineOf  seconds and values; a new object: it begins again
   * @param {string} unit
   */
  constructor(id, caption, description, look, panels, lineOf, unit) {
    super(id, caption, description, look, panels);
    this.lineOf = lineOf;
    this.unit = unit;
  }

  traces() {
    /** @type {{line: Line, count: number}[]} */
    this.drawn = [];
    const before = this.panels().flatMap((panel, i) =>
      panel.before && this.plot.id === "chart-tps"
        ? [
            {
              type: "scatter",
              mode: "lines",
              name: t("before.trace", { panel: i + 1 }),
              x: [...panel.before.rate.x],
              y: [...panel.before.rate.y],
              opacity: 0.4,
              showlegend: i === 0,
              line: { color: this.look.color(`--panel-${i}`), width: 1.5, dash: DASHES[i] },
              hoverinfo: "skip",
            },
          ]
        : [],
    );
    return [
      ...this.names().map((name, i) => ({
        type: "scatter",
        mode: "lines",
        name,
        x: [],
        y: [],
        line: { color: this.look.color(`--panel-${i}`), width: 2.5, dash: DASHES[i] },
        hovertemplate: `${t("chart.at", { value: "%{y:.0f}", unit: this.unit, seconds: "%{x:.2f}" })}<extra>%{fullData.name}</extra>`,
      })),
      ...before,
    ];
  }

  layout() {
    return this.look.layout(t("chart.seconds"), this.unit);
  }

  draw() {
    const lines = this.panels().map(this.lineOf);
    if (lines.every((line, i) => line === this.drawn[i]?.line)) {
      const grown = lines
        .map((line, i) => i)
        .filter((i) => lines[i].x.length > this.drawn[i].count);
      const tails = (axis) => grown.map((i) => lines[i][axis].slice(this.drawn[i].count));
      if (grown.length)
        window.Plotly.extendTraces(this.plot, { x: tails("x"), y: tails("y") }, grown);
    } else {
      window.Plotly.restyle(
        this.plot,
        { x: lines.map((line) => [...line.x]), y: lines.map((line) => [...line.y]) },
        lines.map((_, i) => i),
      );
    }
    this.drawn = lines.map((line) => ({ line, count: line.x.length }));
  }

  mark(span) {
    window.Plotly.relayout(this.plot, {
      shapes: span ? [this.look.band(span.panel, span.from / 1000, span.to / 1000)] : [],
    });
  }
}

// How many spans of each length each panel had: bars side by side.
class SpanFigure extends Figure {
  get width() {
    return 0.8 / this.panels().length; // said outright: Plotly would take it from the gaps in the data
  }

  traces() {
    const before = this.panels().flatMap(({ before }, i) =>
      before
        ? [
            {
              type: "bar",
              name: t("before.trace", { panel: i + 1 }),
              x: Object.keys(before.spans).map(Number),
              y: Object.values(before.spans),
              width: this.width / 2,
              offset: i * this.width - 0.4 + this.width / 4,
              opacity: 0.35,
              showlegend: false,
              marker: { color: this.look.color("--race-ink") },
              hoverinfo: "skip",
            },
          ]
        : [],
    );
    return [
      ...this.names().map((name, i) => ({
        type: "bar",
        name,
        x: [],
        y: [],
        width: this.width,
        offset: i * this.width - 0.4,
        marker: this.look.marker(`--panel-${i}`, PATTERNS[i]),
        hovertemplate: `${t("chart.spans_of", { count: "%{y}", length: "%{x}" })}<extra>%{fullData.name}</extra>`,
      })),
      ...before,
    ];
  }

  layout() {
    return this.look.layout(t("chart.tokens_in_span"), t("chart.spans"), {
      dtick: 1,
      tick0: 1,
      range: [0.4, 6.6],
    });
  }

  draw() {
    const counts = this.panels().map((panel) => panel.spanLengths);
    const lengths = counts.map((count) =>
      Object.keys(count)
        .map(Number)
        .sort((a, b) => a - b),
    );
    const longest = Math.max(6, ...lengths.flat());
    window.Plotly.update(
      this.plot,
      { x: lengths, y: counts.map((count, i) => lengths[i].map((length) => count[length])) },
      { "xaxis.range": [0.4, longest + 0.6] },
      lengths.map((_, i) => i),
    );
  }

  mark(span) {
    const left = span && span.length - 0.4 + span.panel * this.width;
    window.Plotly.relayout(this.plot, {
      shapes: span?.span ? [this.look.band(span.panel, left, left + this.width)] : [],
    }); // the prefill's token is in no span
  }
}

// Where the time of each panel went, as its clock measured it: by the kind of the passes. What an
// MTP head costs is in the pass that it belongs to.
const TIMES = {
  prefill: [t("time.prefill"), "--race-soft", "."],
  full: [t("time.full"), "--origin-full", ""],
  refill: [t("time.refill"), "--origin-full", "/"],
  late: [t("time.late"), "--origin-late", ""],
  mtp: [t("time.mtp"), "--origin-mtp", ""],
  verify: [t("time.verify"), "--origin-draft", "x"],
};

/**
 * The key in TIMES of a step.
 * @param {Step} step
 */
function timeOf(step) {
  const kinds = new Set(step.passes.map((pass) => pass.kind));
  for (const kind of ["prefill", "verify", "late"]) if (kinds.has(kind)) return kind;
  if (step.tokens.some((token) => token.origin === "mtp")) return "mtp";
  const refills = step.passes.some(({ runs }) => runs.some((run) => run[2] > runs.at(-1)[2])); // the middle layers catch up on positions of the last cycle
  return refills ? "refill" : "full";
}

class TimeFigure extends Figure {
  traces() {
    this.y = this.names();
    return Object.values(TIMES).map(([name, color, shape]) => ({
      type: "bar",
      orientation: "h",
      name,
      x: [],
      y: [],
      marker: this.look.marker(color, shape),
      hovertemplate: "%{x:.2f} s: %{fullData.name}<extra>%{y}</extra>",
    }));
  }

  layout() {
    const layout = this.look.layout(t("chart.seconds"), "");
    return {
      ...layout,
      barmode: "stack",
      bargap: 0.35,
      margin: { ...layout.margin, l: 20 },
      yaxis: {
        ...layout.yaxis,
        automargin: true,
        title: {},
        autorange: "reversed",
        type: "category",
      },
    };
  }

  draw() {
    const panels = this.panels(),
      keys = Object.keys(TIMES);
    const seconds = keys.map((key) => panels.map((panel) => (panel.times[key] || 0) / 1000));
    window.Plotly.restyle(
      this.plot,
      {
        x: seconds,
        y: keys.map(() => this.y),
        showlegend: seconds.map((row) => row.some((value) => value > 0)),
      },
      keys.map((_, i) => i),
    );
  }
}
