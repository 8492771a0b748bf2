// One panel of the race: its earlier turns, its text token by token, its big number, its line of
// facts.

const NEAR = 0.25; // of two probabilities' logarithms: what rounding in bfloat16 can turn round
const RATE_WINDOW = 16; // tokens, at least, that one point of the tokens/s chart looks back over: a few spans of any decoder

/**
 * How a decoder works, in a line; "" for one that the texts do not know.
 * @param {string} decoder
 */
function howOf(decoder) {
  const key = `how.${decoder}`,
    text = t(key);
  return text === key ? "" : text;
}

class Panel {
  constructor(index) {
    this.index = index;
    this.tps = el("b", { class: "tps", ...FIGURE }, NONE);
    this.ratio = el("span", { class: "ratio", ...FIGURE, "data-hint": t("panel.ratio.hint") });
    this.spec = el("span", { class: "spec", ...FIGURE }, "");
    this.history = el("div", { class: "history", ...FIGURE });
    this.text = el("div", {
      class: "text",
      ...WRITTEN,
      "data-panel": index,
      role: "group",
      "aria-label": t("panel.text", { panel: index + 1 }),
    });
    this.before = null; // the figures of the race before (before.js)
    this.was = el("span", { class: "was", hidden: true, ...FIGURE });
    this.unlike = el("small", { class: "unlike", ...FIGURE });
    this.warning = el(
      "span",
      { class: "meaningless", "data-hint": t("panel.meaningless.hint"), hidden: true },
      t("panel.meaningless"),
    );
    this.branch = el("aside", { class: "branch", hidden: true }); // branch.js
    this.parting = el("p", { class: "parting", hidden: true });
    this.facts = el("p", { class: "facts", ...FIGURE });
    this.copy = el(
      "button",
      {
        type: "button",
        class: "copy",
        "data-hint": t("panel.copy.hint"),
        "aria-label": t("panel.copy_of", { panel: index + 1 }),
      },
      t("panel.copy"),
    );
    this.fill = el(
      "button",
      {
        type: "button",
        class: "fill",
        "aria-pressed": "false",
        "data-hint": t("panel.fill.hint"),
        "aria-label": t("panel.fill", { panel: index + 1 }),
      },
      icon(PATHS.fill),
    );
    this.copy.addEventListener("click", () => copyText(this.plainText, this.copy));
    this.thought = new Thought(this.text);
    this.lacking = el("div", { class: "lacking", hidden: true }); // lacking.js
    this.scroll = el(
      "div",
      {
        class: "scroll",
        tabindex: 0,
        role: "region",
        "aria-label": t("panel", { panel: index + 1 }),
      },
      this.lacking,
      this.history,
      this.thought.button,
      this.text,
    );
    this.cycle = new Cycle();
    this.live = new Live();
    this.how = el("p", { class: "how" });
    this.node = el(
      "article",
      {
        class: "panel",
        style: `--panel: var(--panel-${index})`,
        "aria-label": t("panel", { panel: index + 1 }),
      },
      el(
        "header",
        { class: "panel-head" },
        el("span", { class: "badge", "aria-hidden": "true" }, String(index + 1)),
        this.spec,
        el("span", { class: "mark" }, t("race.recorded.mark")),
        el(
          "span",
          { class: "speed", "data-hint": t("panel.speed.hint") },
          this.tps,
          el("span", { class: "unit" }, t("unit.speed")),
          this.was,
        ),
        this.ratio,
        this.unlike,
        this.warning,
      ),
      this.how,
      el("div", { class: "panel-body" }, this.scroll, this.cycle.node),
      this.parting,
      this.live.node,
      el("div", { class: "panel-foot" }, this.facts, this.copy, this.fill),
      this.branch,
    );
    this.clear();
  }

  clear() {
    this.agrees = null;
    this.choices = null;
    this.sampled = false;
    this.thought.chosen = null;
    this.decoder = "";
    this.rewind();
    this.history.replaceChildren();
    this.tps.textContent = NONE;
    this.ratio.textContent = "";
    this.unlike.textContent = "";
    this.spec.textContent = "";
    this.how.textContent = "";
    this.place = 0; // in which it came to its end, of the panels; 0: it has not, or it did not finish
    delete this.spec.dataset.hint;
    this.facts.textContent = "";
  }

