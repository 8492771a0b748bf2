// The bar that plays a race on the clock that its panels share: first slowed, as soon as that clock
// has measured it, so that it can be watched; then again, in steps, or scrubbed. What is drawn is
// the record: every figure is the clock's, at whatever speed it is played.

const WATCH_MS = 12_000; // how long the slowest panel plays at the speed "watch"
const LEAST_LEFT_MS = 2000; // of that, for what is left when the race is over later than expected
const EXPECTED_TOKENS = 256; // of an answer whose end is not known yet, at most
const SLOW_ENOUGH = 0.8; // of the clock's speed, from which on a running race plays live
const FIRST_MS = 500; // of a panel's clock: by then its speed is known from its first token alone
const HELD_MS = 2000; // so long a race that is going to be played slowed has the machine for itself
const LONGEST_FRAME_MS = 500; // of what is played between two frames
const SPEEDS = {
  watch: t("player.speed.watch"),
  pass: t("player.speed.pass"),
  0.02: "0.02×",
  0.1: "0.1×",
  1: t("player.speed.own"),
};
const SPEED_KEY = "dmtd-speed";
const UNITS = {
  token: [t("player.token"), t("player.token.hint"), (moment) => moment.to > moment.from],
  pass: [t("player.pass"), t("player.pass.hint"), (moment) => moment.endsPass],
  cycle: [t("player.cycle"), t("player.cycle.hint"), (moment) => moment.endsCycle],
};

// What the address asks for, else what was chosen last. A browser may keep nothing.
function firstSpeed() {
  const asked = new URLSearchParams(location.search).get("speed");
  try {
    return [asked, localStorage.getItem(SPEED_KEY), "watch"].find((each) =>
      Object.hasOwn(SPEEDS, each ?? ""),
    );
  } catch {
    return Object.hasOwn(SPEEDS, asked ?? "") ? asked : "watch";
  }
}

class Player {
  // show(counts, moved): draws each panel as it was after so many of its moments; moved: the panel
  // whose moment was the last. focused(): the panel that fills the page, whose moments alone are
  // stepped through, or null. said(): called as the playing of a race that is seen for the first
  // time changes: its speed, or its end.
  constructor(tape, show, focused, said) {
    this.tape = tape;
    this.show = show;
    this.focused = focused;
    this.said = said;
    this.speed = firstSpeed();
    this.unit = "token";
    this.running = false; // the race itself still goes on
    const button = (label, hint, path, act) => {
      const node = el(
        "button",
        { type: "button", "aria-label": label, "data-hint": hint },
        icon(path),
      );
      node.addEventListener("click", act);
      return node;
    };
    this.toggle = button(t("player.play"), "", PATHS.play, () => this.playOrPause());
    this.slider = el("input", {
      type: "range",
      min: 0,
      max: 0,
      step: 0.1,
      value: 0,
      "aria-label": t("player.time"),
    });
    this.slider.addEventListener("input", () => {
      this.playing = this.held = false;
      this.seekTime(Number(this.slider.value));
    });
    this.time = el("span", { class: "time", ...FIGURE });
    this.note = el("span", { class: "player-note" });
    this.node = el(
      "div",
      { class: "player", role: "group", "aria-label": t("player") },
      button(t("player.start"), t("player.start.hint"), PATHS.start, () => {
        this.pause();
        this.seek(0);
      }),
      button(t("player.back"), t("player.back.hint"), PATHS.back, () => this.step(-1)),
      this.toggle,
      button(t("player.on"), t("player.on.hint"), PATHS.on, () => this.step(1)),
      button(t("player.end"), t("player.end.hint"), PATHS.end, () => this.toEnd()),
      this.speedChoice(),
      this.choice(
        t("player.unit"),
        Object.entries(UNITS).map(([key, [name, hint]]) => [key, name, hint]),
        "unit",
      ),
      this.slider,
      this.time,
      this.note,
    );
    this.clear();
  }

  speedChoice() {
    const select = el(
      "select",
      { id: "speed", "data-hint": t("player.speed.hint") },
      ...["watch", "pass", "0.02", "0.1", "1"].map((value) =>
        el("option", { value, selected: value === this.speed }, SPEEDS[value]),
      ),
    );
    let pointed = false;
    select.addEventListener("pointerdown", () => {
      pointed = true;
    });
    select.addEventListener("keydown", () => {
      pointed = false;
    });
    select.addEventListener("change", () => {
      if (pointed) select.blur(); // it would take the next Space for itself
      this.speed = select.value;
      try {
        localStorage.setItem(SPEED_KEY, this.speed);
      } catch {
        /* kept for this page alone */
      }
      this.pace();
    });
    return el("label", { class: "speed-choice" }, el("span", {}, t("player.speed")), select);
  }

