"""Presenter mode, and one panel that fills the page."""

from __future__ import annotations

from pathlib import Path

from race_page import RacePage

SIZE = "node => parseFloat(getComputedStyle(node).fontSize)"


def test_presenter_mode_is_big_and_bare(visit: RacePage, screenshots: Path) -> None:
    visit.race(tokens=24)
    parts = {
        name: visit.page.locator(name).first
        for name in ("[data-panel='0']", ".tps", "[role='status']")
    }
    before = {name: part.evaluate(SIZE) for name, part in parts.items()}
    visit.page.keyboard.press("p")
    for name, part in parts.items():
        assert part.evaluate(SIZE) >= 1.75 * before[name], name
        box = part.bounding_box()
        assert box and 0 <= box["y"] < 720
    for control in ("#prompt", "#run", "#panel-0-decoder", ".charts", ".summary table"):
        assert visit.page.locator(control).is_hidden()
    assert visit.page.evaluate(
        "[document.documentElement.scrollWidth <= innerWidth, "
        "document.documentElement.scrollHeight <= innerHeight]"
    ) == [True, True]
    assert "dmtd finished " in visit.sentence
    visit.page.screenshot(path=screenshots / "presenter.png")
    visit.page.keyboard.press("f")
    assert visit.page.locator(".panel:visible").count() == 1
    assert visit.page.locator(".panel:visible").bounding_box()["width"] > 0.9 * 1280
    visit.page.keyboard.press("Escape")
    assert visit.page.locator(".panel:visible").count() == 3
    visit.page.keyboard.press("Escape")
    assert (
        visit.page.locator("#prompt").is_visible()
        and parts["[data-panel='0']"].evaluate(SIZE) == before["[data-panel='0']"]
    )


def test_with_one_panel_on_the_page_the_steps_are_its_own(visit: RacePage) -> None:
    visit.race()
    visit.page.get_by_role("button", name="Panel 2 fills the page").click()
    visit.page.get_by_role("button", name="To the start").click()
    visit.page.get_by_role("button", name="cycle", exact=True).click()
    shown = []
    for _ in range(4):
        visit.page.get_by_role("button", name="Step on").click()
        shown.append(sum(visit.origins(1).values()))
    assert shown == [1, 5, 9, 13]  # the prefill's token, then cycles of four
    assert visit.page.locator("[data-panel='1'] .newest").count() == 1
