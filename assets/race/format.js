// What every part of the race view shares: the origins, number formats, and a way to build elements
// without HTML strings. All files in this folder are joined, in the order that
// dmtd_demo/web/files.py names, into one function: they share a scope.

// Where a token came from (docs/methods.md, section 1). Colours and underlines live in
// assets/style, by [data-origin].
const ORIGINS = {
  full: { name: t("origin.full.name"), hint: t("origin.full.hint") },
  late: { name: t("origin.late.name"), hint: t("origin.late.hint") },
  mtp: { name: t("origin.mtp.name"), hint: t("origin.mtp.hint") },
  draft: { name: t("origin.draft.name"), hint: t("origin.draft.hint") },
  remote: { name: t("origin.remote.name"), hint: t("origin.remote.hint") },
};
const ALWAYS_LISTED = ["full", "late", "mtp"]; // the legend names these three even before a token of theirs has come

const NONE = "–";

// Attributes of what a model, a person or a measurement gave: no page translator touches it, and of
// what is written each text has its own direction.
const FIGURE = { translate: "no" };
const WRITTEN = { translate: "no", dir: "auto" };

/**
 * @template {keyof HTMLElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {Record<string, any>} attributes  null, undefined and false: left out; true: empty
 * @param {(Node | string | null | undefined)[]} children
 */
function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "style")
      node.style.cssText = value; // not as an attribute: the exported file forbids those
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/**
 * @param {unknown} value
 * @returns {value is number}
 */
const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
/** @type {(value: unknown, digits: number) => string} */
const fixed = (value, digits) => (isNumber(value) ? value.toFixed(digits) : NONE);
/** @type {(value: unknown, digits?: number) => string} */
const percent = (value, digits = 1) =>
  isNumber(value) ? `${(100 * value).toFixed(digits)} %` : NONE;
/** @type {(value: unknown) => string} */
const ratio = (value) => (isNumber(value) ? `${value.toFixed(2)}×` : NONE);
/** @type {(count: number, noun: "token" | "pass" | "position" | "head" | "draft") => string} */
const plural = (count, noun) =>
  t(`count.${noun}.${count === 1 ? "one" : "more"}`, { count: count.toLocaleString("en") });

/** @param {unknown} value  tokens/s */
function speed(value) {
  if (!isNumber(value)) return NONE;
  return value >= 100 ? Math.round(value).toLocaleString("en") : value.toFixed(1);
}

/** @param {unknown} count */
function big(count) {
  if (!isNumber(count)) return NONE;
  if (count >= 1e9) return `${(count / 1e9).toFixed(2)} B`;
  if (count >= 1e6) return `${(count / 1e6).toFixed(2)} M`;
  return count.toLocaleString("en");
}

/** @param {number} logprob */
function probability(logprob) {
  const p = Math.exp(logprob);
  return p >= 0.001 || p === 0 ? percent(p) : `${(100 * p).toExponential(1)} %`;
}

/**
 * A piece with its white space made visible, for the tooltip.
 * @param {string} text
 */
function visible(text) {
  return readable(text).replaceAll(" ", "␣").replaceAll("\n", "⏎").replaceAll("\t", "⇥");
}

/**
 * The same within a running text: lines still break.
 * @param {string} text
 */
function spaced(text) {
  return readable(text).replaceAll(" ", "·").replaceAll("\n", "⏎\n").replaceAll("\t", "⇥\t");
}

/**
 * Bytes that can never become a character, as random ones, come as U+FFFD: drawn as an empty box,
 * never as a broken character.
 * @param {string} text
 */
function readable(text) {
  return text.replaceAll("\ufffd", "▯");
}

/**
 * The core's messages, which are in English, begin in lower case, as they stand after "app.py: ";
 * names of decoders and options stay as they are.
 * @param {string} text
 */
function sentence(text) {
  return /^(a|an|the|no|this) /.test(text) ? text[0].toUpperCase() + text.slice(1) : text;
}

/**
 * Into the clipboard; the button that asked says so for a moment. Without https or localhost a
 * browser only has the old way.
 * @param {string} text
 * @param {HTMLElement} button
 */
