// The race view: takes the JSON lines of a race as they grow (dmtd_demo/web/wire.py), reads only
// what is new, and draws it. `element`, `props` and `watch` come from Gradio's HTML component;
// `given` is what never changes (dmtd_demo/ui/race_view.py).

const DRAW_SHARE = 5; // after a drawing that took t, its layout and paint included, leave the page alone for so many times t
const MOST_WAIT_MS = 300;
// as in assets/style/screens.css, for its rules that begin at the root
const SCREENS = {
  phone: matchMedia("(max-width: 520px)"),
  low: matchMedia("(max-height: 760px) and (min-width: 901px)"),
  lower: matchMedia("(max-height: 660px) and (min-width: 901px)"),
};
const RECEIPT_MS = 500;

class RaceView {
  constructor(root) {
    this.root = root;
    root.setAttribute("aria-label", t("race"));
    this.panels = [];
    this.run = ""; // the id of the race on screen: a new one starts from nothing
    this.taken = 0; // lines of its record that have come
    this.waiting = []; // those of them that are not drawn yet
    this.nextDraw = 0;
    this.nextReceipt = 0;
    this.forgotten = ""; // the id of a race that a new chat has left behind
    this.racing = false; // a race runs on the device
    this.ending = ""; // what is said at the end of a race that is over, but still being played
    this.recorded = false; // what plays is the race that was recorded for those who have just come
    this.joining = false; // what comes is a race that others have seen: shown at once
    this.status = el("p", { class: "status", role: "status", "aria-live": "polite" });
    this.notes = el("div", { class: "notes" });
    this.legend = new Legend(root, () => this.panels);
    this.tape = new Tape();
    this.player = new Player(
      this.tape,
      (counts, moved) => this.showUntil(counts, moved),
      () => this.presenter.focused,
      () => this.paced(),
    );
    this.grid = el("div", { class: "panels" });
    this.table = new SummaryTable();
    this.charts = new Charts(
      given.plotly,
      given.pictures,
      () => this.panels,
      () => this.player.held,
    );
    this.keep = new Keep(
      this.tape,
      given.template || "",
      () => this.pictures(),
      (name, records) => this.open(name, records),
      (text) => {
        this.status.textContent = text;
      },
    );
    this.legend.node.append(this.keep.node);
    this.before = new Before(this);
    this.legend.node.append(this.before.button);
    this.reply = new Reply(
      this.tape,
      () => this.racing,
      (text) => {
        this.status.textContent = text;
      },
    );
    this.bar = el("div", { class: "bar" }, this.status, this.legend.node);
    root.replaceChildren(
      this.grid,
      this.player.node,
      this.bar,
      this.reply.node,
      this.notes,
      this.charts.node,
      this.table.node,
    );
    this.tooltip = new Tooltip(
      root,
      () => this.panels,
      given.hints || {},
      (span, index) => {
        this.charts.mark(span);
        this.panels.forEach((panel) => panel.showPass(panel.index === span?.panel ? index : null));
        this.branch.pinned(span, index);
      },
    );
    this.presenter = new Presenter(this.grid, () => this.panels);
    this.keys = new Keys({
      presenter: () => this.presenter.toggle(),
      focus: (node) => this.presenter.next(node),
      run: () => this.runOrReplay(),
      pause: () => this.player.playOrPause(),
      step: (direction) => this.player.step(direction),
      escape: () => this.escape(),
    });
    this.starts = 0; // how often Run was heard
    this.lacking = null; // lacking.js, where there are controls
    this.how = ""; // what the race was asked for (ui/question.py)
    this.tour = new Tour(this);
    this.root.prepend(this.presenter.stage);
    this.room = new Room(this);
    this.branch = new Branch(this.tape, () => this.panels);
    /** @type {Memory | null} */
    this.memory = null; // of the page itself, not of a file that replays
    this.setStatus("idle", t("race.ready"));
  }

