// The record of the race on screen, as it came: what the replay, the exports and the pictures are
// made from.
//
// A moment is the smallest step of a replay: one token, or one step of a decoder that emitted none;
// tokens [from, to) of that step record, at its clock.

/**
 * The text that a panel's moments wrote.
 * @param {Moment[]} moments
 */
function textOfSteps(moments) {
  return moments
    .flatMap(({ step, from, to }) => step.tokens.slice(from, to))
    .map((token) => token.text)
    .join("");
}

class Tape {
  constructor() {
    this.clear();
  }

  clear() {
    /** @type {Header | null} */
    this.header = null;
    /** @type {Turn[][]} */
    this.turns = [];
    /** @type {Step[]} */
    this.steps = [];
    /** @type {Moment[][]} of each panel, in order */
    this.panels = [];
    /** @type {boolean[][]} of each panel that was audited */
    this.audits = [];
    /** @type {Judged[][]} likewise, where the record has them */
    this.choices = [];
    /** @type {Summary[]} of each panel that has ended */
    this.summaries = [];
    /** @type {Moment[]} */
    this.sorted = [];
  }

  /** @param {TraceLine | PageLine} record */
  add(record) {
    switch (record.type) {
      case "page":
        this.turns = record.turns;
        break;
      case "header":
        this.header = record;
        this.panels = record.panels.map(() => []);
        break;
      case "step":
        this.addStep(record);
        break;
      case "audit":
        this.audits[record.panel] = record.agrees;
        if (record.choices) this.choices[record.panel] = record.choices;
        break;
      case "end":
      case "summary":
        this.summaries[record.panel] = record;
        break;
    }
  }

  /** @param {Step} step */
  addStep(step) {
    this.steps.push(step);
    const own = this.panels[step.panel];
    const last = own.findLast((moment) => moment.to > moment.from);
    if (last && step.tokens.length && step.tokens[0].span !== last.step.tokens[last.to - 1].span)
      last.endsCycle = true;
    const count = step.tokens.length;
    for (let to = Math.min(1, count); to <= count; to += 1) {
      own.push({
        ms: step.ms,
        panel: step.panel,
        step,
        from: Math.max(to - 1, 0),
        to,
        endsPass: to === count,
        endsCycle: false,
      });
    }
  }

  // All moments on the one clock that the panels share. Sorted anew only when some have come.
  get moments() {
    const count = this.panels.reduce((sum, own) => sum + own.length, 0);
    if (count !== this.sorted.length)
      this.sorted = this.panels.flat().sort((a, b) => a.ms - b.ms || a.panel - b.panel);
    return this.sorted;
  }

  /**
   * How many moments of each panel lie among the first `count` on the shared clock.
   * @param {number} count
   */
  counts(count) {
    const counts = this.panels.map(() => 0);
    for (const moment of this.moments.slice(0, count)) counts[moment.panel] += 1;
    return counts;
  }

  // The audits as records again.
  get auditRecords() {
    return this.audits.flatMap((agrees, panel) =>
      agrees
        ? [
            {
              type: "audit",
              panel,
              agrees,
              ...(this.choices[panel] ? { choices: this.choices[panel] } : {}),
            },
          ]
        : [],
    );
  }

  get sampled() {
    return (this.header?.sampling?.temperature || 0) > 0;
  }

  /**
   * Whether two panels were asked in the same conversation. In a chat that went on each has answers of its own behind it, and what follows them cannot be compared.
   * @param {number} panel
   * @param {number} other
   */
  sameTalk(panel, other) {
    return JSON.stringify(this.turns[panel]) === JSON.stringify(this.turns[other]);
  }

  /**
   * Where the text of a lossless panel parts from that of ar on the same weights; null: nowhere, or nobody can say.
   * @param {number} panel
   * @returns {Parting | null}
   */
  parting(panel) {
    const entries = this.header?.panels || [],
      own = entries[panel];
    const ar = entries.findIndex((entry) => entry.decoder === "ar" && !unlike(entry, own));
    if (!own?.lossless || this.sampled || ar < 0 || !this.choices[panel] || !this.choices[ar])
      return null;
    if (!this.sameTalk(panel, ar)) return null;
    const [theirs, ours] = [ar, panel].map((each) =>
      this.panels[each].flatMap(({ step, from, to }) => step.tokens.slice(from, to)),
    );
    const index = ours.findIndex((token, at) => at < theirs.length && token.id !== theirs[at].id);
    if (index < 0 || !this.choices[panel][index] || !this.choices[ar][index]) return null;
    const end = { text: t("token.end") };
    return {
      index,
      ars: (theirs[index].text ? theirs[index] : end).text,
      own: (ours[index].text ? ours[index] : end).text,
      arsChance: this.choices[ar][index][3],
      ownChance: this.choices[panel][index][3],
    };
  }

  // In ms: the clock of the slowest panel, as far as it has come.
  get duration() {
    return Math.max(0, ...this.panels.map((own) => own.at(-1)?.ms || 0));
  }
}
