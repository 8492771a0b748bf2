"""The results of `eval` and `curves` as Markdown tables, for documents and model cards."""

from __future__ import annotations

from typing import Any

HEADINGS = {
    "exact_match": "exact match",
    "relative": "÷ `ar`",
    "audit_agreement": "audit",
    "repetition_ratio": "repetition",
    "mean_span": "mean span",
    "tokens_per_full_pass": "tokens per full pass",
    "plt": "PLT",
    "tokens_per_second": "tokens/s",
    "over_ar": "speed-up",
}
PERCENT = {"exact_match", "relative", "audit_agreement", "plt"}
WITH_INTERVAL = {"exact_match", "relative", "over_ar"}


def summary_table(result: dict[str, Any]) -> str:
    """Format the results of `eval`, one line a panel; brackets are 95 % bootstrap intervals."""
    lines = [["panel", *HEADINGS.values()], ["---"] * (len(HEADINGS) + 1)]
    for row in result["rows"]:
        cells = []
        for name in HEADINGS:
            cell = _shown(name, row[name])
            interval = row["intervals"][name]
            if name in WITH_INTERVAL and interval and interval[0] != interval[1]:
                cell += f" [{_bare(name, interval[0])}, {_bare(name, interval[1])}]"
            cells.append(cell)
        lines.append([f"`{row['panel']}`", *cells])
    return markdown(lines)


def accepted_table(result: dict[str, Any]) -> str:
    """Return a line for each panel that checks drafts: how many were accepted, how deep.

    A step that accepted i drafts emitted i + 1 tokens; the last one of a text is cut at its end.
    """
    rows = [row for row in result["rows"] if row["decoder"].endswith("-verified")]
    depth = max(int(span) for row in rows for span in row["spans"]) - 1
    head = ["panel", "text is `ar`'s", "mean accepted", *(f"≥ {i}" for i in range(1, depth + 1))]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        spans = {int(span): count for span, count in row["spans"].items()}
        steps = sum(spans.values())
        deep = [sum(n for span, n in spans.items() if span > i) for i in range(1, depth + 1)]
        lines.append(
            [
                f"`{row['panel']}`",
                f"{row['same_as_ar']} of {result['prompts']}",
                f"{row['mean_span'] - 1:.2f}",
                *(percent(n / steps) if n else "–" for n in deep),
            ]
        )
    return markdown(lines)


def family_table(result: dict[str, Any]) -> str:
    """Format exact match by family, in per cent."""
    rows = result["rows"]
    lines = [["family", *(f"`{row['panel']}`" for row in rows)], ["---"] * (len(rows) + 1)]
    for family in rows[0]["exact_match_by_family"]:
        lines.append(
            [family, *(f"{row['exact_match_by_family'][family] * 100:.0f}" for row in rows)]
        )
    return markdown(lines)


def curve_tables(result: dict[str, Any]) -> str:
    """Format the results of `curves`, in per cent.

    One line an MTP head; then exact match at each cycle length over training.
    """
    heads = result["heads"]
    lines = [["i", "head i is right", "heads 1 to i all are"], ["---"] * 3]
    lines += [
        [str(i), f"{one * 100:.1f} %", f"{together * 100:.1f} %"]
        for i, (one, together) in enumerate(zip(heads["head"], heads["prefix"]), 1)
    ]
    stages = [
        *((f"{at['tokens'] / 1e6:.2f} M", at) for at in result["over_training"]),
        ("as shipped", {"exact_match": result["exact_match"], "heads": heads["head"]}),
    ]
    taus = [str(tau) for tau in stages[-1][1]["exact_match"]]
    over = [
        [
            "tokens",
            *(f"τ = {tau}" for tau in taus),
            *(f"head {i + 1}" for i in range(len(heads["head"]))),
        ]
    ]
    over.append(["---"] * len(over[0]))
    over += [
        [name, *(f"{share * 100:.1f}" for share in [*at["exact_match"].values(), *at["heads"]])]
        for name, at in stages
    ]
    return markdown(lines) + "\n" + markdown(over)


def markdown(lines: list[list[str]]) -> str:
    """Format lines of cells as a Markdown table."""
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def percent(share: float | None) -> str:
    """Format a share in per cent; None is a dash."""
    return "–" if share is None else f"{share * 100:.1f} %"


def _bare(name: str, value: float) -> str:
    return f"{value * 100:.1f}" if name in PERCENT else f"{value:.2f}"


def _shown(name: str, value: float | None) -> str:
    if value is None:
        return "–"
    if name == "repetition_ratio":
        return f"{value:.3f}"
    if name == "tokens_per_second":
        return f"{value:.0f}"
    return _bare(name, value) + (" %" if name in PERCENT else "×" if name == "over_ar" else "")
