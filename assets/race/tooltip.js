// What made a token, and what was left out of it.
function passThatMade(token, layers) {
  const { passes } = token.made;
  if (token.origin === "mtp") return t("token.by_head");
  return layersOf(
    token.origin === "late"
      ? passes.findLast((pass) => pass.kind === "late") || passes.at(-1)
      : passes.at(-1),
    layers,
  );
}

// One tooltip for the whole page: on a token its record, on anything with data-hint (or a named
// control) a sentence. Shown on hover and on keyboard focus; in a panel's text the arrow keys walk
// from token to token. A click, or Enter, pins a token: its tooltip stays, and its whole span
// stands out in the text and in the charts. Escape closes it.

/**
 * The decoder that an entry of a panel's list, or its field, names: what stands before the dot.
 * @param {HTMLElement} node
 */
function decoderOf(node) {
  return (node instanceof HTMLInputElement ? node.value : node.textContent)
    .split("·")[0]
    .replace("✓", "")
    .trim();
}

class Tooltip {
  constructor(root, panels, hints, onPin) {
    this.root = root;
    this.panels = panels;
    this.onPin = onPin; // called with the span of the pinned token, or null
    this.pinned = null;
    this.hints = hints; // element id (or its end, for the options of a panel) -> key of the sentence
    this.box = el("div", {
      class: "race-tooltip",
      role: "tooltip",
      id: "race-tooltip",
      hidden: true,
    });
    document.body.append(this.box);
    this.target = null;
    this.pointer = ""; // where it is on the screen
    document.addEventListener("mousemove", (event) => this.pointed(event));
    document.addEventListener("mouseover", (event) => this.pointed(event));
    document.addEventListener("focusin", (event) => this.consider(event.target));
    document.addEventListener("focusout", () => this.hide());
    document.addEventListener(
      "scroll",
      () => (this.pinned || this.target?.matches(":hover, :focus") ? this.place() : this.hide()),
      true,
    ); // a text that is played scrolls under the reader's mouse
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.escape(event);
    });
    document.addEventListener("click", (event) => this.click(event.target));
    root.addEventListener("keydown", (event) => this.walk(event));
    root.addEventListener("focusin", (event) => this.moveTabStop(event.target));
  }

  // Browsers tell of a mouse over what comes under it as the page scrolls or is drawn anew: only a
  // pointer that moved asks for anything.
  pointed({ type, target, screenX, screenY }) {
    const pointer = `${screenX} ${screenY}`,
      moved = pointer !== this.pointer;
    this.pointer = pointer;
    if (moved) this.consider(target);
    else if (type === "mouseover" && this.target && !this.target.matches(":hover, :focus"))
      this.hide();
  }

  consider(node) {
    if (!(node instanceof Element)) return;
    const token = node.closest("[data-panel] [data-origin]");
    const hinted = token ? null : node.closest("[data-hint]") || this.control(node);
    const target = token || hinted;
    if (target === this.target || this.pinned) return;
    this.hide();
    if (token) this.show(token, this.describe(token));
    else if (hinted) this.show(hinted, [el("p", {}, hinted.dataset.hint || this.hintOf(hinted))]);
  }

  // A Gradio control whose id is in the hints: only its label, so that the tooltip stays out of the
  // way of typing.
  control(node) {
    const decoder = node.closest("[id$='-decoder'] [role='option'], [id$='-decoder'] input");
    if (decoder) return howOf(decoderOf(decoder)) ? decoder : null;
    const label = node.closest("[data-testid='block-info'], label > span");
    const block = label?.closest("[id]");
    return block && this.hintOf(block) ? block : null;
  }

  hintOf(block) {
    if (block.matches("[role='option'], input")) return howOf(decoderOf(block));
    const key = this.hints[block.id] || this.hints[block.id.replace(/^panel-\d+-/, "")];
    return key && t(key);
  }

  describe(node) {
    const panel = this.panels()[Number(node.closest("[data-panel]").dataset.panel)];
    const index = Number(node.dataset.index);
    const token = panel.tokens[index];
    const origin = ORIGINS[token.origin] || { name: token.origin, hint: "" };
    /** @type {HTMLElement[]} */
    const lines = [el("p", { class: "piece", ...WRITTEN }, this.pieceName(panel, token, index))];
    const rows = [
      [t("token.made_by"), origin.name, token.origin],
      [t("token.probability"), isNumber(token.logprob) ? probability(token.logprob) : NONE],
      [t("token.token"), t("token.number", { number: index + 1, id: token.id ?? NONE })],
      [
        t("token.span"),
        token.span
          ? this.within(panel, index)
          : token.origin === "remote"
            ? NONE
            : t("token.of_prefill"),
      ],
      [t("token.time"), t("token.at", { ms: token.ms.toFixed(1), step: token.step })],
    ];
    if (panel.layers && token.made.passes.length)
      rows.push([t("token.pass"), passThatMade(token, panel.layers)]);
    if (token.agrees !== null)
      rows.push([
        t("token.audit"),
        panel.sampled
          ? t(
              token.agrees
                ? "token.most_probable"
                : panel.differs(index)
                  ? "token.improbable"
                  : "token.drawn",
            )
          : token.agrees
            ? t("token.agrees")
            : t("token.differs"),
      ]);
    if (token.agrees === false && token.choice) {
      const [, text, chance, own] = token.choice;
      rows.push([
        t("token.choice"),
        t("token.choice.is", { text: visible(text), chance: percent(chance), own: percent(own) }),
      ]);
    }
    lines.push(
      el(
        "dl",
        {},
        ...rows.flatMap(([name, value, key]) => [
          el("dt", {}, name),
          el("dd", key ? { class: "origin-name", "data-key": key } : FIGURE, value),
        ]),
      ),
    );
    if (token.top?.length) {
      lines.push(
        el(
          "ol",
          { class: "top", ...FIGURE, "aria-label": t("token.top") },
          ...token.top.map(([id, text, p]) =>
            el(
              "li",
              { class: (id === null ? text === token.text : id === token.id) ? "chosen" : null },
              el("code", WRITTEN, visible(text) || "∅"),
              el(
                "span",
                { class: "track", "aria-hidden": "true" },
                el("span", { style: `width: ${(100 * p).toFixed(2)}%` }),
              ),
              el("span", { class: "share" }, p >= 0.0005 ? percent(p) : "< 0.1 %"),
            ),
          ),
        ),
      );
    }
    return lines;
  }

  pieceName(panel, token, index) {
    if (token.text !== "") return visible(token.text);
    const last = index === panel.tokens.length - 1;
    return last && panel.summary?.stop === "eos" ? t("token.end") : t("token.part");
  }

  within(panel, index) {
    const { span, first, length } = panel.spanAt(index);
    return t("token.within", { span, number: index - first + 1, length });
  }

  show(target, lines) {
    this.target = target;
    this.box.replaceChildren(...lines);
    this.box.hidden = false;
    target.setAttribute("aria-describedby", this.box.id);
    this.place();
  }

  // Above what it speaks of, below it or beside it: within the window, over no line of its own, and
  // not over Run.
  place() {
    const lines = [...this.target.getClientRects()].filter(({ width }) => width > 1),
      whole = this.target.getBoundingClientRect(); // a token that wraps has several
    const at = lines[0] || whole,
      end = lines.at(-1) || whole;
    const { offsetWidth: width, offsetHeight: height } = this.box;
    const across = Math.max(8, Math.min(at.left, window.innerWidth - width - 8)),
      down = Math.max(8, Math.min(at.top, window.innerHeight - height - 8));
    const run = document.querySelector("#run")?.getBoundingClientRect();
    const covers = ([left, top], { left: l, top: u, right: r, bottom: b }) =>
      left < r && left + width > l && top < b && top + height > u;
    const list = this.target.closest("[role='listbox']")?.getBoundingClientRect(); // of decoders: its entries are to be read, too
    const spots = [
      [across, at.top - height - 8],
      [across, end.bottom + 8],
      [whole.right + 8, down],
      [whole.left - width - 8, down],
    ];
    const fits = (spot) =>
      spot[0] >= 0 &&
      spot[0] + width <= window.innerWidth &&
      spot[1] >= 0 &&
      spot[1] + height <= window.innerHeight;
    const branch = [...document.querySelectorAll(".branch:not([hidden])")].map((node) =>
      node.getBoundingClientRect(),
    ); // what is said of the same token
    const free = (spot) =>
      ![...lines, ...branch, ...(run?.width ? [run] : []), ...(list ? [list] : [])].some((box) =>
        covers(spot, box),
      );
    const [left, top] =
      spots.find((spot) => fits(spot) && free(spot)) || spots.find(free) || spots[1];
    this.box.style.left = `${left}px`;
    this.box.style.top = `${top}px`;
  }

  hide() {
    if (this.pinned) return;
    this.target?.removeAttribute("aria-describedby");
    this.target = null;
    this.box.hidden = true;
  }

  click(node) {
    const token = node.closest?.("[data-panel] [data-origin]");
    if (token && token !== this.pinned) this.pin(token);
    else if (token || !node.closest?.("button, input, [role='slider'], .charts, .branch"))
      this.unpin(); // the page can be used on with a token pinned
  }

  pin(node) {
    this.unpin();
    const panel = this.panels()[Number(node.closest("[data-panel]").dataset.panel)];
    const span = panel.spanAt(Number(node.dataset.index));
    for (let i = span.first; i < span.end; i += 1) panel.text.children[i].classList.add("together");
    node.classList.add("pinned");
    this.show(node, [...this.describe(node), el("p", { class: "pin-note" }, t("token.pinned"))]);
    this.pinned = node;
    this.onPin(span, Number(node.dataset.index));
    this.place(); // what came with it is not covered
  }

  // Esc lets go of a pinned token and does nothing else then; but a running race always hears it.
  escape(event) {
    if (this.pinned && this.root.dataset.status !== "running") event.preventDefault();
    this.unpin();
  }

  unpin() {
    if (this.pinned) {
      for (const node of this.pinned.parentElement?.querySelectorAll(".together, .pinned") || [])
        node.classList.remove("together", "pinned");
      this.pinned = null;
      this.onPin(null);
    }
    this.hide();
  }

  walk(event) {
    const token = event.target.closest?.("[data-panel] [data-origin]");
    if (!token) return;
    if (event.key === "Enter") this.click(token);
    const all = token.parentElement.children;
    const index = Number(token.dataset.index);
    const next = { ArrowRight: index + 1, ArrowLeft: index - 1, Home: 0, End: all.length - 1 }[
      event.key
    ];
    if (next === undefined || !all[next]) return;
    event.preventDefault();
    this.unpin();
    all[next].focus();
  }

  moveTabStop(node) {
    const token = node.closest?.("[data-panel] [data-origin]");
    if (!token) return;
    token.parentElement
      .querySelectorAll("[tabindex='0']")
      .forEach((other) => other.setAttribute("tabindex", -1));
    token.setAttribute("tabindex", 0);
  }
}