  setStatus(state, text) {
    this.root.dataset.status = state;
    this.ending = "";
    this.racing = state === "running";
    this.player.setRunning(this.racing);
    this.root.dataset.playing = this.playing;
    this.charts.racing = this.racing;
    this.stopping = false;
    if (text) this.status.textContent = text;
    // a long prompt may have pushed it under the window
    if (state === "error") this.status.scrollIntoView({ block: "nearest" });
    document.documentElement.dataset.race = state; // lets the buttons outside this component show what they can do now
    this.allowRun(!this.racing);
    document.querySelector("#stop")?.setAttribute("aria-disabled", String(state !== "running"));
    if (this.tour.on) this.tour.draw();
  }

  allowRun(may) {
    document.querySelector("#run")?.setAttribute("aria-disabled", String(!may));
    this.reply.setRunning(!may);
  }

  // How the race on screen is being played: data-playing.
  get playing() {
    if (this.recorded) return "recorded";
    if (this.player.first) return "slowed";
    return this.root.dataset.status === "running" ? "live" : "no";
  }

  // The race is over; where it is still being played, slowed, the page says so at that end.
  raceOver(text) {
    if (!this.player.first) return this.setStatus("done", text);
    this.racing = false;
    this.stopping = false;
    this.ending = text;
    this.allowRun(true);
    this.player.setRunning(false);
  }

  // The first playing of a race has begun, goes at another speed, or is at its end.
  paced() {
    if (this.ending && !this.player.first) {
      this.setStatus("done", this.ending);
      return this.table.draw(this.panels, this.tape);
    }
    this.root.dataset.playing = this.playing;
    if (this.recorded) this.sayRecorded();
    if (this.stopping) return;
    if (!this.player.first) {
      if (this.racing && this.stage === "steps") this.status.textContent = t("race.running");
      return;
    }
    const { rate } = this.player,
      seconds = (this.tape.duration / 1000).toFixed(2);
    const text =
      this.racing || rate === null
        ? t(this.player.held ? "race.held" : "race.measuring")
        : rate > 0.95
          ? t("race.played", { seconds })
          : t("race.slowed", {
              times: slowing(rate),
              seconds,
            });
    if (this.status.textContent !== text) this.status.textContent = text;
  }

  // What a running race is doing; not said over "Stopping …".
  setStage(stage, text) {
    this.stage = stage;
    if (!this.stopping && !this.player.first) this.status.textContent = text;
  }

  setPanelCount(count) {
    while (this.panels.length > count) this.panels.pop().node.remove();
    while (this.panels.length < count) {
      const panel = new Panel(this.panels.length);
      panel.spaced = this.legend.spaced;
      panel.fill.addEventListener("click", () =>
        this.presenter.focus(this.presenter.focused === panel.index ? null : panel.index),
      );
      this.panels.push(panel);
      this.grid.append(panel.node);
    }
    this.presenter.focus(this.presenter.focused);
    this.nameModels();
    this.lacking?.find();
  }

  // The lines under the title (ui/model_line.py): each model with its panels, of those that there
  // are.
  nameModels() {
    const lines = [...document.querySelectorAll("#model-lines [data-panels]")];
    const shown = lines.map((line) =>
      line.dataset.panels.split(",").filter((number) => Number(number) <= this.panels.length),
    );
    const several = shown.filter((numbers) => numbers.length).length > 1;
    lines.forEach((line, index) => {
      const numbers = shown[index];
      line.hidden = !numbers.length;
      line.querySelector(".whose")?.remove();
      const whose = t(numbers.length > 1 ? "model.panels" : "model.panel", {
        panels: numbers.join(t("list.comma")),
      });
      if (several && numbers.length) line.prepend(el("span", { class: "whose" }, `${whose}: `));
    });
    const weights = document.querySelector("#weights-note > [data-t]");
    if (!weights || !lines.length) return;
    weights.dataset.t = several ? "baseline.own_models" : "baseline.same_weights";
    translate(weights);
  }

