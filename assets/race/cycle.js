// The picture beside a panel's text: the pass that ran last. Layers from bottom to top, positions
// from left to right with the newest at the right; positions that a pass took along (the refill of
// a cycle head, the tokens of a span) are paler. Recurrent layers are narrower than attention.
// Above the stack: MTP heads whose tokens were kept; a head that reads its own drafts is a layer of
// its own, as often as it was applied and its draft stood. Below it, where the decoder records it:
// how probable each number of further tokens was held, and which was taken; or the tree of drafts
// that the pass checked, and which of them stand.

const STACK = { width: 84, height: 168, most: 8 }; // of the drawing, in its own units; positions that have a column each
const PASS_NAMES = {
  prefill: t("pass.prefill"),
  full: t("pass.full"),
  late: t("pass.late"),
  verify: t("pass.verify"),
};

function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

class Cycle {
  constructor() {
    this.name = el("b");
    this.detail = el("span");
    this.stack = svg("svg", {
      viewBox: `0 0 ${STACK.width} ${STACK.height}`,
      "aria-hidden": "true",
    });
    this.stacks = new Map(); // by what they show: a race has few kinds of pass, and building one takes as long as drawing ten tokens
    this.lengths = svg("svg", { viewBox: "0 0 84 50", class: "lengths", "aria-hidden": "true" });
    this.node = el(
      "div",
      { class: "cycle", role: "img", "data-hint": t("cycle.hint") },
      this.name,
      this.stack,
      this.detail,
      this.lengths,
    );
    this.recurrent = new Set(); // layers that have a state in place of keys and values
    this.native = false; // whether the head is the model's own
    this.clear();
  }

  clear() {
    this.step = null;
    this.stacks.clear();
    this.node.hidden = true;
  }

  // step: the last one of the race on screen. layers: how many the model has.
  draw(step, layers) {
    if (!step || step === this.step || !step.passes.length) return;
    this.step = step;
    this.node.hidden = false;
    const pass = step.passes.at(-1);
    const heads = step.tokens.filter((token) => token.origin === "mtp").length;
    const most = Math.max(...pass.runs.map(([, , positions]) => positions)),
      newest = pass.runs.at(-1)[2];
    const ran = pass.runs
      .map(([start, stop, positions]) =>
        t("cycle.layers", {
          first: start + 1,
          last: stop,
          positions: plural(positions, "position"),
        }),
      )
      .join(t("list.comma"));
    this.name.textContent = PASS_NAMES[pass.kind] || pass.kind;
    this.detail.textContent =
      pass.kind === "prefill"
        ? plural(most, "position")
        : most > newest
          ? t("cycle.refills", { positions: most - newest })
          : newest > 1
            ? t("cycle.reads", { positions: newest })
            : "";
    this.node.setAttribute(
      "aria-label",
      t(heads ? "cycle.pass_with_heads" : "cycle.pass", {
        pass: this.name.textContent,
        layers: ran,
        heads: plural(heads, this.native ? "draft" : "head"),
      }),
    );
    this.drawStack(pass, layers, most, heads);
    if (step.tree?.length) this.drawTree(step.tree, step.stood || []);
    else this.drawLengths(step.lengths, step.tokens.length - 1);
  }

  drawStack(pass, layers, most, heads) {
    const key = JSON.stringify([pass.kind, pass.runs, layers, heads]);
    if (!this.stacks.has(key))
      this.stacks.set(key, svg("g", {}, ...this.shapes(pass, layers, most, heads)));
    if (this.stack.firstChild !== this.stacks.get(key))
      this.stack.replaceChildren(this.stacks.get(key));
  }

