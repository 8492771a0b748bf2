// The live charts, drawn by Plotly: one after the other, one each tick, whatever the tokens do:
// drawing costs more than anything else on the page.

const TICK_MS = 125;
const CHART_SHARE = 9; // while tokens come: after a chart that took t, no other for so many times t
const OUT_OF_SIGHT_MS = 1000; // likewise: between drawings of charts that nobody sees

class Charts {
  // source: the address of Plotly's script; "" in an exported file, which has `pictures` of the
  // charts instead: [{caption, source, paper}].
  // held(): whether the page is kept still.
  constructor(source, pictures, panels, held) {
    this.panels = panels;
    this.held = held;
    this.ready = false;
    this.marked = null;
    this.nextDraw = 0;
    this.racing = false;
    this.figures = pictures
      ? []
      : [
          new LineFigure(
            "chart-tps",
            t("chart.tps", { tokens: RATE_WINDOW }),
            t("chart.tps.about"),
            this,
            panels,
            (panel) => panel.rate,
            t("unit.speed"),
          ),
          new SpanFigure("chart-span", t("chart.span"), t("chart.span.about"), this, panels),
          new LineFigure(
            "chart-race",
            t("chart.race"),
            t("chart.race.about"),
            this,
            panels,
            (panel) => panel.curve,
            t("unit.tokens"),
          ),
          new TimeFigure("chart-time", t("chart.time"), t("chart.time.about"), this, panels),
        ];
    this.stale = new Set();
    this.emptied = new Set(); // hidden until they are drawn for the race on screen
    this.nextUnseen = 0;
    const figures = pictures
      ? pictures.map((picture) =>
          el(
            "figure",
            {},
            el("figcaption", {}, picture.caption),
            el("img", {
              src: picture.source,
              alt: picture.caption,
              style: `background: ${picture.paper}`,
            }),
          ),
        )
      : this.figures.map((figure) =>
          el(
            "figure",
            {},
            el(
              "figcaption",
              {},
              figure.caption,
              el("span", { class: "saves" }, this.saver(figure, "png"), this.saver(figure, "svg")),
            ),
            figure.plot,
          ),
        );
    this.node = el("div", { class: "charts" }, ...figures);
    if (pictures) return;
    this.inSight = new Set();
    const seen = new IntersectionObserver((entries) => {
      for (const { target, isIntersecting } of entries)
        this.inSight[isIntersecting ? "add" : "delete"](target);
    });
    for (const { plot } of this.figures) seen.observe(plot);
    const load = () => this.load(source); // a second of work on a laptop: after the page has come to rest
    if (window.requestIdleCallback) window.requestIdleCallback(load, { timeout: 3000 });
    else setTimeout(load, 500);
    setInterval(() => this.tick(), TICK_MS);
    // Gradio and the page's own button switch between light and dark with a class.
    const observer = new MutationObserver(() => this.reset());
    for (const node of [document.documentElement, document.body])
      observer.observe(node, { attributes: true, attributeFilter: ["class"] });
  }

  load(source) {
    if (window.Plotly) return this.start();
    const script = el("script", { src: source, async: true });
    script.onload = () => this.start();
    script.onerror = () => {
      for (const { plot } of this.figures) plot.textContent = t("chart.no_plotly", { source });
    };
    document.head.append(script);
  }

  start() {
    this.ready = true;
    this.reset();
  }

  color(name) {
    return getComputedStyle(this.node).getPropertyValue(name).trim();
  }

  marker(name, shape) {
    return {
      color: this.color(name),
      pattern: {
        shape,
        fillmode: "overlay",
        fgcolor: this.color("--race-paper"),
        size: 6,
        solidity: 0.25,
      },
    };
  }

  band(panel, x0, x1) {
    const color = this.color(`--panel-${panel}`);
    return {
      type: "rect",
      yref: "paper",
      y0: 0,
      y1: 1,
      x0,
      x1,
      fillcolor: color,
      opacity: 0.3,
      line: { color, width: 1.5 },
    };
  }