async function copyText(text, button) {
  let copied = true;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const field = el("textarea", { class: "off-screen", "aria-hidden": "true" });
    field.value = text;
    document.body.append(field);
    field.select();
    copied = document.execCommand("copy");
    field.remove();
  }
  const label = button.dataset.label || button.textContent;
  button.dataset.label = label;
  button.textContent = copied ? t("copy.done") : t("copy.refused");
  clearTimeout(button.dataset.timer);
  button.dataset.timer = setTimeout(() => {
    button.textContent = label;
  }, 1500);
}

// Icons of the replay's buttons, 16 by 16.
const PATHS = {
  play: "M4 2.5v11l9.5-5.5z",
  pause: "M3.5 2.5h3v11h-3zM9.5 2.5h3v11h-3z",
  start: "M2.5 2.5h2v11h-2zM13.5 2.5v11L5.5 8z",
  back: "M10 2.5v11L3 8zM11.5 2.5h2v11h-2z",
  on: "M6 2.5v11L13 8zM2.5 2.5h2v11h-2z",
  end: "M3 2.5v11L11.5 8zM11.5 2.5h2v11h-2z",
  fill: "M2 2h5v1.6H3.6V7H2zM9 2h5v5h-1.6V3.6H9zM2 9h1.6v3.4H7V14H2zM12.4 9H14v5H9v-1.6h3.4z",
};

/** @param {string} path */
function icon(path) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const shape = document.createElementNS("http://www.w3.org/2000/svg", "path");
  const attributes = /** @type {[string, string | number][]} */ ([
    ["viewBox", "0 0 16 16"],
    ["width", 14],
    ["height", 14],
    ["aria-hidden", "true"],
  ]);
  for (const [name, value] of attributes) svg.setAttribute(name, value);
  shape.setAttribute("d", path);
  shape.setAttribute("fill", "currentColor");
  svg.append(shape);
  return svg;
}

/**
 * How many times slower than its clock a race is played.
 * @param {number} rate ms of the clock in a millisecond
 */
function slowing(rate) {
  return rate > 0.1 ? (1 / rate).toFixed(1) : Math.round(1 / rate).toLocaleString("en");
}

/**
 * The model of a panel as the race's header names it.
 * @param {PanelEntry} entry
 */
function modelName(entry) {
  return [entry.model, entry.quantization === "none" ? "" : entry.quantization]
    .filter(Boolean)
    .join(" ");
}

/**
 * What tells the weights of one panel from those of another, in words; "" where they are the same.
 * @param {PanelEntry} own
 * @param {PanelEntry} base
 */
function unlike(own, base) {
  if (!own || !base || own === base) return "";
  const differ = ["model", "dtype", "quantization"].filter(
    (fact) => (own[fact] ?? "") !== (base[fact] ?? ""),
  );
  const said = (entry) =>
    differ
      .map((fact) =>
        fact === "quantization" && entry[fact] === "none" ? t("model.not_quantized") : entry[fact],
      )
      .filter(Boolean)
      .join(" ") || NONE;
  return differ.length ? t("panel.unlike", { own: said(own), base: said(base) }) : "";
}

/**
 * The layers that a pass ran and those that it left out, in words.
 * @param {Pass} pass
 * @param {number} layers  of the model
 */
function layersOf(pass, layers) {
  const ran = Array.from({ length: layers }, (_, layer) =>
    pass.runs.some(([start, stop]) => start <= layer && layer < stop),
  );
  const ranges = (wanted) =>
    ran
      .flatMap((is, first) => {
        if (is !== wanted || (first && ran[first - 1] === wanted)) return [];
        const end = ran.findIndex((other, layer) => layer > first && other !== wanted),
          last = end < 0 ? layers : end;
        return [first + 1 === last ? String(last) : `${first + 1}–${last}`];
      })
      .join(t("list.comma"));
  const pass_ = PASS_NAMES[pass.kind] || pass.kind;
  return ran.every(Boolean)
    ? t("token.all_layers", { pass: pass_, layers })
    : t("token.layers", { pass: pass_, ran: ranges(true), out: ranges(false) });
}

/**
 * Once what was drawn is on screen.
 * @param {() => void} then
 */
function afterPaint(then) {
  requestAnimationFrame(() => setTimeout(then));
}
