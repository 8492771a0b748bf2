// What outlives a reload of the page, in the tab's own storage: the controls, the race on screen,
// the chat. Gradio reloads the page by itself once a connection that broke off is there again; the
// server knows nothing then of who was here before.

const MEMORY = "dmtd-demo";
const REMEMBER_MS = 400; // after the last touch of a control
const SILENCE_MS = 3000; // so long nothing came of a race: is the server still there?
const STREAM = "/queue/data"; // of Gradio's address of what the server tells of its events

// The tab's storage; null where the browser blocks it.
function tabStorage() {
  try {
    window.sessionStorage.setItem(`${MEMORY}-try`, "");
    window.sessionStorage.removeItem(`${MEMORY}-try`);
    return window.sessionStorage;
  } catch {
    return null;
  }
}

class Memory {
  // view: the race view.
  constructor(view) {
    this.view = view;
    this.storage = tabStorage();
    this.values = null; // of the controls, as Run hands them over
    this.chat = null; // {turns, answers} of the last race of the chat: the server makes the chat anew of them
    this.kept = null; // what the page was before it was loaded again
    this.heard = 0; // when something came of the race
    this.lost = false;
    this.asked = 0; // when the race was asked for
    this.cut = false; // the stream that brought it has ended
    for (const touch of ["input", "change", "click"])
      document.addEventListener(touch, (event) => {
        if (event.isTrusted) this.soon();
      });
    document.addEventListener("visibilitychange", () => {
      if (document.visibilityState === "hidden") this.save();
    });
    window.addEventListener("pagehide", () => this.save());
    window.addEventListener("beforeunload", (event) => {
      if (!this.save() && (this.values || this.chat)) event.preventDefault();
    });
    setInterval(() => this.listen(), 1000);
    // Gradio's page takes a stream that ends as it should, by a server between here and ours, for
    // one that has nothing to say
    new PerformanceObserver((list) => {
      for (const { name, startTime } of list.getEntries())
        if (name.includes(STREAM) && (startTime >= this.asked || this.heard > this.asked))
          this.cut = this.view.racing;
    }).observe({ type: "resource" });
  }

  // A race is asked for.
  begin() {
    this.asked = this.heard = performance.now();
    this.cut = false;
    clearTimeout(this.timer); // the race brings the controls with it
  }

  soon() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      if (!this.view.tour.on) document.querySelector("#remember")?.click();
    }, REMEMBER_MS);
  }

  // A line of a race that runs.
  hear(record) {
    this.heard = performance.now();
    if (this.lost && this.view.racing) this.view.status.textContent = t("race.running");
    this.lost = false;
    if (record.type === "layout" && record.clear) this.chat = null;
    if (record.type === "page") this.hearing = !this.view.tour.on;
    if (!this.hearing) return;
    if (record.type === "page")
      this.chat = { turns: record.turns, answers: record.turns.map(() => "") };
    if (record.type === "step")
      this.chat.answers[record.panel] += record.tokens.map((token) => token.text).join("");
  }

  async listen() {
    if (!this.view.racing || this.asking || performance.now() - this.heard < SILENCE_MS) return;
    const server = window.gradio_config;
    this.asking = true;
    try {
      await fetch(`${server?.root ?? ""}${server?.api_prefix ?? ""}/app_id`, {
        cache: "no-store",
        signal: AbortSignal.timeout(SILENCE_MS),
      });
    } catch {
      this.lost = true;
      if (this.view.racing) this.view.status.textContent = t("race.lost");
    }
    this.asking = false;
    if (this.cut && !this.lost) this.breakOff();
  }

  // Nothing more comes of the race: what came is shown, by the page anew, whose Gradio waits for
  // nothing.
  breakOff() {
    if (!this.view.racing || performance.now() - this.heard < SILENCE_MS) return;
    this.cut = false;
    if (this.save()) location.reload();
    else this.view.setStatus("stopped", t("race.broken"));
  }

  // Whether it could be stored, if need be without the race.
  save() {
    const { view } = this;
    if (!this.storage) return false;
    if (view.tour.on) return true; // what it was before stays
    const prompt = /** @type {HTMLTextAreaElement | null} */ (
      document.querySelector("#prompt textarea")
    );
    const values = this.values && prompt ? [prompt.value, ...this.values.slice(1)] : this.values;
    const shown = view.tape.header && !view.recorded && !document.documentElement.dataset.source;
    const race = shown
      ? {
          lines: recordLines(view.tape),
          broken: view.racing,
          status: view.root.dataset.status,
          sentence: view.ending || view.status.textContent,
          notes: [...view.notes.children].map((note) => note.textContent),
        }
      : null;
    const state = {
      address: location.search + location.hash,
      values,
      chat: this.chat,
      reply: view.reply.box.value,
      race,
    };
    for (const part of [state, { ...state, race: null }]) {
      try {
        this.storage.setItem(MEMORY, JSON.stringify(part));
        return true;
      } catch {
        // it is full
      }
    }
    return false;
  }

  // As the page was loaded again, at the same address: the race on screen, at once; the rest by way
  // of the server (kept).
  bringBack() {
    const [arrival] = /** @type {PerformanceNavigationTiming[]} */ (
      performance.getEntriesByType("navigation")
    );
    if (arrival?.type === "navigate" && !document.wasDiscarded) return;
    try {
      const kept = JSON.parse(this.storage.getItem(MEMORY));
      if (kept?.address !== location.search + location.hash) return;
      this.kept = kept;
      ({ values: this.values, chat: this.chat } = kept);
      this.view.reply.box.value = kept.reply;
      if (kept.race) this.show(kept.race);
      if (this.chat) this.offerReply();
    } catch {
      // of another version of this page, or nothing at all
    }
  }

  show({ lines, broken, status, sentence: said, notes }) {
    const { view } = this,
      records = parseRecord(lines);
    view.begin({
      type: "page",
      turns: /** @type {Header} */ (records[0]).conversations,
      notes: [],
    });
    view.notes.replaceChildren(...notes.map((note) => el("p", { class: "note" }, note)));
    view.takeAll(records);
    if (broken) {
      view.panels.forEach((panel) => {
        if (!panel.summary)
          view.take({
            type: "end",
            panel: panel.index,
            stop: "broken",
            tokens: panel.tokens.length,
            full_passes: panel.fullPasses,
          });
      });
    }
    view.setStatus(broken ? "stopped" : status, broken ? t("race.broken") : said);
    view.drawAll();
  }

  // Gradio's button for it may come after this script.
  offerReply() {
    if (document.querySelector("#go-on")) this.view.reply.began("again");
    else setTimeout(() => this.offerReply(), 100);
  }
}
