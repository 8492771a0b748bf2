// The race view: takes the JSON lines of a race as they grow (dmtd_demo/ui/stream.py), reads only what is new, and draws it.
// `element`, `props` and `watch` come from Gradio's HTML component.

const READY = "Ready. Press Run: every token takes the colour of the computation that made it.";

const DRAW_SHARE = 2;       // after a drawing that took t, leave the page alone for twice as long
const MOST_WAIT_MS = 250;

class RaceView {
  constructor(root) {
    this.root = root;
    this.panels = [];
    this.run = "";           // the id of the race on screen: a new one starts from nothing
    this.taken = 0;          // lines of its record that have come
    this.waiting = [];       // those of them that are not drawn yet
    this.nextDraw = 0;
    this.forgotten = "";     // the id of a race that a new chat has left behind
    this.status = el("p", { class: "status", role: "status", "aria-live": "polite" });
    this.notes = el("div", { class: "notes" });
    this.legend = el("div", { class: "legend", role: "group", "aria-label": "Origins of the tokens; press one to show only its tokens" });
    this.grid = el("div", { class: "panels" });
    this.table = new SummaryTable();
    const rates = el("div", { id: "chart-tps", role: "img", "aria-label": "Chart: tokens per second of each panel over its own clock" });
    const spans = el("div", { id: "chart-span", role: "img", "aria-label": "Chart: how many spans of each length each panel had" });
    const figures = el("div", { class: "charts" },
      el("figure", {}, el("figcaption", {}, `Tokens per second, over the last ${RATE_WINDOW} tokens`), rates),
      el("figure", {}, el("figcaption", {}, "Span lengths: tokens that one full pass paid for"), spans));
    this.spaces = el("button", { type: "button", class: "spaces", "aria-pressed": "false", "data-hint": "Show spaces as ·, line breaks as ⏎ and tabs as ⇥." }, "␣ white space");
    root.replaceChildren(this.grid, el("div", { class: "bar" }, this.status, el("div", { class: "reading" }, this.legend, this.spaces)), this.notes, figures, this.table.node);
    this.charts = new Charts(rates, spans, props.plotly, () => this.panels);
    this.tooltip = new Tooltip(root, () => this.panels, props.hints || {}, (span) => this.charts.mark(span));
    this.legend.addEventListener("click", (event) => this.filter(event.target.closest("button")));
    this.spaces.addEventListener("click", () => this.showSpaces(this.spaces.getAttribute("aria-pressed") !== "true"));
    root.addEventListener("copy", (event) => this.copySelection(event));
    this.setStatus("idle", READY);
  }

  setStatus(state, text) {
    this.root.dataset.status = state;
    this.stopping = false;
    if (text) this.status.textContent = text;
    document.documentElement.dataset.race = state;   // lets the buttons outside this component show what they can do now
    document.querySelector("#run")?.setAttribute("aria-disabled", String(state === "running"));
    document.querySelector("#stop")?.setAttribute("aria-disabled", String(state !== "running"));
  }

  // What a running race is doing; not said over "Stopping …".
  setStage(stage, text) {
    this.stage = stage;
    if (!this.stopping) this.status.textContent = text;
  }

  setPanelCount(count) {
    while (this.panels.length > count) this.panels.pop().node.remove();
    while (this.panels.length < count) {
      const panel = new Panel(this.panels.length);
      panel.spaced = this.spaces.getAttribute("aria-pressed") === "true";
      this.panels.push(panel);
      this.grid.append(panel.node);
    }
    this.grid.style.setProperty("--count", count);
  }

  clear() {
    this.stage = "";
    this.tooltip.unpin();
    this.panels.forEach((panel) => panel.clear());
    this.notes.replaceChildren();
    this.charts.reset();
    this.table.draw(this.panels);
    this.drawAll();
  }