  // Back to before the first token of the same race.
  rewind() {
    this.shown = 0; // moments
    this.step = null; // the last one
    this.cycle.clear();
    this.tokens = [];
    this.origins = {};
    this.spans = new Map();
    this.openSpan = 0;
    this.lastNode = null;
    this.fullPasses = 0;
    this.firstMs = null;
    this.ms = 0;
    this.summary = null;
    this.ends = []; // [ms, tokens so far] at the end of each span: what the chart's rate is made of
    this.rate = { x: [], y: [] }; // points of the charts; a new object tells them to begin again
    this.curve = { x: [], y: [] };
    this.times = {}; // ms by the kind of pass, keys of TIMES (figures.js)
    this.pinned = null; // the token whose pass the picture shows
    this.text.replaceChildren();
    this.thought.rewind();
    this.node.classList.remove("failed");
    this.weigh();
    this.part(null);
    this.branch.hidden = true;
  }

  // The conversation so far, ending with the user's prompt: plain text, no origins.
  showTurns(messages) {
    this.history.replaceChildren(...messages.map(turnNode));
  }

  // named: whether to say which model this is; the panels of the race have several. base: panel 1.
  // sampled: not greedy.
  begin(record, named, base = record, sampled = false) {
    this.decoder = record.decoder;
    this.how.textContent = howOf(record.decoder);
    this.sampled = sampled;
    this.unlike.textContent = unlike(record, base);
    if (record.lossless)
      this.spec.dataset.hint = t(
        (record.alike ?? (record.dtype === "float32" && record.quantization === "none"))
          ? "panel.lossless"
          : "panel.lossless_nearly",
      );
    this.layers = isNumber(record.layers) ? record.layers : 0;
    this.cycle.recurrent = new Set(Array.isArray(record.recurrent) ? record.recurrent : []);
    this.cycle.native = record.decoder.startsWith("mtp-native");
    this.spec.textContent =
      record.decoder === "remote"
        ? `remote · ${modelName(record)}`
        : named
          ? `${record.spec} · ${modelName(record)}`
          : record.spec;
  }

  // The panel as it was after the first `count` of its moments (tape.js).
  show(moments, count) {
    if (count < this.shown) this.rewind();
    while (this.shown < count) {
      const { step, from } = moments[this.shown];
      let to = from;
      while (this.shown < count && moments[this.shown].step === step) {
        to = moments[this.shown].to;
        this.shown += 1;
      }
      this.addStep(step, from, to);
    }
  }

  // Tokens [from, to) of a step.
  addStep(step, from, to) {
    if (to > from && this.tokens.length && step.tokens[from].span !== this.openSpan) this.addRate(); // as the last span ends
    const nodes = document.createDocumentFragment();
    for (const token of step.tokens.slice(from, to)) nodes.append(this.addToken(token, step));
    this.text.append(nodes);
    this.step = step;
    if (from === 0) {
      const kind = timeOf(step);
      this.times[kind] = (this.times[kind] || 0) + step.ms - this.ms;
    }
    this.ms = step.ms;
    this.curve.x.push(step.ms / 1000);
    this.curve.y.push(this.tokens.length);
    if (from > 0) return;
    const counted = this.firstMs !== null && this.tokens.length > 1; // docs/methods.md: the prefill and its passes are left out
    if (counted)
      this.fullPasses += step.passes.filter(
        (pass) => pass.kind !== "prefill" && pass.kind !== "late",
      ).length;
    if (this.firstMs === null && this.tokens.length) this.firstMs = step.ms;
  }

  // Whether the reader is at the end of the text, and wants to stay there.
  get atEnd() {
    return this.scroll.scrollHeight - this.scroll.scrollTop - this.scroll.clientHeight < 40;
  }

