// The record of a race as text, and back: JSON lines (docs/design.md, "The trace") and a table with
// one row per token.

const RECORD_TYPES = ["header", "step", "audit", "end", "summary"];
const MOST_PANELS = 4;
const MOST_LAYERS = 1000;
const MOST_DRAFTS = 1000;
const MOST_RECORDS = 200_000;
const MOST_TOKENS = 1_000_000;
const MOST_DEPTH = 20;

/**
 * The lines of a tape, with the conversations in the header, so that a file shows the same page
 * again.
 * @param {Tape} tape
 */
function recordLines(tape) {
  const header = { ...tape.header, conversations: tape.turns };
  return (
    [header, ...tape.steps, ...tape.auditRecords, ...tape.summaries.filter(Boolean)]
      .map((record) => JSON.stringify(record))
      .join("\n") + "\n"
  );
}

/**
 * The text of a file: UTF-8, or what its byte-order mark says. The shell of Windows writes UTF-16.
 * @param {ArrayBuffer} bytes
 */
function decoded(bytes) {
  const [first, second] = new Uint8Array(bytes.slice(0, 2));
  const encoding =
    first === 0xff && second === 0xfe
      ? "utf-16le"
      : first === 0xfe && second === 0xff
        ? "utf-16be"
        : "utf-8";
  return new TextDecoder(encoding).decode(bytes); // takes the mark off
}

/**
 * The records of a race from the text of a file: JSON lines, or one JSON array. Throws an Error
 * whose message says what was needed and what was got.
 * @param {string} text
 * @returns {TraceLine[]}
 */
function parseRecord(text) {
  checkDepth(text);
  const lines = text.trim().startsWith("[")
    ? parseJson(text, 1)
    : text.split("\n").map((line, index) => (line.trim() ? parseJson(line, index + 1) : null));
  const records = lines
    .map((record, index) => [record, index + 1])
    .filter(([record]) => record !== null);
  need(
    records.length <= MOST_RECORDS,
    t("record.most_records", { most: MOST_RECORDS }),
    records.length,
    MOST_RECORDS,
  );
  const [header] = records.length ? records[0] : [null];
  need(header?.type === "header" && header.schema === 1, t("record.header"), header, 1);
  need(
    Array.isArray(header.panels) &&
      header.panels.length >= 1 &&
      header.panels.length <= MOST_PANELS,
    t("record.panels", { most: MOST_PANELS }),
    header.panels,
    1,
  );
  header.panels.forEach((entry, index) =>
    need(
      entry?.panel === index &&
        isText(entry.spec) &&
        isText(entry.decoder) &&
        Number.isInteger(entry.layers ?? 1) &&
        (entry.layers ?? 1) >= 1 &&
        (entry.layers ?? 1) <= MOST_LAYERS,
      t("record.panel", { index }),
      entry,
      1,
    ),
  );
  need(
    Array.isArray(header.conversations ?? []) &&
      (header.conversations ?? []).every(
        (turns) =>
          Array.isArray(turns) &&
          turns.every((turn) => isText(turn?.role) && isText(turn?.content)),
      ),
    t("record.conversations"),
    header.conversations,
    1,
  );
  const clocks = header.panels.map(() => 0);
  let tokens = 0;
  for (const [record, line] of records.slice(1)) {
    need(
      RECORD_TYPES.slice(1).includes(record?.type),
      t("record.types", { types: RECORD_TYPES.slice(1).join(", ") }),
      record?.type,
      line,
    );
    need(
      Number.isInteger(record.panel) && record.panel in header.panels,
      t("record.panel_number"),
      record.panel,
      line,
    );
    if (record.type === "audit")
      need(
        Array.isArray(record.agrees) && record.agrees.every((agree) => typeof agree === "boolean"),
        t("record.agrees"),
        record.agrees,
        line,
      );
    if (record.type === "audit")
      need(
        (record.choices ?? []).every?.(
          (each) =>
            Array.isArray(each) && isText(each[1]) && isNumber(each[2]) && isNumber(each[3]),
        ),
        t("record.choices"),
        record.choices,
        line,
      );
    if (record.type === "summary" || record.type === "end")
      need(
        isText(record.stop) && isNumber(record.tokens) && isNumber(record.full_passes),
        t("record.summary"),
        record,
        line,
      );
    if (record.type !== "step") continue;
    need(
      isNumber(record.ms) && record.ms >= clocks[record.panel],
      t("record.clock"),
      record.ms,
      line,
    );
    clocks[record.panel] = record.ms;
    need(
      Array.isArray(record.passes) &&
        record.passes.every(
          (pass) =>
            isText(pass?.kind) &&
            Array.isArray(pass.runs) &&
            pass.runs.length &&
            pass.runs.every(isRun),
        ),
      t("record.passes"),
      record.passes,
      line,
    );
    need(
      !("lengths" in record) || (Array.isArray(record.lengths) && record.lengths.every(isNumber)),
      t("record.lengths"),
      record.lengths,
      line,
    );
    need(isTree(record.tree ?? [], record.stood ?? []), t("record.tree"), record.tree, line);
    need(Array.isArray(record.tokens), t("record.tokens"), record.tokens, line);
    tokens += record.tokens.length;
    need(tokens <= MOST_TOKENS, t("record.most_tokens", { most: MOST_TOKENS }), tokens, line);
    for (const token of record.tokens) {
      need(
        isText(token?.text) && Number.isInteger(token.id ?? 0) && Number.isInteger(token.span),
        t("record.token"),
        token,
        line,
      );
      need(
        Object.hasOwn(ORIGINS, token.origin),
        t("record.origin", { origins: Object.keys(ORIGINS).join(", ") }),
        token.origin,
        line,
      );
      need(
        (token.top ?? []).every?.(
          (each) => Array.isArray(each) && isText(each[1]) && isNumber(each[2]),
        ),
        t("record.alternatives"),
        token.top,
        line,
      );
    }
  }
  return records.map(([record]) => record);
}

