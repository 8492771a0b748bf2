"""Reading a text token by token: what hovering, the keyboard, a click and the buttons beside the
text show.
"""

from __future__ import annotations

import re

from race_page import LONG, RacePage


def short_race(visit: RacePage, prompt: str = LONG, tokens: int = 24) -> None:
    visit.set("#max-tokens", tokens)
    visit.ask(prompt)
    assert visit.wait_until("done") == "done"


def test_a_token_explains_itself(visit: RacePage) -> None:
    short_race(visit)
    tooltip = visit.page.locator("#race-tooltip")
    visit.page.hover("[data-panel='1'] [data-origin='late'] >> nth=0")
    said = tooltip.inner_text()
    for words in (
        "late layers",
        "token 2 of 4",
        "span 1",
        "id ",
        " ms, step ",
        "ar would have chosen",
    ):
        assert words in said, said
    shares = [
        float(text.removesuffix(" %").removeprefix("< "))
        for text in tooltip.locator(".top .share").all_inner_texts()
    ]
    widths = tooltip.locator(".top .track span").evaluate_all(
        "bars => bars.map(bar => bar.offsetWidth)"
    )
    assert len(shares) == 5 and shares == sorted(shares, reverse=True) and sum(shares) <= 100.6
    assert widths == sorted(widths, reverse=True) and widths[0] > 0
    # greedy: the most probable one it is
    assert re.search(r"probability\s+([\d.]+) %", said)[1] == f"{shares[0]:.1f}"
    assert tooltip.locator(".chosen").count() == 1

    # a token that comes under a mouse at rest explains nothing until that moves
    token = visit.page.locator("[data-panel='1'] [data-origin='late'] >> nth=0").bounding_box()
    x, y = token["x"] + 5, token["y"] - 50
    visit.page.mouse.move(x, y)
    visit.page.evaluate("scrollBy(0, 60)")
    visit.page.wait_for_timeout(300)
    assert visit.page.evaluate("scrollY") == 60 and tooltip.is_hidden()
    visit.page.mouse.move(x + 1, y)
    assert "late layers" in tooltip.inner_text()

    visit.page.focus("[data-panel='0'] [data-origin] >> nth=0")
    visit.page.keyboard.press("ArrowRight")
    assert "number 2" in tooltip.inner_text()
    visit.page.keyboard.press("Escape")
    assert tooltip.is_hidden()


def test_a_click_pins_a_token_and_shows_its_span(visit: RacePage) -> None:
    visit.wait_for_charts()
    short_race(visit)
    together = visit.page.locator(".together")
    visit.page.click("[data-panel='1'] [data-origin='late'] >> nth=4")
    assert together.evaluate_all("nodes => nodes.map(node => node.dataset.origin)") == [
        "full",
        "late",
        "late",
        "late",
    ]
    marked = (
        "id => document.getElementById(id).layout.shapes?.map(shape => [shape.x0, shape.x1]) || []"
    )
    ((began, ended),) = visit.page.evaluate(marked, "chart-tps")
    assert 0 < began < ended
    ((left, right),) = visit.page.evaluate(marked, "chart-span")
    assert 3.5 < left < right < 4.5  # the bar of spans of four
    visit.page.hover("[data-panel='0'] [data-origin] >> nth=2")
    # the pinned one stays
    assert "late layers" in visit.page.locator("#race-tooltip").inner_text()
    visit.page.keyboard.press("Escape")
    assert (
        together.count() == 0
        and visit.page.locator("#race-tooltip").is_hidden()
        and visit.page.evaluate(marked, "chart-tps") == []
    )
    visit.page.focus("[data-panel='2'] [data-origin] >> nth=0")
    visit.page.keyboard.press("Enter")
    assert together.count() == 1  # the prefill's token stands alone


def test_the_legend_counts_and_filters(visit: RacePage) -> None:
    short_race(visit)
    button = visit.page.locator(".legend [data-key='late']")
    assert (
        int(button.locator("b").inner_text())
        == visit.page.locator("[data-origin='late']").count()
        > 0
    )
    ground = "node => getComputedStyle(node).backgroundColor"
    full, late = (
        visit.page.locator(f"[data-panel='1'] [data-origin='{origin}'] >> nth=1")
        for origin in ("full", "late")
    )
    assert full.evaluate(ground) != "rgba(0, 0, 0, 0)"
    button.focus()
    visit.page.keyboard.press("Enter")
    assert (
        full.evaluate(ground) == "rgba(0, 0, 0, 0)" and late.evaluate(ground) != "rgba(0, 0, 0, 0)"
    )
    visit.page.keyboard.press("Enter")
    assert full.evaluate(ground) != "rgba(0, 0, 0, 0)"


def test_white_space_on_demand_and_plain_copies(visit: RacePage) -> None:
    visit.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    short_race(visit, "Write a Python function called double that returns twice a number.", 60)
    text = visit.page.locator("[data-panel='0']")
    plain = "".join(
        text.locator("[data-origin]").evaluate_all("nodes => nodes.map(node => node.textContent)")
    )
    assert "\n" in plain and " " in plain and "·" not in plain
    visit.page.get_by_role("button", name="white space").click()
    shown = "".join(
        text.locator("[data-origin]").evaluate_all("nodes => nodes.map(node => node.textContent)")
    )
    assert shown == plain.replace(" ", "·").replace("\n", "⏎\n")
    clipboard = "navigator.clipboard.readText()"
    visit.page.get_by_role("button", name="Copy the text of panel 1").click()
    visit.page.wait_for_selector("text=Copied")
    assert visit.page.evaluate(clipboard) == plain
    visit.page.evaluate(
        "document.getSelection().selectAllChildren(document.querySelector('[data-panel=\"0\"]'))"
    )
    visit.page.evaluate("navigator.clipboard.writeText('')")
    visit.page.keyboard.press("Control+c")
    assert visit.page.evaluate(clipboard) == plain


def test_no_broken_character_is_ever_shown(visit: RacePage) -> None:
    visit.page.click("#sampling > button")
    visit.set("#temperature", 50)  # noise: bytes in every order
    short_race(visit, "é 漢 😀", 60)  # a text of noise may end early
    assert "\ufffd" not in visit.page.locator("body").inner_text()
    texts = visit.page.locator("[data-panel] [data-origin]")
    held = visit.page.locator("[data-panel] [data-origin].empty")
    assert held.count() > 0  # some tokens are bytes without a character of their own
    held.first.hover()
    assert "\ufffd" not in visit.page.locator("#race-tooltip").inner_text()
    assert texts.count() > held.count()
