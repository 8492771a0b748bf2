"""Before and after: the race before as a pale second line, and back on screen by one click; a race as a link."""

from __future__ import annotations

import re

from race_page import LONG, OVER, RacePage


def test_the_race_before_stays_pale_and_comes_back(visit: RacePage) -> None:
    page = visit.page
    visit.wait_for_charts()
    visit.race(LONG, tokens=20)
    button = page.locator("#race-before")
    assert button.is_hidden() and page.locator(".was:visible").count() == 0
    speeds = page.locator(".tps").all_inner_texts()
    text = page.locator("[data-panel='1']").inner_text()
    visit.set("#panel-1-opt-tau", 2)
    visit.race(LONG, tokens=20)
    assert page.locator(".was:visible").all_inner_texts() == [f"before: {s}" for s in speeds]
    # names in two lines at most, though a figure stands beside them
    heights = "specs => specs.map(spec => spec.getBoundingClientRect().height)"
    assert max(page.locator(".spec").evaluate_all(heights)) < 40
    visit.wait_for_charts()
    # each panel's line, and that of the race before
    page.wait_for_function("document.getElementById('chart-tps').data.length === 6")
    assert page.locator(".live .was-line").nth(1).get_attribute("d").startswith("M")
    audit = page.locator(".summary td[data-was]").evaluate_all(
        "cells => cells.map(c => c.dataset.was)"
    )
    assert any(said.endswith("%") for said in audit)
    latest = page.locator(".tps").all_inner_texts()

    button.click()
    assert page.locator(".spec").all_inner_texts()[1] == "dmtd:tau=4"
    assert page.locator(".tps").all_inner_texts() == speeds
    assert page.locator("[data-panel='1']").inner_text() == text
    assert page.locator("#reply").is_hidden()  # the chat goes on from the latest one
    button.click()
    assert page.locator(".tps").all_inner_texts() == latest and page.locator("#reply").is_visible()
    visit.set("#max-tokens", 8)
    visit.ask(LONG)
    assert visit.wait_until(*OVER) == "done"


def test_a_link_has_the_race_in_it(visit: RacePage, chromium: object, app_url: str) -> None:
    page = visit.page
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    visit.race("What is 47 + 38?", tokens=24)
    texts = page.locator("[data-panel]").all_inner_texts()
    page.click(".keep summary")
    page.get_by_role("button", name="Copy a link to this race").click()
    page.wait_for_selector(".keep button:has-text('Copied')")
    link = page.evaluate("navigator.clipboard.readText()")
    assert re.fullmatch(re.escape(app_url) + r"#race=[\w-]+", link) and len(link) <= 32_000
    other = RacePage(chromium, link, ready="done", speed="")
    assert other.page.locator("[data-panel]").all_inner_texts() == texts
    assert "from a link" in other.sentence
    assert not any("race=" in request for request in other.requests if "#" not in request)
    # what is no race is refused in words, and the page goes on
    other.page.evaluate("location.hash = '#race=AAAA'")
    assert other.wait_until("error") == "error" and "link" in other.sentence
    other.close()
