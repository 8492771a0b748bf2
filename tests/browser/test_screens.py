"""The page on a phone, with four panels, by the keyboard and before a race: what each needs."""

from __future__ import annotations

from typing import Any

from race_page import CUT, OVER, RacePage

# pieces of tokens at the ends of lines that show nothing but their colour
SLIVERS = """[...document.querySelectorAll("[data-panel] [data-origin]")].filter(token => {
  const pieces = [...token.getClientRects()];
  return pieces.length > 1 && pieces.some(piece => piece.width > 0.5 && piece.width < 7);
}).map(token => token.textContent)"""


def test_a_phone_shows_the_race_under_run(chromium: Any, app_url: str) -> None:
    visit = RacePage(chromium, app_url, 390, 844)
    page = visit.page
    about, race = (page.locator(hook).bounding_box() for hook in ("#about", ".race"))
    assert about and race and race["y"] - (about["y"] + about["height"]) < 60  # settings are folded
    prompt, example = (
        page.locator(hook).first.bounding_box() for hook in ("#prompt", "#examples button")
    )
    # what can be asked stands under the box, before the race
    assert prompt and example and prompt["y"] < example["y"] < about["y"]
    page.click("#unfold")
    visit.set("#max-tokens", 60)
    page.click("#unfold")
    page.click("#run")
    assert visit.wait_until(*OVER) == "done"
    for hook in (".status", "[data-panel='0'] [data-origin] >> nth=-1", "[data-live-chart='tps']"):
        box = page.locator(hook).first.bounding_box()
        assert box and 0 <= box["y"] < 800, hook
    page.click("body", position={"x": 2, "y": 2})
    page.keyboard.press("p")
    for panel in range(3):
        box = page.locator(".scroll").nth(panel).bounding_box()
        assert box and box["height"] > 80 and box["y"] + box["height"] <= 844
    assert page.locator(".asked").inner_text() == page.input_value("#prompt textarea")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    visit.close()


def test_four_panels_lists_and_what_stands_before_a_race(visit: RacePage) -> None:
    page = visit.page
    stop = "getComputedStyle(document.querySelector('#stop')).visibility"
    assert page.evaluate(stop) == "hidden"  # there is nothing to stop
    # one list at a time, and the keyboard's way out of it
    page.focus("#presets > button")
    page.keyboard.press("Enter")
    page.wait_for_selector("#preset-list")
    page.focus("#sampling > button")
    page.wait_for_selector("#preset-list", state="hidden")
    page.keyboard.press("Enter")
    page.wait_for_selector("#sampling-row")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("Escape")
    page.wait_for_selector("#sampling-row", state="hidden")

    page.click("#new-chat")  # the recorded race goes without a question
    page.wait_for_selector("[data-playing='no']")
    visit.set("#panels", 4)
    page.wait_for_selector("[data-panel='3']", state="attached")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("p")
    assert page.locator(".spec").all_inner_texts() == ["ar", "dmtd", "clp", "dmtd"]
    assert page.locator(".stage .run").is_visible()
    visit.press(".stage .run")
    assert visit.wait_until(*OVER) == "done"
    page.keyboard.press("p")
    assert not page.evaluate(CUT)
    assert not page.evaluate(SLIVERS)
    # a reload asks nothing, as it loses nothing
    asked: list[str] = []
    page.once("dialog", lambda dialog: (asked.append(dialog.type), dialog.accept()))
    page.reload()
    page.wait_for_selector("[data-status='done']")
    assert not asked
