"""The page's scripts that draw nothing themselves (format, tape, record, figures), each by itself
in a blank page: what they answer, without an app behind them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from dmtd_demo.ui.race_view import PLOTLY
from dmtd_demo.web.files import ASSETS, SCRIPTS
from dmtd_demo.web.stylesheet import style
from dmtd_demo.web.texts import LANGUAGES

HEADER = {
    "type": "header",
    "schema": 1,
    "run": "1",
    "prompt": "Hi",
    "panels": [
        {"panel": 0, "spec": "ar", "decoder": "ar", "layers": 4},
        {"panel": 1, "spec": "dmtd:tau=2", "decoder": "dmtd", "layers": 4},
    ],
}


def step(panel: int, number: int, ms: float, kind: str, span: int, *texts: str) -> dict[str, Any]:
    """A step record whose pass took one run of layers; each text is one token of that origin."""
    origin = "late" if kind == "late" else "full"
    tokens = [{"id": 7, "text": text, "origin": origin, "span": span} for text in texts]
    passes = [{"kind": kind, "runs": [[0, 4, 1]]}]
    return {
        "type": "step",
        "panel": panel,
        "step": number,
        "ms": ms,
        "tokens": tokens,
        "passes": passes,
    }


# panel 0: three tokens, each a span; panel 1: the prefill's, then a span of two by two passes
STEPS = [
    step(0, 0, 10, "prefill", 0, "a"),
    step(1, 0, 10, "prefill", 0, "a"),
    step(1, 1, 20, "full", 1, " b"),
    step(1, 2, 25, "late", 1, "\n"),
    step(0, 1, 30, "full", 1, " b"),
    step(1, 3, 40, "full", 2, "=c"),
    step(0, 2, 50, "full", 2, "\n"),
]
TAPE = f"""const tape = new Tape();
for (const record of {json.dumps([HEADER, *STEPS])}) tape.add(record);
"""


@pytest.fixture(scope="module")
def blank(chromium: Any) -> Iterator[Any]:
    """A page with the scripts, all but the last one, which begins the race view."""
    page = chromium.new_page(locale="en-US")
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    code = [f"const TEXTS = {json.dumps(LANGUAGES)};"] + [
        (ASSETS / "race" / f"{name}.js").read_text(encoding="utf-8")
        for name in SCRIPTS
        if name != "race"
    ]
    page.add_style_tag(content=style())
    page.add_script_tag(content="\n".join(code))
    yield page
    page.close()
    assert not complaints, complaints


def answer(page: Any, code: str) -> Any:
    return page.evaluate(f"() => {{ {code} }}")


@pytest.mark.parametrize(
    ("call", "text"),
    [
        ("speed(null)", "–"),
        ("speed(12.34)", "12.3"),
        ("speed(1234.5)", "1,235"),
        ("percent(0.5)", "50.0 %"),
        ("percent(NaN)", "–"),
        ("ratio(1.239)", "1.24×"),
        ("big(1_500_000)", "1.50 M"),
        ("big(2.5e9)", "2.50 B"),
        ("big(999)", "999"),
        ("plural(1, 'token')", "1 token"),
        ("plural(2000, 'pass')", "2,000 full passes"),
        ("probability(Math.log(0.25))", "25.0 %"),
        ("probability(-12)", "6.1e-4 %"),
        ("visible(' a\\n')", "␣a⏎"),
        ("spaced('a b\\n')", "a·b⏎\n"),
        ("readable('\\ufffd')", "▯"),
        ("sentence('a race needs 2 panels')", "A race needs 2 panels"),
        ("sentence('ar is no panel')", "ar is no panel"),
        ("modelName({model: 'm', quantization: 'int8'})", "m int8"),
        ("modelName({model: 'm', quantization: 'none'})", "m"),
    ],
)
def test_numbers_and_texts_as_the_page_writes_them(blank: Any, call: str, text: str) -> None:
    assert answer(blank, f"return {call};") == text


def test_an_element_is_built_without_html(blank: Any) -> None:
    html = answer(
        blank, "return el('b', { title: '<i>', hidden: true, id: null }, '<i>', null).outerHTML;"
    )
    assert html == '<b title="&lt;i&gt;" hidden="">&lt;i&gt;</b>'


def test_texts_after_other_conversations_are_not_compared(blank: Any) -> None:
    """A chat went on where each panel had an answer of its own: parting from ar says nothing there."""
    panels = [HEADER["panels"][0], {"panel": 1, "decoder": "dmtd-spec", "lossless": True}]
    steps = [step(0, 0, 10, "full", 0, "a"), step(1, 0, 10, "full", 0, "b")]
    steps[1]["tokens"][0]["id"] = 8
    judged = [{"type": "audit", "panel": p, "agrees": [True]} for p in (0, 1)]
    judged = [{**each, "choices": [[7, "a", 0.5, 0.4]]} for each in judged]
    records = json.dumps([{**HEADER, "panels": panels}, *steps, *judged])
    asked = {"role": "user", "content": "Hi"}
    turns = [[[asked], [asked]], [[asked, {"role": "assistant", "content": "I"}], [asked]]]
    same, other = answer(
        blank,
        f"""return {json.dumps(turns)}.map((turns) => {{
          const tape = new Tape();
          for (const record of {records}) tape.add(record);
          tape.add({{ type: "page", turns }});
          return [tape.parting(1)?.index ?? null, tape.sameTalk(1, 0)];
        }});""",
    )
    assert same == [0, True] and other == [None, False]


def test_a_tape_has_its_moments_on_one_clock(blank: Any) -> None:
    moments, counts, duration = answer(
        blank,
        TAPE
        + """return [tape.moments.map(({ ms, panel, from, to, endsPass, endsCycle }) =>
          [ms, panel, from, to, endsPass, endsCycle]), tape.counts(4), tape.duration];""",
    )
    assert [moment[:2] for moment in moments] == [
        [10, 0],
        [10, 1],
        [20, 1],
        [25, 1],
        [30, 0],
        [40, 1],
        [50, 0],
    ]
    assert all(moment[2:5] == [0, 1, True] for moment in moments)
    # a cycle ends where the next token has another span
    assert [ms for ms, panel, *_, ends in moments if ends and panel == 1] == [10, 25]
    assert counts == [1, 3] and duration == 50


def test_a_step_of_many_tokens_is_as_many_moments(blank: Any) -> None:
    many = [HEADER, step(0, 0, 5, "verify", 1, "a", "b", "c"), step(0, 1, 6, "full", 2)]
    code = f"""const tape = new Tape(); for (const record of {json.dumps(many)}) tape.add(record);
      return tape.moments.map(({{ from, to, endsPass }}) => [from, to, endsPass]);"""
    assert answer(blank, code) == [[0, 1, False], [1, 2, False], [2, 3, True], [0, 0, True]]


def test_a_record_comes_back_from_its_lines(blank: Any) -> None:
    lines, again, array, marked = answer(
        blank,
        TAPE
        + """tape.add({ type: "page", turns: [[{ role: "user", content: "Hi" }], []] });
      tape.add({ type: "audit", panel: 1, agrees: [true, false] });
      const lines = recordLines(tape);
      const array = `[${lines.trim().split("\\n").join()}]`;
      const marked = lines.replaceAll("\\n", "\\r\\n\\ufeff");
      return [lines, parseRecord(lines), parseRecord(array), parseRecord(marked)];""",
    )
    assert again == array == marked == [json.loads(line) for line in lines.splitlines()]
    assert again[0] == HEADER | {"conversations": [[{"role": "user", "content": "Hi"}], []]}
    assert again[1:-1] == STEPS


def test_files_of_other_systems_are_read(blank: Any) -> None:
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-16-be"):
        data = "é 你\u2028".encode(encoding)
        data = b"\xfe\xff" + data if encoding == "utf-16-be" else data
        code = f"return decoded(new Uint8Array({list(data)}).buffer);"
        assert answer(blank, code) == "é 你\u2028", encoding


@pytest.mark.parametrize(
    ("records", "needed"),
    [
        ([], "line 1"),
        ([{"type": "step"}], "line 1"),
        ([HEADER | {"schema": 2}], "line 1"),
        ([HEADER | {"panels": []}], "line 1"),
        ([HEADER, STEPS[0] | {"panel": 2}], "line 2"),
        ([HEADER, STEPS[4], STEPS[0]], "line 3"),
        ([HEADER, STEPS[0] | {"passes": [{"kind": "full", "runs": [[4, 2, 1]]}]}], "line 2"),
        ([HEADER, STEPS[0] | {"tokens": [{"text": "", "span": 0, "origin": "x"}]}], "line 2"),
        ([HEADER, {"type": "audit", "panel": 0, "agrees": [1]}], "line 2"),
    ],
)
def test_what_is_no_record_is_refused_by_its_line(
    blank: Any, records: list[dict[str, Any]], needed: str
) -> None:
    text = json.dumps("\n".join(map(json.dumps, records)))
    message = answer(blank, f"try {{ parseRecord({text}); }} catch (e) {{ return e.message; }}")
    assert message and needed in message


def test_a_table_has_a_row_for_each_token(blank: Any) -> None:
    head, *rows = answer(blank, TAPE + "return recordTable(tape);").splitlines()
    # spreadsheets take it for the system's own encoding without the mark
    assert head.startswith("\ufeffpanel,spec,token,step,ms,span,origin")
    assert rows[3].split(",")[:8] == ["2", "dmtd:tau=2", "3", "2", "25", "1", "late", "7"]
    assert len(rows) == len(STEPS)
    assert answer(blank, "return ['=1+1', 'a,\"b', 2].map(cell);") == ["'=1+1", '"a,""b"', "2"]


@pytest.mark.parametrize(
    ("passes", "origin", "kind"),
    [
        ([{"kind": "prefill", "runs": [[0, 4, 9]]}], "full", "prefill"),
        ([{"kind": "full", "runs": [[0, 4, 1]]}], "full", "full"),
        ([{"kind": "full", "runs": [[0, 2, 3], [2, 4, 1]]}], "full", "refill"),
        ([{"kind": "full", "runs": [[0, 4, 1]]}], "mtp", "mtp"),
        ([{"kind": "late", "runs": [[3, 4, 1]]}], "late", "late"),
        (
            [{"kind": "full", "runs": [[0, 4, 1]]}, {"kind": "verify", "runs": [[0, 4, 4]]}],
            "draft",
            "verify",
        ),
    ],
)
def test_the_time_of_a_step_goes_to_its_kind_of_pass(
    blank: Any, passes: list[dict[str, Any]], origin: str, kind: str
) -> None:
    given = json.dumps({"passes": passes, "tokens": [{"origin": origin}]})
    assert answer(blank, f"return timeOf({given});") == kind


def test_figures_hold_what_their_panels_have(blank: Any) -> None:
    """The panels as the first half of the race leaves them, then as all of it does, in Plotly."""
    blank.add_script_tag(path=PLOTLY)
    half, whole, spans, times = answer(
        blank,
        TAPE
        + """const panels = [new Panel(0), new Panel(1)];
      const look = new Charts("", [], () => panels);
      document.body.append(look.node);
      const race = new LineFigure("race", "r", "r", look, () => panels, (panel) => panel.curve, "t");
      const span = new SpanFigure("span", "s", "s", look, () => panels);
      const time = new TimeFigure("time", "t", "t", look, () => panels);
      for (const figure of [race, span, time]) { document.body.append(figure.plot); figure.reset(); }
      panels.forEach((panel, index) => panel.begin(tape.header.panels[index], false));
      const show = (count) => {
        const counts = tape.counts(count);
        panels.forEach((panel, index) => panel.show(tape.panels[index], counts[index]));
        for (const figure of [race, span, time]) figure.draw();
        return race.plot.data.map(({ x, y }) => [[...x], [...y]]);
      };
      return [show(4), show(7), span.plot.data.map(({ x, y }) => [[...x], [...y]]),
        Object.fromEntries(Object.keys(TIMES).map((key, i) => [key, [...time.plot.data[i].x]]))];""",
    )
    assert half == [[[0.01], [1]], [[0.01, 0.02, 0.025], [1, 2, 3]]]
    assert whole == [[[0.01, 0.03, 0.05], [1, 2, 3]], [[0.01, 0.02, 0.025, 0.04], [1, 2, 3, 4]]]
    assert spans == [[[1], [1]], [[2], [1]]]  # those that have ended, by their length
    assert times["prefill"] == [0.01, 0.01]
    assert times["full"] == pytest.approx([0.04, 0.025]) and times["late"] == [0, 0.005]