  addToken(token, step) {
    const index = this.tokens.length;
    if (token.span !== this.openSpan) this.closeSpan();
    this.openSpan = token.span;
    if (token.span > 0) this.spans.set(token.span, (this.spans.get(token.span) || 0) + 1);
    this.tokens.push({
      ...token,
      ms: step.ms,
      step: step.step,
      made: step,
      agrees: this.agrees?.[index] ?? null,
      choice: this.choices?.[index] ?? null,
    });
    this.origins[token.origin] = (this.origins[token.origin] || 0) + 1;
    // One token of a panel is a tab stop, the arrow keys walk on from it (tooltip.js).
    const node = el("span", {
      "data-origin": token.origin,
      "data-index": index,
      tabindex: index ? -1 : 0,
    });
    const entry = this.tokens[index];
    entry.thought = this.thought.add(token, node);
    this.write(node, entry);
    if (token.text === "") node.classList.add("empty");
    if (/^ ?\S*$/.test(token.text) && !/\s$/.test(this.tokens[index - 1]?.text || " "))
      node.classList.add("plain");
    if (/^\s*\n\s*$/.test(token.text)) node.classList.add("newline");
    if (this.differs(index)) node.classList.add("differs");
    if (index === 0 || this.tokens[index - 1].span !== token.span) node.classList.add("opens");
    this.lastNode = node;
    return node;
  }

  // White space and line breaks as signs, or as they are.
  showSpaces(on) {
    this.spaced = on;
    this.tokens.forEach((token, index) => this.write(this.text.children[index], token));
  }

  write(node, token) {
    const shown = (text) => (this.spaced ? [el("wbr"), spaced(text)] : [readable(text)]); // a sign for a space would not let the line break
    const rest = token.text.slice(token.thought);
    if (!token.thought || !rest.trim()) node.replaceChildren(...shown(token.text));
    else
      node.replaceChildren(
        el("span", { class: "thought" }, ...shown(token.text.slice(0, token.thought))),
        ...shown(rest),
      );
  }

  get plainText() {
    return this.tokens.map((token) => token.text).join("");
  }

  // A span of this panel: its tokens as [first, last + 1], and the clock at its start and end, in
  // ms.
  spanAt(index) {
    const { span } = this.tokens[index];
    let first = index,
      end = index + 1;
    while (first > 0 && this.tokens[first - 1].span === span) first -= 1;
    while (end < this.tokens.length && this.tokens[end].span === span) end += 1;
    return {
      panel: this.index,
      span,
      first,
      end,
      length: end - first,
      from: first ? this.tokens[first - 1].ms : 0,
      to: this.tokens[end - 1].ms,
    };
  }

  closeSpan() {
    this.lastNode?.classList.add("closes");
  }

  // A point of the chart: tokens per second over the latest whole spans. Within a span the rate
  // only swings with its cheap tokens.
  addRate() {
    const count = this.tokens.length;
    this.ends.push([this.ms, count]);
    const back = this.ends.findLast(([, before]) => before <= count - RATE_WINDOW) || this.ends[0];
    if (count - back[1] < 4 || this.ms <= back[0]) return; // too few tokens yet to speak of a rate
    this.rate.x.push(this.ms / 1000);
    this.rate.y.push((1000 * (count - back[1])) / (this.ms - back[0]));
  }

  // Tokens per second so far, by the trace's own definition: (tokens − 1) ÷ the time since the
  // first one.
  get tokensPerSecond() {
    if (this.summary && isNumber(this.summary.tokens_per_second))
      return this.summary.tokens_per_second;
    const seconds = this.firstMs === null ? 0 : (this.ms - this.firstMs) / 1000;
    return seconds > 0 && this.tokens.length > 1 ? (this.tokens.length - 1) / seconds : null;
  }

  // How often each span length came; the span that is still open does not count yet.
  get spanLengths() {
    if (this.summary?.spans) return this.summary.spans;
    const lengths = {};
    for (const [span, length] of this.spans)
      if (span !== this.openSpan) lengths[length] = (lengths[length] || 0) + 1;
    return lengths;
  }