  // A row of buttons of which one is pressed.
  choice(label, options, property) {
    const node = el(
      "div",
      { class: "choice", role: "group", "aria-label": label },
      el("span", { "aria-hidden": "true" }, label),
    );
    for (const [value, name, hint] of options) {
      const each = el(
        "button",
        { type: "button", "data-hint": hint, "aria-pressed": String(this[property] === value) },
        name,
      );
      each.addEventListener("click", () => {
        this[property] = value;
        for (const other of node.querySelectorAll("button"))
          other.setAttribute("aria-pressed", String(other === each));
      });
      node.append(each);
    }
    return node;
  }

  clear() {
    this.following = true; // what comes is shown at once; false: the page shows the race up to `at`
    this.first = false; // the race is being played for the first time, slowed
    this.held = false; // it has just begun: drawing would slow it down
    this.heldUntil = 0;
    this.at = 0; // moments shown, of tape.moments
    this.clock = 0; // ms
    this.spent = 0; // ms that it has been played for
    this.rate = null; // ms of the clock in a millisecond; null: not known yet
    this.playing = false;
    this.draw();
  }

  // A race has begun that is to be watched: its first token is shown, and the rest once the clock
  // is done with it, or as it comes where that takes its time.
  begin() {
    this.first = this.speed !== "1";
    if (!this.first) return;
    this.following = false;
    this.held = this.playing = true;
    this.pace();
  }

  // More has come of it.
  heard() {
    if (!this.held || !this.tape.moments.length) return;
    if (!this.at) {
      this.heldUntil = performance.now() + HELD_MS;
      this.seek(1);
    }
    this.pace();
    const over = this.tape.panels.every((_, panel) => this.tape.summaries[panel]);
    if (this.held && (over || performance.now() > this.heldUntil)) this.play();
  }

  // The speed to play at, by what is known of the race.
  pace() {
    this.rate = this.paceOf(this.speed);
    if (this.first && this.running && this.speed === "watch" && this.rate >= SLOW_ENOUGH)
      this.goLive();
    this.said();
  }

  paceOf(speed) {
    const { duration } = this.tape;
    if (speed === "pass") return (this.passMs || 1) / 1000;
    if (speed !== "watch") return Number(speed);
    if (!this.running) {
      const left = Math.max(WATCH_MS - this.spent, LEAST_LEFT_MS);
      return Math.min(
        1,
        Math.max(this.first ? (duration - this.clock) / left : duration / WATCH_MS, 1e-6),
      );
    }
    const expected = this.expectedMs;
    return expected === null ? null : Math.min(1, Math.max(expected, duration) / WATCH_MS);
  }

  // How long the slowest panel may take, by its first tokens; null: too early to say.
  get expectedMs() {
    const tokens = Math.min(this.tape.header.max_new_tokens || EXPECTED_TOKENS, EXPECTED_TOKENS);
    const each = this.tape.panels.map((own) => {
      const last = own.at(-1),
        first = own.find((moment) => moment.to > moment.from);
      if (!first || (last.ms < FIRST_MS && own.length < 4))
        return this.tape.summaries[last?.panel] ? last.ms : null;
      return (
        first.ms + (last === first ? first.ms : (last.ms - first.ms) / (own.length - 1)) * tokens
      );
    });
    return each.includes(null) ? null : Math.max(...each);
  }

  // A pass through all layers, in ms: the median of panel 1's steps.
  get passMs() {
    const steps = (this.tape.panels[0] || [])
      .filter((moment) => moment.endsPass)
      .map((moment) => moment.ms);
    const apart = steps
      .slice(1)
      .map((ms, i) => ms - steps[i])
      .sort((a, b) => a - b);
    return apart.length ? apart[Math.floor(apart.length / 2)] : null;
  }

  // A running race that is slow enough by itself.
  goLive() {
    this.first = false;
    this.playing = this.held = false;
    this.following = true;
    this.seek(this.tape.moments.length);
  }

  playOrPause() {
    if (this.running && this.following) return this.hold();
    if (this.playing) return this.pause();
    this.play();
  }

  // Keeps the page as it is while the race goes on behind it.
  hold() {
    this.following = false;
    this.seek(this.tape.moments.length);
  }