  layout(x, y, range = {}) {
    const ink = this.color("--race-ink"),
      soft = this.color("--race-soft"),
      line = this.color("--race-line");
    const axis = {
      gridcolor: line,
      linecolor: line,
      zerolinecolor: line,
      tickfont: { size: 11, color: soft },
      fixedrange: true,
      rangemode: "tozero",
    };
    const titled = (text) => ({ text, font: { size: 11, color: soft }, standoff: 6 });
    return {
      font: { family: getComputedStyle(this.node).fontFamily, color: ink, size: 12 },
      margin: { l: 48, r: 14, t: 30, b: 38 },
      autosize: true,
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      legend: {
        orientation: "h",
        x: 0,
        xanchor: "left",
        y: 1.02,
        yanchor: "bottom",
        font: { size: 11, color: ink },
        traceorder: "normal",
      },
      showlegend: true,
      barmode: "group",
      hoverlabel: { font: { size: 12 } },
      xaxis: { ...axis, title: titled(x), ...range },
      yaxis: { ...axis, title: titled(y) },
    };
  }

  // Empty charts for the panels as they are, in the colours as they are, and then their data. While
  // a race runs, which building them would slow down, each one as its turn comes.
  reset() {
    if (!this.ready) return;
    for (const figure of this.figures) {
      if (this.racing) this.empty(figure);
      else figure.reset();
    }
    this.nextUnseen = performance.now() + OUT_OF_SIGHT_MS;
    this.changed();
  }

  empty(figure) {
    this.emptied.add(figure);
    figure.plot.classList.add("emptied");
    for (const trace of figure.plot.data || []) trace.x = trace.y = [];
  }

  changed() {
    for (const figure of this.figures) this.stale.add(figure);
  }

  tick() {
    const now = performance.now();
    if (this.held()) return;
    if (!this.racing) return this.drawOne();
    if (now < this.nextDraw) return;
    const seen = [...this.stale].find(({ plot }) => this.inSight.has(plot));
    if (!seen && now < this.nextUnseen) return;
    if (!seen) this.nextUnseen = now + OUT_OF_SIGHT_MS;
    this.drawOne(seen);
  }

  drawOne(figure = [...this.stale][0]) {
    if (!this.ready || !figure) return;
    this.stale.delete(figure);
    const began = performance.now();
    const built = this.emptied.delete(figure);
    if (built) {
      figure.reset();
      figure.plot.classList.remove("emptied");
    }
    figure.draw();
    if (built && this.marked) figure.mark(this.marked);
    afterPaint(() => {
      this.nextDraw = performance.now() + CHART_SHARE * (performance.now() - began);
    });
  }

  // The pinned span, in the charts that have a place for it. null: none.
  mark(span) {
    this.marked = span;
    if (!this.ready) return;
    // one that is still to be built gets it then
    for (const figure of this.figures) if (!this.emptied.has(figure)) figure.mark(span);
  }

  // A chart as a figure of its own, with its caption and on the page's ground.
  whole({ plot, caption }) {
    const layout = {
      ...plot.layout,
      title: {
        text: caption,
        font: { size: 15 },
        x: 0.02,
        xanchor: "left",
        y: 0.97,
        yanchor: "top",
      },
      margin: { ...plot.layout.margin, t: 84 },
      paper_bgcolor: this.color("--race-paper"),
      shapes: [],
    };
    return { data: plot.data, layout };
  }

  saver(figure, format) {
    const button = el(
      "button",
      {
        type: "button",
        "aria-label": t("chart.save", { format: format.toUpperCase(), caption: figure.caption }),
      },
      format.toUpperCase(),
    );
    button.addEventListener("click", () => {
      if (!this.ready) return;
      while (this.stale.size) this.drawOne();
      window.Plotly.downloadImage(this.whole(figure), {
        format,
        width: 960,
        height: 480,
        scale: format === "png" ? 2 : 1,
        filename: figure.plot.id,
      });
    });
    return button;
  }

  // The charts as they stand, for the exported file.
  async pictures() {
    if (!this.ready) return [];
    while (this.stale.size) this.drawOne();
    return Promise.all(
      this.figures.map(async ({ plot, caption }) => ({
        caption,
        paper: this.color("--race-paper"),
        source: await window.Plotly.toImage(plot, {
          format: "svg",
          width: plot.clientWidth,
          height: plot.clientHeight,
        }),
      })),
    );
  }
}
