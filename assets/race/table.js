// The summary table: one row per panel, filled as the panels end. Every heading explains itself in
// plain words.

const COLUMNS = [
  [
    t("table.speed"),
    t("table.speed.hint"),
    (s) => speed(s.tokens_per_second),
    (was) => speed(was.speed),
  ],
  [
    t("table.ratio"),
    t("table.ratio.hint"),
    (s, first, tape) =>
      first && first.tokens_per_second
        ? `${ratio(s.tokens_per_second / first.tokens_per_second)} ${unlike(tape.header.panels[s.panel], tape.header.panels[0])}`.trim()
        : NONE,
  ],
  [
    t("table.first_token"),
    t("table.first_token.hint"),
    (s) => (isNumber(s.first_token_ms) ? `${s.first_token_ms.toFixed(1)} ms` : NONE),
  ],
  [
    t("table.per_pass"),
    t("table.per_pass.hint"),
    (s) => fixed(s.tokens_per_full_pass, 2),
    (was) => fixed(was.perPass, 2),
  ],
  [t("table.plt"), t("table.plt.hint"), (s) => percent(s.plt, 0)],
  [t("table.repetition"), t("table.repetition.hint"), (s) => percent(s.repetition_ratio)],
  [
    t("table.agreement"),
    t("table.agreement.hint"),
    (s, _, tape) => (tape.sampled || !tape.sameTalk(s.panel, 0) ? NONE : percent(s.agreement, 0)),
  ], // of drawn texts it would say nothing of the decoders
  [
    t("table.audit"),
    t("table.audit.hint"),
    (s) => percent(s.audit_agreement),
    (was) => percent(was.audit),
  ],
  [t("table.parameters"), t("table.parameters.hint"), (s) => big(s.extra_parameters)],
  [t("table.tokens"), t("table.tokens.hint"), (s) => s.tokens.toLocaleString("en")],
];

class SummaryTable {
  constructor() {
    this.body = el("tbody");
    const headings = [[t("table.panel"), t("table.panel.hint")], ...COLUMNS];
    this.node = el(
      "div",
      { class: "summary", hidden: true },
      el(
        "table",
        {},
        el("caption", {}, t("table")),
        el(
          "thead",
          {},
          el(
            "tr",
            {},
            ...headings.map(([name, hint]) =>
              el("th", { scope: "col" }, el("span", { tabindex: 0, "data-hint": hint }, name)),
            ),
          ),
        ),
        this.body,
      ),
    );
  }

  draw(panels, tape, summaries = tape.summaries) {
    this.node.hidden = !panels.some((panel) => panel.decoder);
    const first = summaries[0];
    this.body.replaceChildren(
      ...panels.map((panel) => {
        const cells = COLUMNS.map(([, , cell, was]) =>
          el(
            "td",
            {
              ...FIGURE,
              "data-was":
                panel.before && was ? t("before.was", { speed: was(panel.before) }) : null,
            },
            summaries[panel.index] ? cell(summaries[panel.index], first, tape) : NONE,
          ),
        );
        return el(
          "tr",
          { style: `--panel: var(--panel-${panel.index})` },
          el(
            "th",
            { scope: "row" },
            el("span", { class: "badge" }, String(panel.index + 1)),
            el("span", FIGURE, panel.spec.textContent),
          ),
          ...cells,
        );
      }),
    );
  }
}