  shapes(pass, layers, most, heads) {
    const columns = Math.min(most, STACK.most),
      wide = Math.min(20, STACK.width / columns),
      floor = STACK.height - 2,
      high = (STACK.height - 30) / layers;
    const block = (column, start, stop, kind, inset = this.recurrent.has(start) ? wide / 5 : 0) =>
      svg("rect", {
        x: (STACK.width + columns * wide) / 2 - (column + 1) * wide + 1 + inset,
        y: floor - stop * high,
        width: wide - 2 - 2 * inset,
        height: (stop - start) * high - 1,
        rx: 2,
        class: kind,
      });
    const shapes = [];
    for (let column = 0; column < columns; column += 1) {
      // 0: the newest position
      for (let layer = 0; layer < layers; layer += 1)
        shapes.push(block(column, layer, layer + 1, "left-out"));
      for (const [start, stop, positions] of pass.runs) {
        for (let layer = start; layer < stop && column < positions; layer += 1)
          shapes.push(
            block(
              column,
              layer,
              layer + 1,
              `${pass.kind === "late" ? "late" : "full"} ${column ? "older" : ""}`,
            ),
          );
      }
    }
    const apart = Math.min(12, (STACK.width - 10) / heads);
    const first = Math.min(
      (STACK.width + (columns - 1) * wide) / 2 - ((heads - 1) * apart) / 2,
      STACK.width - 5 - (heads - 1) * apart,
    ); // over the newest position, within the picture
    for (let head = 0; head < heads; head += 1)
      shapes.push(
        this.native
          ? svg("rect", {
              x: first + head * apart - apart / 2 + 1,
              y: 10,
              width: apart - 2,
              height: 8,
              rx: 2,
              class: "head",
            })
          : svg("circle", {
              cx: first + head * apart,
              cy: 14,
              r: Math.min(4.5, apart / 2),
              class: "head",
            }),
      );
    return shapes;
  }

  // The pending token at the left, then the drafts by their depth; siblings from top to bottom, the
  // likeliest first. parents: the place before each draft, or -1; a parent comes before its drafts.
  drawTree(parents, stood) {
    const depths = [],
      leaf = parents.map((_, i) => !parents.includes(i));
    for (const parent of parents) depths.push(parent < 0 ? 1 : depths[parent] + 1);
    const wide = 84 / (Math.max(...depths) + 1),
      high = 44 / leaf.filter(Boolean).length;
    // a branch goes on in its first draft's line
    const lines = [];
    let free = 0;
    parents.forEach((parent, i) => {
      const first = parents.indexOf(parent) === i;
      lines.push(first ? (parent < 0 ? 0 : lines[parent]) : free);
      if (leaf[i]) free = Math.max(free, lines[i]) + 1;
    });
    const x = (i) => ((i < 0 ? 0 : depths[i]) + 0.5) * wide,
      y = (i) => 3 + ((i < 0 ? 0 : lines[i]) + 0.5) * high;
    const kept = new Set(stood);
    this.lengths.classList.remove("none");
    this.lengths.replaceChildren(
      ...parents.map((parent, i) =>
        svg("path", {
          d: `M${x(parent)} ${y(parent)}L${x(i)} ${y(i)}`,
          class: `edge ${kept.has(i) ? "kept" : ""}`,
        }),
      ),
      ...[-1, ...parents.keys()].map((i) =>
        svg("circle", {
          cx: x(i),
          cy: y(i),
          r: Math.min(3, high / 2.2),
          class: i < 0 ? "pending" : kept.has(i) ? "taken" : "other",
        }),
      ),
    );
    this.detail.textContent = t("cycle.stand", { stand: stood.length, drafts: parents.length });
    this.node.setAttribute(
      "aria-label",
      t("cycle.tree", {
        pass: this.node.getAttribute("aria-label"),
        drafts: parents.length,
        stand: stood.length,
      }),
    );
  }

  // probabilities: of 0, 1, 2 … further tokens; taken: how many there were.
  drawLengths(probabilities, taken) {
    const given =
      Array.isArray(probabilities) && probabilities.every(isNumber) ? probabilities : [];
    const wide = 84 / Math.max(given.length, 1);
    this.lengths.classList.toggle("none", !given.length);
    this.lengths.replaceChildren(
      ...given.flatMap((p, length) => [
        svg("rect", {
          x: length * wide + 2,
          y: 34 - 32 * p,
          width: wide - 4,
          height: 32 * p + 1,
          rx: 1.5,
          class: length === taken ? "taken" : "other",
        }),
        svg("text", { x: (length + 0.5) * wide, y: 47, "text-anchor": "middle" }, String(length)),
      ]),
    );
    if (given.length)
      this.node.setAttribute(
        "aria-label",
        t("cycle.lengths", {
          pass: this.node.getAttribute("aria-label"),
          lengths: given
            .map((p, length) => t("cycle.length", { length, share: percent(p, 0) }))
            .join(t("list.comma")),
          taken,
        }),
      );
  }
}
