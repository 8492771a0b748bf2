"""The library as notebooks use it, and the notebook that shows it."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

import dmtd_demo
from dmtd_demo import Comparison, compare
from dmtd_demo.errors import UserError
from dmtd_demo.models.loading import load
from dmtd_demo.models.model import Model

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "docs" / "notebook.ipynb"


@pytest.fixture(scope="module")
def model() -> Model:
    return load("classroom")


@pytest.fixture(scope="module")
def comparison(model: Model) -> Comparison:
    return compare("What is 47 + 38?", ["ar", "dmtd:tau=4", "clp"], model, max_new_tokens=60)


def test_the_notebook_runs_and_has_no_outputs() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert len(sources) >= 7 and all(
        not cell.get("outputs") and cell.get("execution_count") is None for cell in cells
    )
    names: dict[str, Any] = {}
    shown = []
    for source in sources:
        *before, last = ast.parse(source).body
        exec(compile(ast.Module(before, []), "cell", "exec"), names)
        if isinstance(last, ast.Expr):
            shown.append(eval(compile(ast.Expression(last.value), "cell", "eval"), names))
        else:
            exec(compile(ast.Module([last], []), "cell", "exec"), names)
    pages = [each._repr_html_() for each in shown if isinstance(each, Comparison)]
    figures = [each for each in shown if type(each).__name__ == "Figure"]
    assert len(pages) == 1 and len(figures) == 2 and all(figure.data for figure in figures)
    assert names["file"].read_text(encoding="utf-8").startswith("<!doctype html>")


def test_a_comparison_has_the_figures_of_its_record(comparison: Comparison, tmp_path: Path) -> None:
    assert len(comparison.texts) == 3 and all("85" in text for text in comparison.texts)
    rows = comparison.table()
    assert (
        [row["panel"] for row in rows] == ["ar", "dmtd:tau=4", "clp"]
        and rows[0]["speed_up"] == 1
        and rows[0]["tokens_per_full_pass"] == 1
    )
    assert (
        str(comparison).splitlines()[0].split()[0] == "panel"
        and len(str(comparison).splitlines()) == 4
    )
    tokens = comparison.tokens_over_time().data
    assert [list(line.y)[-1] for line in tokens] == [row["tokens"] for row in rows]
    assert [
        sum(length * spans for length, spans in zip(bar.x, bar.y))
        for bar in comparison.span_lengths().data
    ] == [row["tokens"] - 1 for row in rows]
    comparison.save(tmp_path / "race.jsonl")
    assert Comparison.open(tmp_path / "race.jsonl") == comparison


def test_charts_have_every_panel(model: Model) -> None:
    five = compare("What is a token?", ["ar"] * 5, model, max_new_tokens=4, audit=False)
    assert len(five.tokens_over_time().data) == len(five.span_lengths().data) == 5


def test_what_a_model_wrote_stays_text_in_the_replay(comparison: Comparison) -> None:
    header, *rest = comparison.records
    hostile = Comparison([{**header, "prompt": "</script><script>alert(1)</script>"}, *rest])
    assert "<script>alert" not in hostile.replay() and "<script" not in hostile._repr_html_()


def test_wrong_calls_say_what_was_needed(model: Model, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="one for each of the 3 panels; got 2"):
        compare("Hello", model=[model, model])
    with pytest.raises(UserError, match="one of the decoders"):
        compare("Hello", ["nothing"], model)
    (tmp_path / "other.json").write_text("[1, 2]")
    with pytest.raises(UserError, match="header"):
        Comparison.open(tmp_path / "other.json")
    header = {"type": "header", "schema": 1, "panels": [{"panel": 0, "spec": "ar"}]}
    for lines, cause in (
        ([{**header, "panels": None}], "of .*, panels is 'None', no list"),
        ([header, {"type": "step", "panel": 0, "tokens": []}], "record 2 has no ms"),
        ([header, {"type": "summary", "panel": 0, "text": ""}], "record 2 has no spans"),
    ):
        (tmp_path / "other.json").write_text(json.dumps(lines))
        with pytest.raises(UserError, match=cause):
            Comparison.open(tmp_path / "other.json")
    (tmp_path / "other.json").write_text(json.dumps(header))
    assert "without an end" in str(Comparison.open(tmp_path / "other.json"))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        getattr(dmtd_demo, "nothing")  # noqa: B009 - that is the point
