// The two live charts, drawn by Plotly: tokens per second over each panel's own clock, and how long its spans were.
// Redrawn at 4 Hz whatever the tokens do: drawing costs more than anything else on the page.

const REDRAW_MS = 250;
const DASHES = ["solid", "dash", "dashdot", "dot"];          // panels are told apart without colour too
const PATTERNS = ["", "/", "x", "."];

class Charts {
  constructor(rates, spans, source, panels) {
    this.rates = rates;
    this.spans = spans;
    this.panels = panels;
    this.ready = false;
    this.dirty = false;
    this.load(source);
    setInterval(() => this.draw(), REDRAW_MS);
    // Gradio and the page's own button switch between light and dark with a class.
    const observer = new MutationObserver(() => this.restyle());
    for (const node of [document.documentElement, document.body]) observer.observe(node, { attributes: true, attributeFilter: ["class"] });
  }

  load(source) {
    if (window.Plotly) return this.start();
    const script = el("script", { src: source, async: true });
    script.onload = () => this.start();
    script.onerror = () => {
      for (const node of [this.rates, this.spans]) node.textContent = `The charts need Plotly's script, and ${source} could not be loaded.`;
    };
    document.head.append(script);
  }

  start() {
    this.ready = true;
    this.reset();
  }

  color(name) {
    return getComputedStyle(this.rates).getPropertyValue(name).trim();
  }

  layout(x, y, range = {}) {
    const ink = this.color("--race-ink"), soft = this.color("--race-soft"), line = this.color("--race-line");
    const axis = { gridcolor: line, linecolor: line, zerolinecolor: line, tickfont: { size: 11, color: soft }, fixedrange: true, rangemode: "tozero" };
    const titled = (text) => ({ text, font: { size: 11, color: soft }, standoff: 6 });
    return {
      font: { family: getComputedStyle(this.rates).fontFamily, color: ink, size: 12 },
      margin: { l: 48, r: 14, t: 30, b: 38 }, autosize: true, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      legend: { orientation: "h", x: 0, xanchor: "left", y: 1.02, yanchor: "bottom", font: { size: 11, color: ink } }, showlegend: true,
      barmode: "group", hoverlabel: { font: { size: 12 } },
      xaxis: { ...axis, title: titled(x), ...range }, yaxis: { ...axis, title: titled(y) },
    };
  }

  names() {
    return this.panels().map((panel) => `${panel.index + 1} ${panel.spec.textContent || "–"}`);
  }

  // Empty charts with one trace per panel: at the start of a race.
  reset() {
    if (!this.ready) return;
    const config = { displayModeBar: false, responsive: true };
    const names = this.names();
    const lines = this.panels().map((panel, i) => ({ type: "scatter", mode: "lines", name: names[i], x: [], y: [],
      line: { color: this.color(`--panel-${i}`), width: 2.5, dash: DASHES[i] }, hovertemplate: "%{y:.0f} tokens/s at %{x:.2f} s<extra>%{fullData.name}</extra>" }));
    const width = 0.8 / names.length;   // said outright: Plotly would take it from the gaps in the data
    const bars = this.panels().map((panel, i) => ({ type: "bar", name: names[i], x: [], y: [], width, offset: i * width - 0.4,
      marker: { color: this.color(`--panel-${i}`), pattern: { shape: PATTERNS[i], fillmode: "overlay", fgcolor: this.color("--race-paper"), size: 6, solidity: 0.25 } },
      hovertemplate: "%{y} spans of %{x}<extra>%{fullData.name}</extra>" }));
    window.Plotly.newPlot(this.rates, lines, this.layout("seconds on the panel's own clock", "tokens/s"), config);
    window.Plotly.newPlot(this.spans, bars, this.layout("tokens in a span", "spans", { dtick: 1, tick0: 1, range: [0.4, 6.6] }), config);
    this.dirty = true;
  }

  draw() {
    if (!this.ready || !this.dirty) return;
    this.dirty = false;
    const panels = this.panels();
    const fresh = panels.filter((panel) => panel.rate.x.length);
    if (fresh.length) {
      window.Plotly.extendTraces(this.rates, { x: fresh.map((panel) => panel.rate.x), y: fresh.map((panel) => panel.rate.y) }, fresh.map((panel) => panel.index));
      for (const panel of fresh) panel.rate = { x: [], y: [] };
    }
    const lengths = panels.map((panel) => Object.keys(panel.spanLengths).map(Number).sort((a, b) => a - b));
    const longest = Math.max(6, ...lengths.flat());
    window.Plotly.update(this.spans, { x: lengths, y: panels.map((panel, i) => lengths[i].map((length) => panel.spanLengths[length])) },
      { "xaxis.range": [0.4, longest + 0.6] });
  }

  // The pinned span, in both charts: its stretch of the panel's clock, and the bar that counts it. null: none.
  mark(span) {
    if (!this.ready) return;
    if (!span) {
      window.Plotly.relayout(this.rates, { shapes: [] });
      window.Plotly.relayout(this.spans, { shapes: [] });
      return;
    }
    const color = this.color(`--panel-${span.panel}`);
    const band = { type: "rect", yref: "paper", y0: 0, y1: 1, fillcolor: color, opacity: 0.3, line: { color, width: 1.5 } };
    const width = 0.8 / this.panels().length, left = span.length - 0.4 + span.panel * width;
    window.Plotly.relayout(this.rates, { shapes: [{ ...band, x0: span.from / 1000, x1: span.to / 1000 }] });
    window.Plotly.relayout(this.spans, { shapes: span.span ? [{ ...band, x0: left, x1: left + width }] : [] });   // the prefill's token is in no span
  }

  // Colours again after a change between light and dark.
  restyle() {
    if (!this.ready) return;
    const indices = this.panels().map((panel) => panel.index);
    const colors = indices.map((i) => this.color(`--panel-${i}`));
    const ink = this.color("--race-ink"), soft = this.color("--race-soft"), line = this.color("--race-line");
    const layout = { "font.color": ink, "legend.font.color": ink };
    for (const axis of ["xaxis", "yaxis"]) {
      Object.assign(layout, { [`${axis}.gridcolor`]: line, [`${axis}.linecolor`]: line, [`${axis}.zerolinecolor`]: line,
        [`${axis}.tickfont.color`]: soft, [`${axis}.title.font.color`]: soft });
    }
    window.Plotly.update(this.rates, { "line.color": colors }, layout, indices);
    window.Plotly.update(this.spans, { "marker.color": colors, "marker.pattern.fgcolor": indices.map(() => this.color("--race-paper")) }, layout, indices);
  }
}