  play() {
    const { moments } = this.tape;
    if (!moments.length && !this.first) return;
    if (this.at >= moments.length && !this.running) this.seek(0);
    this.following = this.held = false;
    this.playing = true;
    this.last = performance.now();
    this.pace();
    this.draw();
    if (this.playing) requestAnimationFrame(() => this.tick());
  }

  pause() {
    this.playing = this.held = false;
    this.draw();
  }

  tick() {
    if (!this.playing) return;
    const now = performance.now();
    if (this.running && this.first) this.pace();
    if (!this.playing) return; // it plays live now
    const moments = this.tape.moments;
    let clock = this.clock,
      at = this.at;
    // a page that stood still goes on where it was
    if (this.rate !== null) clock += Math.min(now - this.last, LONGEST_FRAME_MS) * this.rate;
    this.last = now;
    if (this.running) clock = Math.max(Math.min(clock, this.horizon), this.clock); // no panel is drawn ahead of what is known of the others
    if (this.rate !== null) this.spent += (clock - this.clock) / this.rate; // waiting for more of the race is not playing it
    while (at < moments.length && moments[at].ms <= clock) at += 1;
    const over = at >= moments.length && !(this.running && this.first);
    if (over) this.playing = false;
    if (over && this.running) this.following = true; // it has caught up with the race
    if (at !== this.at || over) this.seek(at, Math.min(clock, this.tape.duration));
    else this.clock = clock;
    this.drawTime();
    if (this.playing) requestAnimationFrame(() => this.tick());
  }

  // Up to where the record of every panel has come.
  get horizon() {
    return Math.min(
      ...this.tape.panels.map((own, panel) =>
        this.tape.summaries[panel] ? Infinity : (own.at(-1)?.ms ?? 0),
      ),
    );
  }

  step(direction) {
    const moments = this.tape.moments;
    if (!moments.length) return;
    const own = this.focused();
    const wanted = (moment) =>
      UNITS[this.unit][2](moment) && (own === null || moment.panel === own);
    let at = this.following ? moments.length : this.at;
    this.pause();
    do at += direction;
    while (at > 0 && at < moments.length && !wanted(moments[at - 1]));
    this.following = false;
    this.seek(at);
  }

  toEnd() {
    this.pause();
    if (this.running) this.goLive();
    else this.seek(this.tape.moments.length);
    this.said();
  }

  seekTime(ms) {
    const moments = this.tape.moments;
    const at = moments.findIndex((moment) => moment.ms > ms);
    this.seek(at < 0 ? moments.length : at, ms);
  }

  seek(at, clock) {
    const moments = this.tape.moments;
    this.at = Math.max(0, Math.min(at, moments.length));
    this.clock = clock ?? (this.at ? moments[this.at - 1].ms : 0);
    if (this.at < moments.length) this.following = false;
    this.show(
      this.tape.counts(this.at),
      this.at > 0 && this.at < moments.length ? moments[this.at - 1].panel : null,
    );
    if (this.first && !this.running && this.at === moments.length) {
      // the end of the first playing
      this.first = false;
      this.said();
    }
    this.draw();
  }

  // The race has come to its end, or begins.
  setRunning(running) {
    const ended = this.running && !running;
    this.running = running;
    if (!running && this.following) {
      this.at = this.tape.moments.length;
      this.clock = this.tape.duration;
    }
    if (ended && this.first) {
      if (this.held) this.play();
      else this.pace();
      if (this.at >= this.tape.moments.length) this.seek(this.at); // nothing is left to be played
    }
    this.draw();
  }

  draw() {
    const moves = this.playing || (this.running && this.following);
    this.toggle.setAttribute("aria-label", moves ? t("player.pause") : t("player.play"));
    this.toggle.dataset.hint = moves ? t("player.pause.hint") : t("player.play.hint");
    this.toggle.replaceChildren(icon(moves ? PATHS.pause : PATHS.play));
    this.drawTime();
  }

  drawTime() {
    const clock = this.following ? this.tape.duration : this.clock;
    this.slider.max = this.tape.duration;
    this.slider.value = clock;
    this.slider.setAttribute(
      "aria-valuetext",
      t("player.at", {
        seconds: (clock / 1000).toFixed(2),
        all: (this.tape.duration / 1000).toFixed(2),
      }),
    );
    this.time.textContent = `${(clock / 1000).toFixed(2)} / ${(this.tape.duration / 1000).toFixed(2)} s`;
    this.note.textContent =
      this.following || this.first
        ? ""
        : this.running
          ? t("player.behind")
          : this.at < this.tape.moments.length
            ? t("player.replay")
            : "";
  }
}
