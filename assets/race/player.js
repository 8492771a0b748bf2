// Replay: the bar that pauses a race on screen, plays it again on the shared clock, steps through it and scrubs.

const SPEEDS = [[0.25, "0.25×"], [0.5, "0.5×"], [1, "1×"]];
const UNITS = {
  token: [t("player.token"), t("player.token.hint"), (moment) => moment.to > moment.from],
  pass: [t("player.pass"), t("player.pass.hint"), (moment) => moment.endsPass],
  cycle: [t("player.cycle"), t("player.cycle.hint"), (moment) => moment.endsCycle],
};

class Player {
  // show(counts, moved): draws each panel as it was after so many of its moments; moved: the panel whose moment was the last.
  // focused(): the panel that fills the page, whose moments alone are stepped through, or null.
  constructor(tape, show, focused) {
    this.tape = tape;
    this.show = show;
    this.focused = focused;
    this.speed = 1;
    this.unit = "token";
    this.running = false;    // the race itself still goes on
    const button = (label, hint, path, act) => {
      const node = el("button", { type: "button", "aria-label": label, "data-hint": hint }, icon(path));
      node.addEventListener("click", act);
      return node;
    };
    this.toggle = button(t("player.play"), "", PATHS.play, () => this.playOrPause());
    this.slider = el("input", { type: "range", min: 0, max: 0, step: 0.1, value: 0, "aria-label": t("player.time") });
    this.slider.addEventListener("input", () => { this.playing = false; this.seekTime(Number(this.slider.value)); });
    this.time = el("span", { class: "time" });
    this.note = el("span", { class: "player-note" });
    this.node = el("div", { class: "player", role: "group", "aria-label": t("player"), hidden: true },
      button(t("player.start"), t("player.start.hint"), PATHS.start, () => { this.pause(); this.seek(0); }),
      button(t("player.back"), t("player.back.hint"), PATHS.back, () => this.step(-1)), this.toggle,
      button(t("player.on"), t("player.on.hint"), PATHS.on, () => this.step(1)),
      this.choice(t("player.unit"), Object.entries(UNITS).map(([key, [name, hint]]) => [key, name, hint]), "unit"),
      this.choice(t("player.speed"), SPEEDS.map(([value, name]) => [value, name, value === 1 ? t("player.speed.same") : t("player.speed.hint", { speed: name })]), "speed"),
      this.slider, this.time, this.note);
    this.clear();
  }

  // A row of buttons of which one is pressed.
  choice(label, options, property) {
    const node = el("div", { class: "choice", role: "group", "aria-label": label }, el("span", { "aria-hidden": "true" }, label));
    for (const [value, name, hint] of options) {
      const each = el("button", { type: "button", "data-hint": hint, "aria-pressed": String(this[property] === value) }, name);
      each.addEventListener("click", () => {
        this[property] = value;
        for (const other of node.querySelectorAll("button")) other.setAttribute("aria-pressed", String(other === each));
      });
      node.append(each);
    }
    return node;
  }

  clear() {
    this.following = true;   // what comes is shown at once; false: the page shows the race up to `at`
    this.at = 0;             // moments shown, of tape.moments
    this.clock = 0;          // ms
    this.playing = false;
    this.draw();
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
    if (!this.tape.moments.length) return;
    if (this.at >= this.tape.moments.length && !this.running) this.seek(0);
    this.following = false;
    this.playing = true;
    this.last = performance.now();
    this.draw();
    requestAnimationFrame(() => this.tick());
  }

  pause() {
    this.playing = false;
    this.draw();
  }

  tick() {
    if (!this.playing) return;
    const now = performance.now(), moments = this.tape.moments;
    const clock = this.clock + (now - this.last) * this.speed;
    this.last = now;
    let at = this.at;
    while (at < moments.length && moments[at].ms <= clock) at += 1;
    const over = at >= moments.length;
    if (over) this.playing = false;
    if (over && this.running) this.following = true;   // it has caught up with the race
    if (at !== this.at || over) this.seek(at, Math.min(clock, this.tape.duration));
    else this.clock = clock;
    this.drawTime();
    if (this.playing) requestAnimationFrame(() => this.tick());
  }

  step(direction) {
    const moments = this.tape.moments;
    if (!moments.length) return;
    const own = this.focused();
    const wanted = (moment) => UNITS[this.unit][2](moment) && (own === null || moment.panel === own);
    let at = this.following ? moments.length : this.at;
    this.pause();
    do at += direction; while (at > 0 && at < moments.length && !wanted(moments[at - 1]));
    this.following = false;
    this.seek(at);
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
    this.show(this.tape.counts(this.at), this.at > 0 && this.at < moments.length ? moments[this.at - 1].panel : null);
    this.draw();
  }

  // The race has come to its end, or begins.
  setRunning(running) {
    this.running = running;
    if (!running && this.following) {
      this.at = this.tape.moments.length;
      this.clock = this.tape.duration;
    }
    this.draw();
  }

  draw() {
    this.node.hidden = !this.tape.header;
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
    this.slider.setAttribute("aria-valuetext", t("player.at", { seconds: (clock / 1000).toFixed(2), all: (this.tape.duration / 1000).toFixed(2) }));
    this.time.textContent = `${(clock / 1000).toFixed(2)} / ${(this.tape.duration / 1000).toFixed(2)} s`;
    this.note.textContent = this.following ? "" : this.running ? t("player.behind") : this.at < this.tape.moments.length ? t("player.replay") : "";
  }
}
