// The summary table: one row per panel, filled as the panels end. Every heading explains itself in plain words.

const COLUMNS = [
  ["tokens/s", "Tokens per second on the panel's own clock. The prefill and the first token are left out.", (s) => speed(s.tokens_per_second)],
  ["speed-up", "Tokens per second divided by those of panel 1.", (s, first) => (first && first.tokens_per_second ? ratio(s.tokens_per_second / first.tokens_per_second) : NONE)],
  ["first token", "Milliseconds from the start of the prefill to the first token.", (s) => (isNumber(s.first_token_ms) ? `${s.first_token_ms.toFixed(1)} ms` : NONE)],
  ["tokens per full pass", "How many tokens one pass through all layers paid for, on average. Ordinary decoding: 1.", (s) => fixed(s.tokens_per_full_pass, 2)],
  ["PLT", "Percentage of layers per token: how much of the model's depth ran for one token, on average. Ordinary decoding: 100 %.", (s) => percent(s.plt, 0)],
  ["repetition", "Share of 4-token sequences that had already occurred in the same text. High values mean that the text goes round in circles.", (s) => percent(s.repetition_ratio)],
  ["agreement with panel 1", "How far the text is the same as panel 1's, from the start, as a share of the longer of the two.", (s) => percent(s.agreement, 0)],
  ["audit", "Share of the tokens not made by a full pass that ordinary decoding, given the same text before, would have chosen too.", (s) => percent(s.audit_agreement)],
  ["extra parameters", "Parameters that the method adds to the model: MTP heads, predictors, gates.", (s) => big(s.extra_parameters)],
  ["tokens", "Tokens emitted, the end-of-text token included.", (s) => s.tokens.toLocaleString("en")],
];

class SummaryTable {
  constructor() {
    this.body = el("tbody");
    const headings = [["panel", "The number of the panel and its decoder with its options."], ...COLUMNS];
    this.node = el("div", { class: "summary", hidden: true },
      el("table", {}, el("caption", {}, "Summary"),
        el("thead", {}, el("tr", {}, ...headings.map(([name, hint]) => el("th", { scope: "col" }, el("span", { tabindex: 0, "data-hint": hint }, name))))),
        this.body));
  }

  draw(panels, summaries) {
    this.node.hidden = !panels.some((panel) => panel.decoder);
    const first = summaries[0];
    this.body.replaceChildren(...panels.map((panel) => {
      const cells = COLUMNS.map(([, , cell]) => el("td", {}, summaries[panel.index] ? cell(summaries[panel.index], first) : NONE));
      return el("tr", { style: `--panel: var(--panel-${panel.index})` },
        el("th", { scope: "row" }, el("span", { class: "badge" }, String(panel.index + 1)), el("span", {}, panel.spec.textContent)), ...cells);
    }));
  }
}