  // charts: whether they are emptied at once; a race that begins names its panels first.
  clear(charts = true) {
    this.stage = "";
    this.ending = "";
    this.recorded = false;
    this.root.dataset.playing = this.playing;
    delete document.documentElement.dataset.source;
    this.tooltip.unpin();
    this.tape.clear();
    this.player.clear();
    this.panels.forEach((panel) => panel.clear());
    this.notes.replaceChildren();
    if (charts) this.charts.reset();
    this.table.draw(this.panels, this.tape);
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
    lines.pop(); // what follows the last line's end
    if (first > this.taken) return; // events were missed: the last one has everything
    if (first + lines.length <= this.taken) return; // the whole record once more
    this.waiting.push(...lines.slice(this.taken - first));
    this.taken = Math.max(this.taken, first + lines.length);
    if (performance.now() > this.nextReceipt && this.racing && !this.player.held) {
      // the server may drop from the string what has come
      this.nextReceipt = performance.now() + RECEIPT_MS;
      document.querySelector("#take")?.click();
    }
    // Drawing costs layout and paint: on a slow machine it happens less often than events come,
    // never later than the first token and the end.
    const early = this.stage !== "steps"; // no token of this race is drawn yet
    const urgent = this.waiting.some(
      (line) =>
        /^\{"type": ?"(over|refused|layout|page)"/.test(line) ||
        (early && line.startsWith('{"type":"step"')),
    );
    const delay = urgent ? 0 : this.nextDraw - performance.now();
    clearTimeout(this.timer);
    if (delay <= 0) this.draw();
    else this.timer = setTimeout(() => this.draw(), delay);
  }

  draw() {
    const began = performance.now(),
      still = this.player.held;
    const follow = new Set(still ? [] : this.panels.filter((panel) => panel.atEnd)); // asked once, before the text grows: it costs a layout
    for (const line of this.waiting.splice(0)) {
      const record = JSON.parse(line);
      this.memory?.hear(record);
      this.take(record, follow);
    }
    this.player.heard();
    this.nextDraw = performance.now() + MOST_WAIT_MS;
    if (this.player.held && still) return;
    if (this.player.following) this.drawAll();
    this.player.drawTime();
    for (const panel of follow) panel.scroll.scrollTop = panel.scroll.scrollHeight;
    afterPaint(() => {
      this.nextDraw =
        performance.now() + Math.min(MOST_WAIT_MS, DRAW_SHARE * (performance.now() - began));
    });
  }

  take(record, follow) {
    const panel = this.panels[record.panel];
    switch (record.type) {
      case "layout": // how many panels to show; not a race
        if (record.panels !== this.panels.length || record.clear) {
          this.setPanelCount(record.panels);
          this.clear();
          this.setStatus("idle", t("race.ready"));
        }
        if (record.clear) {
          this.reply.began(null);
          this.before.forget();
        }
        break;
      case "noted": // of the address: stays until a race begins
        this.notes.append(el("p", { class: "note" }, t(record.text, record.values)));
        break;
      case "page": // a race begins: the conversation of each panel, and what there is to warn about
        if (!this.tour.on && !this.recorded && document.documentElement.dataset.source !== "file")
          this.before.keep();
        this.begin(record);
        if (!this.tour.on) this.reply.began(this.how);
        this.panels.forEach((each) => follow.add(each));
        if (!this.stopping) this.setStatus("running", t("race.warming_up"));
        break;
      case "header":
        this.tape.add(record);
        record.panels.forEach((entry) =>
          this.panels[entry.panel].begin(
            entry,
            record.panels.some(
              (other) => other.decoder !== "remote" && modelName(other) !== modelName(entry),
            ),
            record.panels[0],
            this.tape.sampled,
          ),
        );
        this.table.draw(this.panels, this.tape);
        this.describeSampling(record.sampling);
        this.room.fit(); // other names in the panels' heads
        this.charts.reset();
        if (this.racing && !this.joining) this.player.begin();
        this.player.draw();
        break;
      case "step":
        this.tape.add(record);
        if (this.player.following)
          panel.show(this.tape.panels[record.panel], this.tape.panels[record.panel].length);
        if (this.stage !== "steps") this.setStage("steps", t("race.running"));
        break;
      case "audit":
        this.tape.add(record);
        panel.audit(record.agrees, record.choices);
        break;
      case "end": // a panel has come to its end; its summary follows with the audit, after the race
      case "summary":
        this.tape.add(record);
        if (panel.shown === this.tape.panels[record.panel].length) this.finish(panel);
        if (record.type === "end" && this.panels.every((each) => this.tape.summaries[each.index]))
          this.setStage("audit", t("race.audit"));
        if (!this.player.first) this.table.draw(this.panels, this.tape);
        break;
      case "waiting": // other races come first (server/turns.py)
        if (!this.stopping) this.setStatus("running", t("race.ahead", { count: record.ahead }));
        break;
      case "refused": // the race did not begin: what is on screen stays
      case "over":
        if (record.status === "done") this.raceOver(this.verdict("done"));
        else {
          if (record.type === "over" && this.player.first) this.player.toEnd(); // what there is of a race that was cut short
          this.setStatus(record.status, sentence(record.message) || this.verdict(record.status));
        }
        break;
    }
  }

  begin(page) {
    this.setPanelCount(page.turns.length);
    this.clear(false);
    this.tape.add(page);
    page.turns.forEach((messages, index) => this.panels[index].showTurns(messages));
    this.panels.forEach((panel) =>
      panel.showBefore(this.tour.on ? null : this.before.race?.figures[panel.index] || null),
    );
    this.notes.replaceChildren(
      ...page.notes.map(({ text, values }) => el("p", { class: "note" }, t(text, values))),
    );
  }

  // The records of a race that is over.
  takeAll(records) {
    for (const record of records) this.take(record);
    this.panels.forEach((panel) => {
      if (panel.summary) this.finish(panel);
    }); // who came first is known only now
  }

  // A race from a file, for replay: the records as parseRecord gives them. Nothing runs, and the
  // chat stays as it was.
  open(name, records) {
    if (this.racing) throw new Error(t("race.stop_first"));
    const [header] = records;
    this.begin({
      type: "page",
      turns:
        header.conversations?.length === header.panels.length
          ? header.conversations
          : header.panels.map(() => [{ role: "user", content: String(header.prompt ?? "") }]),
      notes: [],
    });
    this.takeAll(records);
    const models = [
      ...new Set(
        header.panels.map((panel) => [panel.model, panel.dtype].filter(isText).join(", ")),
      ),
    ].join("; ");
    this.setStatus(
      "done",
      t("race.from", {
        name: models ? `${name} (${models})` : name,
        verdict: this.verdict("done"),
      }),
    );
    this.drawAll();
    if (!document.querySelector("#panels")) return;
    const close = el("button", { type: "button" }, t("race.close_file"));
    close.addEventListener("click", () => this.leaveFile());
    document.documentElement.dataset.source = "file"; // the controls belong to no race on screen
    this.notes.append(el("p", { class: "note" }, t("race.from_file", { name }), " ", close));
  }

  // A race that was recorded plays before the first one, so that there is something to see before
  // any click.
  showRecorded(text) {
    const records = parseRecord(text),
      header = /** @type {Header} */ (records[0]),
      count = this.panels.length;
    const shown = records.filter((record) => record.type === "header" || record.panel < count);
    header.panels = header.panels.slice(0, count);
    this.begin({
      type: "page",
      turns: this.panels.map((_, index) => header.conversations?.[index] || []),
      notes: [],
    });
    this.player.following = false;
    for (const record of shown) this.take(record);
    this.recorded = true;
    this.setStatus("idle", "");
    this.player.seek(0);
    if (matchMedia("(prefers-reduced-motion: reduce)").matches) this.player.toEnd();
    else this.player.play();
    this.sayRecorded();
  }

  sayRecorded() {
    const { rate } = this.player,
      over = this.player.at >= this.tape.moments.length;
    const said = over
      ? this.verdict("done", "race.recorded.done")
      : t(rate > 0.95 ? "race.recorded.played" : "race.recorded", {
          model: modelName(this.tape.header.panels[0]),
          times: slowing(rate || 1),
          seconds: (this.tape.duration / 1000).toFixed(2),
        });
    if (this.status.textContent !== said) this.status.textContent = said;
  }

  // What is on screen, to be brought back later: by restore.
  snapshot() {
    const { header, turns, steps, summaries } = this.tape,
      { following, at } = this.player;
    const records = header
      ? [header, ...steps, ...this.tape.auditRecords, ...summaries.filter(Boolean)]
      : [];
    return {
      records,
      turns,
      following,
      at,
      count: this.panels.length,
      notes: [...this.notes.children],
      status: this.root.dataset.status,
      sentence: this.status.textContent,
      recorded: this.recorded,
      source: document.documentElement.dataset.source,
    };
  }

  restore({ records, turns, following, at, count, notes, status, sentence, source, recorded }) {
    if (records.length) this.begin({ type: "page", turns, notes: [] });
    else {
      this.setPanelCount(count);
      this.clear();
    }
    this.takeAll(records);
    if (source) document.documentElement.dataset.source = source;
    this.notes.replaceChildren(...notes);
    this.recorded = recorded;
    this.setStatus(status, sentence);
    this.drawAll();
    if (!following) this.player.seek(at);
  }

  // Of the whole race, wherever its replay stands.
  async pictures() {
    this.player.pause();
    this.player.seek(this.tape.moments.length);
    return this.charts.pictures();
  }

  leaveFile() {
    this.setPanelCount(
      Number(/** @type {HTMLInputElement} */ (document.querySelector("#panels input")).value) ||
        this.panels.length,
    );
    this.clear();
    this.setStatus("idle", t("race.ready"));
  }

  // key: of the sentence that has the verdicts of all panels.
  verdict(status, key = "finish.done") {
    if (status === "stopped") return t("race.stopped");
    const { header, summaries, panels } = this.tape;
    const names = header
      ? header.panels.map((entry) => {
          const { decoder, spec } = entry,
            what = unlike(entry, header.panels[0]); // between other weights no ratio stands alone
          const name =
            header.panels.filter((other) => other.decoder === decoder).length > 1 ? spec : decoder;
          return what ? t("finish.unlike", { name, what }) : name;
        })
      : [];
    const [base, ...others] = names.map((name, index) => ({
      name,
      compared: !this.tape.sampled && this.tape.sameTalk(index, 0),
      ms: panels[index].at(-1)?.ms,
      text: textOfSteps(panels[index]),
      ended: ["eos", "length"].includes(summaries[index]?.stop),
    }));
    const verdicts = others
      .filter((own) => own.ended && base.ended && own.ms && base.ms)
      .map((own, index) => finishOf(own, base, own.compared, index === 0));
    return verdicts.length ? t(key, { verdicts: verdicts.join(t("finish.join")) }) : t("race.done");
  }

  // A panel has come to its end on screen.
  finish(panel) {
    const ends = this.tape.panels.map((own, index) =>
      ["eos", "length"].includes(this.tape.summaries[index]?.stop)
        ? (own.at(-1)?.ms ?? Infinity)
        : Infinity,
    );
    panel.place =
      ends[panel.index] < Infinity && ends.length > 1
        ? 1 + ends.filter((ms) => ms < ends[panel.index]).length
        : 0;
    panel.finish(this.tape.summaries[panel.index]);
    for (const each of this.panels) each.part(each.summary ? this.tape.parting(each.index) : null);
  }

  describeSampling(sampling) {
    const node = document.querySelector("#sampling-note");
    if (!node || !sampling) return;
    node.dataset.t = sampling.temperature > 0 ? "baseline.sampled" : "baseline.greedy";
    node.dataset.values = JSON.stringify({ temperature: sampling.temperature });
    translate(node);
  }

  drawAll() {
    const scale = liveScale(this.panels, this.tape.duration);
    this.panels.forEach((panel) => panel.drawNumbers(this.panels[0], scale));
    this.legend.draw();
    this.charts.changed();
  }

  // The race as it was after so many moments of each panel; moved: the panel whose moment was the
  // last one.
  showUntil(counts, moved) {
    if (this.panels.some((panel, index) => (counts[index] || 0) < panel.shown))
      this.tooltip.unpin();
    let arrived = false;
    const grown = this.panels.filter((panel, index) => (counts[index] || 0) !== panel.shown);
    const follow = this.player.playing ? grown.filter((panel) => panel.atEnd) : this.panels; // who plays it may read what was written before
    this.panels.forEach((panel, index) => {
      const moments = this.tape.panels[index] || [];
      const over = panel.summary;
      panel.show(moments, counts[index] || 0);
      if (counts[index] === moments.length && this.tape.summaries[index]) this.finish(panel);
      arrived ||= !over && panel.summary;
      panel.markNewest(index === moved && !this.player.playing);
    });
    if (arrived && this.player.first)
      this.table.draw(
        this.panels,
        this.tape,
        this.panels.map((panel) => panel.summary),
      );
    this.drawAll();
    // last: the picture of a first pass takes width, and lines, from the text
    for (const panel of follow) panel.scroll.scrollTop = panel.scroll.scrollHeight;
  }

  // R: asks for a race where there is a model to run it, else plays the one on screen from its
  // start.
  runOrReplay() {
    const run = document.querySelector("#run");
    if (run) return run.click();
    this.player.seek(0);
    this.player.play();
  }

  // Esc stops the race that runs; otherwise it lets go of what the page shows, one thing at a time.
  escape() {
    if (this.tour.on) this.tour.close();
    else if (this.root.dataset.status === "running") document.querySelector("#stop")?.click();
    else this.presenter.escape();
  }
}

// The panels' controls may come after this script; a file, and the page of a lecture, have none.
function findControls() {
  const row = document.querySelector("#panel-row");
  if (!row) return setTimeout(findControls, 100);
  new Cautions(row);
  view.lacking = new Lacking(row, () => view.panels);
}

for (const [name, screen] of Object.entries(SCREENS)) {
  const mark = () => document.documentElement.toggleAttribute(`data-${name}`, screen.matches);
  screen.addEventListener("change", mark);
  mark();
}
document.title = t(given.record ? "replay.title" : "page.title");
const view = new RaceView(element.querySelector(".race"));
if (given.template) findControls();
watch("value", () => view.update(props.value));
view.update(props.value);
if (given.recorded && !new URLSearchParams(location.search).has("panel"))
  view.showRecorded(given.recorded);
if (given.record) view.open(t("race.this_file"), parseRecord(given.record));
const fromLink = () =>
  openLink(
    (name, records) => view.open(name, records),
    (text) => view.setStatus("error", text),
  );
if (given.template) {
  fromLink();
  window.addEventListener("hashchange", fromLink);
  view.memory = new Memory(view);
  view.memory.bringBack();
}

// New chat clears what is on screen: asked first, before Gradio hears of the click. The button may
// come after this script: the document listens for it.
document.addEventListener(
  "click",
  (event) => {
    if (
      event.target.closest?.("#new-chat") &&
      view.tape.header &&
      !view.recorded &&
      !window.confirm(t("race.clear"))
    )
      event.stopImmediatePropagation();
  },
  true,
);

// The lists of presets, of sampling settings and so on close as the keyboard leaves them, when
// something else is clicked, and after a choice.
document.addEventListener("focusin", (event) => {
  for (const list of document.querySelectorAll(".popover")) {
    if (!list.contains(event.target) && event.target !== document.body)
      list.querySelector(":scope > button.open")?.click();
  }
});
document.addEventListener("click", (event) => {
  if (!event.isTrusted) return; // the click that closes one list must not close the next, which has just been opened
  for (const list of document.querySelectorAll(".popover")) {
    const toggle = list.querySelector(":scope > button.open");
    if (
      toggle &&
      (!list.contains(event.target) || event.target.closest("#preset-list button:not(#copy-link)"))
    )
      toggle.click();
  }
});

// Esc closes such a list too, wherever the keyboard is, and it is back where it came from.
document.addEventListener(
  "keydown",
  (event) => {
    const toggle = event.key === "Escape" && document.querySelector(".popover > button.open");
    if (!toggle || event.defaultPrevented) return;
    event.preventDefault();
    toggle.click();
    toggle.focus();
  },
  true,
);

// A race is over on the page a moment before Gradio takes the next one, which it would drop: it is
// asked for again then.
let unsettled = false,
  early = null;
const hasten = (button) => {
  if (button && unsettled && !view.racing) early = button;
};
document.addEventListener("click", (event) => hasten(event.target.closest?.("#run, #go-on")), true);
document.addEventListener(
  "keydown",
  (event) => {
    if (event.key === "Enter" && !event.shiftKey && event.target.closest?.("#prompt"))
      hasten(document.querySelector("#run"));
  },
  true,
);

// Gradio's fields are written from left to right: here as their text goes.
const WRITTEN_IN = "#prompt textarea, #system textarea";
const direct = (box) => {
  if (box instanceof HTMLTextAreaElement && box.matches(WRITTEN_IN)) box.dir = "auto";
};
document.addEventListener("focusin", ({ target }) => direct(target));
const directed = new MutationObserver(() => {
  const box = document.querySelector(WRITTEN_IN);
  direct(box);
  if (box) directed.disconnect();
});
directed.observe(document.body, { childList: true, subtree: true });

// As the field of another model is left, what is said of it moves the button away under the mouse:
// a press on it counts wherever it is let go.
document.addEventListener("pointerdown", (event) =>
  event.target.closest?.("#model-load")?.setPointerCapture(event.pointerId),
);

// What the buttons outside of this component call (the js= of their listeners in ui/page.py).
let clicked = ""; // the id of the race that was asked for last: Stop names it, also while it waits for the device
let asked = ""; // what was asked: run, how, the values of the controls, whether it is played slowed (ui/question.py)
window.dmtdRace = {
  start(values) {
    if (view.racing || unsettled) return asked; // Gradio drops a second Run itself
    if (view.recorded) view.clear(false);
    if (view.player.first) view.player.toEnd(); // what is still being played gives way
    clicked = crypto.randomUUID ? crypto.randomUUID() : `${Date.now()}-${Math.random()}`; // randomUUID needs https or localhost
    unsettled = true;
    early = null;
    view.setStatus("running", t("race.waiting"));
    if ("phone" in document.documentElement.dataset) view.root.scrollIntoView(); // to what comes of it
    view.starts += 1;
    const [how, given] = view.tour.on ? ["tour", values] : view.reply.take(values);
    view.how = how;
    asked = JSON.stringify([clicked, how, given, view.player.speed !== "1"]);
    view.memory.begin();
    this.remember(values);
    return asked;
  },
  remember(values) {
    if (!view.tour.on) view.memory.values = values;
  },
  kept() {
    // of the page before it was loaded again, for the server
    const { values, chat } = view.memory.kept || {};
    return values || chat ? JSON.stringify([values, chat]) : "";
  },
  question: (values) => JSON.stringify(["", "", values]),
  stop() {
    if (view.racing) {
      view.status.textContent = t("race.stopping");
      view.stopping = true;
    } else view.player.toEnd();
    return clicked;
  },
  forget() {
    view.forgotten = clicked;
    return clicked;
  },
  trains(heard) {
    // Train was pressed: said at once, also where one goes on already
    const shown = document.querySelector("#train-progress");
    if (!shown?.querySelector("progress")) return heard;
    view.status.textContent = t("train.busy");
    return shown.querySelector(".prose, .html-container, div")?.innerHTML ?? shown.innerHTML;
  },
  nameModels: () => view.nameModels(),
  branch: () => JSON.stringify(view.branch.asked),
  branched: (text) => view.branch.came(text),
  taken: () => [view.run, view.taken],
  tour: view.tour,
  presenter: () => view.presenter.toggle(),
  toReply: () => view.room.toReply(),
  help: () => view.keys.help.showModal(),
  copyLink(query) {
    const button = document.querySelector("#copy-link");
    if (query) copyText(`${location.origin}${location.pathname}?${query}`, button);
    else view.setStatus("error", t("race.no_link"));
  },
  settled() {
    // Gradio would hear another Run now
    unsettled = false;
    early?.click();
  },
  failed() {
    // Gradio has said why in its own message: the queue is full, the connection is lost
    if (view.racing) view.setStatus("error", t("race.busy"));
  },
};