/** @type {(run: unknown) => boolean} */
const isRun = (run) =>
  Array.isArray(run) &&
  run.length === 3 &&
  run.every(Number.isInteger) &&
  run[0] >= 0 &&
  run[1] > run[0] &&
  run[1] <= MOST_LAYERS &&
  run[2] > 0;
// A parent comes before its draft, and what stands is one branch.
/** @type {(parents: unknown, stood: unknown) => boolean} */
const isTree = (parents, stood) =>
  Array.isArray(parents) &&
  Array.isArray(stood) &&
  parents.length <= MOST_DRAFTS &&
  parents.every((parent, i) => Number.isInteger(parent) && parent >= -1 && parent < i) &&
  stood.every((draft, i) => parents[draft] === (i ? stood[i - 1] : -1));
/** @type {(value: unknown) => value is string} */
const isText = (value) => typeof value === "string";

/**
 * @param {boolean} holds
 * @param {string} what  was needed
 * @param {unknown} got
 * @param {number} line
 */
function need(holds, what, got, line) {
  if (holds) return;
  const shown = got === undefined || got === null ? t("record.nothing") : JSON.stringify(got);
  throw new Error(
    t("record.needs", { what, got: shown.length > 80 ? `${shown.slice(0, 80)} …` : shown, line }),
  );
}

/**
 * Lists within lists without end are refused before anything walks down them.
 * @param {string} text
 */
function checkDepth(text) {
  let depth = 0,
    quoted = false,
    line = 1;
  for (let at = 0; at < text.length; at++) {
    const sign = text[at];
    if (sign === "\n") line++;
    if (quoted) {
      if (sign === "\\") at++;
      else if (sign === '"') quoted = false;
    } else if (sign === '"') quoted = true;
    else if (sign === "[" || sign === "{")
      need(++depth <= MOST_DEPTH, t("record.depth", { most: MOST_DEPTH }), depth, line);
    else if (sign === "]" || sign === "}") depth--;
  }
}

/**
 * @param {string} text
 * @param {number} line
 */
function parseJson(text, line) {
  try {
    return JSON.parse(text.trim()); // without the marks of files that were put one behind the other
  } catch {
    return need(false, t("record.json"), text.trim().slice(0, 60), line);
  }
}

/**
 * One row per token. A text is written as JSON, so that white space stays visible and no spreadsheet
 * takes it for a formula. A byte-order mark says that it is UTF-8, which spreadsheets else take for
 * the system's own encoding.
 * @param {Tape} tape
 */
function recordTable(tape) {
  /** @type {(string | number | boolean)[][]} */
  const rows = [
    [
      "panel",
      "spec",
      "token",
      "step",
      "ms",
      "span",
      "origin",
      "id",
      "text (JSON)",
      "probability",
      "ar agrees",
    ],
  ];
  const counts = tape.panels.map(() => 0);
  for (const step of tape.steps) {
    for (const token of step.tokens) {
      const index = counts[step.panel]++;
      rows.push([
        step.panel + 1,
        tape.header.panels[step.panel].spec,
        index + 1,
        step.step,
        step.ms,
        token.span,
        token.origin,
        token.id ?? "",
        JSON.stringify(token.text),
        isNumber(token.logprob) ? Math.exp(token.logprob).toPrecision(6) : "",
        tape.audits[step.panel]?.[index] ?? "",
      ]);
    }
  }
  return "\ufeff" + rows.map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
}

/** @param {string | number | boolean} value */
function cell(value) {
  const text =
    typeof value === "string" && /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}