  update(value) {
    const [head, ...lines] = (value || "").split("\n");
    if (!lines.length) return;
    const { run, first } = JSON.parse(head);
    if (run && run === this.forgotten) return;
    if (run !== this.run || !run) {
      this.run = run;
      this.taken = 0;
      this.waiting = [];
    }
    lines.pop();   // what follows the last line's end
    if (first > this.taken) return;   // events were missed: the last one has everything
    this.waiting.push(...lines.slice(this.taken - first));
    this.taken = Math.max(this.taken, first + lines.length);
    // Drawing costs layout and paint: on a slow machine it happens less often than events come, never later than the end.
    const over = this.waiting.some((line) => /^\{"type": ?"(over|refused|layout|page)"/.test(line));
    const delay = over ? 0 : this.nextDraw - performance.now();
    clearTimeout(this.timer);
    if (delay <= 0) this.draw();
    else this.timer = setTimeout(() => this.draw(), delay);
  }

  draw() {
    const began = performance.now();
    const follow = new Set(this.panels.filter((panel) => panel.atEnd));   // asked once, before the text grows: it costs a layout
    for (const line of this.waiting.splice(0)) this.take(JSON.parse(line), follow);
    this.drawAll();
    for (const panel of follow) panel.scroll.scrollTop = panel.scroll.scrollHeight;
    this.nextDraw = performance.now() + Math.min(MOST_WAIT_MS, DRAW_SHARE * (performance.now() - began));
  }

  take(record, follow) {
    const panel = this.panels[record.panel];
    switch (record.type) {
      case "layout":   // how many panels to show; not a race
        if (record.panels !== this.panels.length || record.clear) {
          this.setPanelCount(record.panels);
          this.clear();
          this.setStatus("idle", READY);
        }
        break;
      case "page":     // a race begins: the conversation of each panel, and what there is to warn about
        this.setPanelCount(record.turns.length);
        this.clear();
        record.turns.forEach((messages, index) => { this.panels[index].showTurns(messages); follow.add(this.panels[index]); });
        this.notes.replaceChildren(...record.notes.map((note) => el("p", { class: "note" }, note)));
        if (!this.stopping) this.setStatus("running", "Warming up …");
        break;
      case "header":
        record.panels.forEach((entry) => this.panels[entry.panel].begin(entry));
        this.table.draw(this.panels);
        this.describeSampling(record.sampling);
        this.charts.reset();
        break;
      case "step":
        panel.addStep(record);
        if (this.stage !== "steps") this.setStage("steps", "Running …");
        break;
      case "audit":
        panel.audit(record.agrees);
        break;
      case "end":      // a panel has come to its end; its summary follows with the audit, after the race
      case "summary":
        panel.finish(record);
        if (record.type === "end" && this.panels.every((each) => each.summary)) this.setStage("audit", "Audit: asking ar about every token …");
        this.table.draw(this.panels);
        break;
      case "refused":  // the race did not begin: what is on screen stays
      case "over":
        this.setStatus(record.status, sentence(record.message) || this.verdict(record.status));
        break;
    }
  }

  verdict(status) {
    if (status === "stopped") return "Stopped.";
    const base = this.panels[0].tokensPerSecond;
    const ratios = this.panels.slice(1).filter((panel) => panel.tokensPerSecond && base)
      .map((panel) => `panel ${panel.index + 1} ${ratio(panel.tokensPerSecond / base)}`);
    return ratios.length ? `Done. Against panel 1: ${ratios.join(", ")}.` : "Done.";
  }

  describeSampling(sampling) {
    const node = document.querySelector("#sampling-note");
    if (node) node.textContent = sampling.temperature > 0 ? `sampled at temperature ${sampling.temperature}` : "greedy";
  }

  drawAll() {
    this.panels.forEach((panel) => panel.drawNumbers(this.panels[0]));
    this.drawLegend();
    this.charts.dirty = true;
  }

  drawLegend() {
    const counts = {};
    for (const panel of this.panels) for (const [origin, count] of Object.entries(panel.origins)) counts[origin] = (counts[origin] || 0) + count;
    const differs = this.panels.reduce((sum, panel) => sum + panel.disagreements, 0);
    const items = [...new Set([...ALWAYS_LISTED, ...Object.keys(counts)])].map((key) => [key, ORIGINS[key]?.name || key, ORIGINS[key]?.hint || "", counts[key] || 0]);
    if (differs) items.push(["differs", "not ar's choice", AUDIT_HINT, differs]);
    const wanted = items.map(([key]) => key).join();
    if (this.legend.dataset.keys !== wanted) {   // the buttons stay while only counts change, so that they can be pressed
      this.legend.dataset.keys = wanted;
      this.legend.replaceChildren(...items.map(([key, name, hint]) => el("button", { type: "button", "data-key": key, "data-hint": hint, "aria-pressed": "false" },
        el("span", { class: "swatch", "aria-hidden": "true" }, key === "differs" ? "≠" : "ab"), el("span", {}, name), el("b", {}))));
      delete this.root.dataset.only;
    }
    items.forEach(([, , , count], index) => { this.legend.children[index].querySelector("b").textContent = count.toLocaleString("en"); });
  }

  filter(button) {
    if (!button) return;
    const on = button.getAttribute("aria-pressed") !== "true";
    for (const other of this.legend.children) other.setAttribute("aria-pressed", String(on && other === button));
    if (on) this.root.dataset.only = button.dataset.key;
    else delete this.root.dataset.only;
  }

  showSpaces(on) {
    this.spaces.setAttribute("aria-pressed", String(on));
    this.panels.forEach((panel) => panel.showSpaces(on));
  }

  // What is copied out of the text of one panel is its tokens' own text, also where the page shows signs for white space.
  copySelection(event) {
    const selection = document.getSelection();
    const own = (node) => (node instanceof Element ? node : node?.parentElement)?.closest("[data-panel]");
    const text = own(selection.anchorNode);
    if (!text || text !== own(selection.focusNode) || this.spaces.getAttribute("aria-pressed") !== "true") return;
    const tokens = this.panels[Number(text.dataset.panel)].tokens;
    event.clipboardData.setData("text/plain", tokens.filter((_, index) => selection.containsNode(text.children[index], true)).map((token) => token.text).join(""));
    event.preventDefault();
  }
}

const view = new RaceView(element.querySelector(".race"));
watch("value", () => view.update(props.value));
view.update(props.value);

// What the buttons outside of this component call (the js= of their listeners in page.py).
let clicked = "";   // the id of the race that was asked for last: Stop names it, also while it waits for the device
window.dmtdRace = {
  start() {
    if (view.root.dataset.status === "running") return clicked;   // Gradio drops a second Run itself
    clicked = crypto.randomUUID ? crypto.randomUUID() : `${Date.now()}-${Math.random()}`;   // randomUUID needs https or localhost
    view.setStatus("running", "Waiting for the device …");
    return clicked;
  },
  stop() {
    if (view.root.dataset.status === "running") {
      view.status.textContent = "Stopping …";
      view.stopping = true;
    }
    return clicked;
  },
  forget() {
    view.forgotten = clicked;
    return clicked;
  },
  failed() {   // Gradio has said why in its own message: the queue is full, the connection is lost
    if (view.root.dataset.status === "running") view.setStatus("error", "The race did not run: the app is busy or cannot be reached. Please try again.");
  },
};