  // While a race is stepped through: the token that the last step brought.
  markNewest(on) {
    this.text.querySelector(".newest")?.classList.remove("newest");
    if (on) this.lastNode?.classList.add("newest");
  }

  // The end of the panel. A second summary follows the audit and replaces the first.
  finish(summary) {
    if (!this.summary && this.tokens.length) this.addRate();
    this.summary = summary;
    this.closeSpan();
    if (summary.stop === "eos") this.lastNode?.classList.add("end");
    this.node.classList.toggle("failed", summary.stop === "error");
    this.weigh();
  }

  // Fast and wrong is no result: said on the figure itself. A drawn token need not be the most
  // probable one, so nothing is said of it.
  weigh() {
    this.warning.hidden = !(
      isNumber(this.summary?.audit_agreement) &&
      this.summary.audit_agreement < 0.9 &&
      !this.sampled
    );
    this.node.classList.toggle("weightless", !this.warning.hidden);
  }

  audit(agrees, choices = null) {
    this.agrees = agrees;
    this.choices = choices;
    this.tokens.forEach((token, index) => {
      token.agrees = agrees[index] ?? null;
      token.choice = choices?.[index] ?? null;
      this.text.children[index].classList.toggle("differs", this.differs(index));
    });
  }

  // Whether a token is marked: it is not ar's choice. Where tokens are drawn, one that a full pass
  // drew is as ar draws.
  differs(index) {
    const { agrees, origin } = this.tokens[index];
    return agrees === false && !(this.sampled && (origin === "full" || origin === "draft"));
  }

  get disagreements() {
    return this.tokens.filter((_, index) => this.differs(index)).length;
  }

  // The figures of the race before, pale beside this one's; null: there was none.
  showBefore(before) {
    this.before = before;
    this.was.hidden = !before || before.speed === null;
    if (!this.was.hidden) this.was.textContent = t("before.was", { speed: speed(before.speed) });
  }

  // Where a lossless text parts from ar's; null: it does not.
  part(parting) {
    this.parting.hidden = !parting;
    if (!parting) return;
    const { index, ars, own, arsChance, ownChance } = parting;
    const close = Math.abs(Math.log(arsChance / ownChance)) < NEAR;
    this.parting.textContent = t(close ? "panel.parts_nearly" : "panel.parts", {
      number: index + 1,
      ars: visible(ars),
      own: visible(own),
      ars_share: percent(arsChance, 2),
      own_share: percent(ownChance, 2),
    });
  }

  // The picture of the pass that made a token, while it is pinned; null: of the last pass.
  showPass(index) {
    this.pinned = index === null ? null : this.tokens[index]?.made || null;
    if (this.layers) this.cycle.draw(this.pinned || this.step, this.layers);
  }

  // scale: of the small charts, which all panels share (live.js).
  drawNumbers(baseline, scale) {
    this.thought.draw();
    this.live.draw(this, scale);
    if (this.layers) this.cycle.draw(this.pinned || this.step, this.layers);
    const own = this.tokensPerSecond;
    this.tps.textContent = speed(own);
    const base = baseline.tokensPerSecond;
    this.ratio.textContent = this === baseline || own === null || !base ? "" : ratio(own / base);
    const full = this.summary ? this.summary.full_passes : this.fullPasses;
    const ends = {
      eos: t("end.eos"),
      length: t("end.length"),
      stopped: t("end.stopped"),
      error: t("end.error"),
      broken: t("end.broken"),
    };
    const facts = [
      plural(isNumber(this.summary?.pieces) ? this.summary.tokens : this.tokens.length, "token"),
    ]; // a server counts tokens, and may send several at once
    if (this.tokens.length && this.layers) facts.push(plural(full, "pass"));
    if (this.tokens.length) facts.push(`${(this.ms / 1000).toFixed(2)} s`);
    if (this.summary)
      facts.push(
        this.summary.stop === "eos" && this.place
          ? t(`end.place.${this.place}`)
          : ends[this.summary.stop] || this.summary.stop,
      );
    if (this.summary?.message) facts.push(this.summary.message);
    this.facts.textContent = this.decoder ? facts.join(" · ") : "";
  }
}
