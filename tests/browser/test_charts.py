"""The charts show what the race's record says, and are saved as pictures."""

from __future__ import annotations

from pathlib import Path

import pytest

from race_page import LONG, OVER, RacePage


def test_tokens_against_time_and_where_the_time_went(visit: RacePage, tmp_path: Path) -> None:
    visit.wait_for_charts()
    visit.race(tokens=40)
    totals = [sum(visit.origins(panel).values()) for panel in range(3)]
    facts = visit.page.locator(".facts").all_inner_texts()
    seconds = [
        next(float(part.removesuffix(" s")) for part in fact.split(" · ") if part.endswith(" s"))
        for fact in facts
    ]
    # all charts are drawn one after another, a moment after the race
    visit.page.wait_for_function(
        """([totals, seconds]) => {
            const data = id => document.getElementById(id).data
            const spent = i => data('chart-time').reduce((sum, kind) => sum + kind.x[i], 0)
            return totals.every((total, i) => data('chart-race')[i]?.y.at(-1) === total)
                && seconds.every((end, i) => Math.abs(spent(i) - end) < 0.006)
        }""",
        arg=[totals, seconds],
    )
    curves = visit.chart("chart-race")
    assert [curve["y"][-1] for curve in curves] == totals
    for curve, end in zip(curves, seconds):
        assert (
            curve["x"] == sorted(curve["x"])
            and curve["y"] == sorted(curve["y"])
            and abs(curve["x"][-1] - end) < 0.006
        )
    kinds = visit.page.evaluate(
        "document.getElementById('chart-time').data.map(trace => [trace.name, [...trace.x]])"
    )
    times = dict(kinds)
    for panel, end in enumerate(seconds):  # the kinds share out the whole of each panel's clock
        assert sum(row[panel] for _, row in kinds) == pytest.approx(end, abs=0.006)
    assert times["full passes"][0] > 0 and times["late layers alone"][0] == 0
    assert times["late layers alone"][1] > 0 and times["full passes with refill"][1] > 0
    assert times["full passes with MTP heads"][2] > 0

    for form, begins in (("PNG", b"\x89PNG"), ("SVG", b"<svg")):
        with visit.page.expect_download() as download:
            visit.page.get_by_role("button", name=f"Save the chart as {form}: The race").click()
        path = tmp_path / download.value.suggested_filename
        download.value.save_as(path)
        assert path.name == f"chart-race.{form.lower()}" and path.read_bytes().startswith(begins)


def test_the_charts_are_live(visit: RacePage) -> None:
    visit.wait_for_charts()
    # noise, which hardly ever ends by itself; with this seed not in 1,500 tokens
    visit.write_into("#sampling", "#temperature input", 50)
    visit.set("#seed", 2)
    visit.set("#max-tokens", 6000)
    visit.ask(LONG)
    visit.page.wait_for_function(
        "document.getElementById('chart-race').data?.[0]?.x?.length > 20 && "
        "document.getElementById('chart-time').data?.[1]?.x?.[0] > 0",
        timeout=60_000,
    )
    assert visit.status == "running"
    visit.page.click("#stop")
    visit.wait_until(*OVER)
