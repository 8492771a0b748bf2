"""The page for everyone: axe-core finds nothing serious, the keyboard alone is enough, little
screens stack, and only the summary sentence is read aloud.
"""

from __future__ import annotations

import pytest

from race_page import LONG, OVER, RacePage

sync_playwright = pytest.importorskip(
    "axe_playwright_python.sync_playwright",
    reason="needs axe-core: pip install -r requirements-dev.txt",
)


AT_REST = (
    "() => document.getAnimations().every(each => each.playState !== 'running' || "
    "each.effect.getComputedTiming().endTime === Infinity)"
)


def violations(visit: RacePage, state: str) -> list[str]:
    """Serious and critical ones, of the page at rest: what is just fading in has too little
    contrast for a moment. In the dark the contrast alone is another.
    """
    found = []
    for scheme, options in (("dark", {"runOnly": ["color-contrast"]}), ("light", {})):
        visit.page.emulate_media(color_scheme=scheme)
        # the page hears of it a moment later
        visit.page.wait_for_function(
            "scheme => document.body.classList.contains('dark') === (scheme === 'dark')",
            arg=scheme,
        )
        visit.page.wait_for_function(AT_REST)
        found += (
            sync_playwright.Axe()
            .run(visit.page, options={"resultTypes": ["violations"], **options})
            .response["violations"]
        )
    return [
        f"{state}: {each['id']} ({each['impact']}) {node['target']}"
        for each in found
        if each["impact"] in ("serious", "critical")
        for node in each["nodes"]
    ]


def test_axe_finds_nothing_serious(visit: RacePage) -> None:
    visit.page.click("#sampling > button")
    visit.page.wait_for_selector("#temperature")
    found = violations(visit, "idle, with sampling")
    visit.page.click("#system-prompt > button")
    visit.page.wait_for_selector("#system textarea")
    visit.page.fill("#system textarea", "Be brief.")
    found += violations(visit, "idle, with the system prompt")
    visit.race()
    visit.page.click(".legend button >> nth=1")
    visit.page.click(".keep summary")
    found += violations(visit, "after a race, filtered, with Keep")
    visit.page.keyboard.press("Escape")
    visit.page.click("#panel-1-decoder input")
    visit.page.locator(
        "#panel-1-decoder [role='option']"
    ).last.wait_for()  # it comes by itself, and then fades in
    found += violations(visit, "with the list of decoders")
    visit.page.keyboard.press("Escape")
    visit.page.locator("#panel-1-decoder input").blur()
    visit.page.keyboard.press("p")
    found += violations(visit, "presenter mode")
    assert not found, "\n".join(found)
    assert (
        visit.page.locator(
            ".race [aria-live], .race [role='status'], .race [role='alert'], .race [role='log']"
        ).count()
        == 1
    )


def tab_to(visit: RacePage, hook: str, key: str = "Tab") -> None:
    for _ in range(90):
        visit.page.keyboard.press(key)
        if visit.page.evaluate("hook => document.activeElement.matches(hook)", hook):
            return
    raise AssertionError(f"the Tab key never came to {hook}")


def test_the_keyboard_alone_is_enough(visit: RacePage) -> None:
    keys = visit.page.keyboard
    tab_to(visit, "#prompt textarea")
    keys.press("Control+a")
    keys.type(LONG)
    tab_to(visit, "#max-tokens input")
    keys.press("Control+a")
    keys.type("12")
    tab_to(visit, "#system-prompt > button")
    keys.press("Enter")
    visit.page.wait_for_selector("#system textarea", state="visible")
    tab_to(visit, "#system textarea")
    keys.type("Be brief.")
    keys.press("Escape")
    visit.page.wait_for_selector("#system textarea", state="hidden")
    assert visit.page.evaluate("document.activeElement.matches('#system-prompt > button')")
    tab_to(visit, "#panel-0-decoder input")
    keys.type("prompt-l")
    keys.press("Enter")
    visit.page.wait_for_selector("#panel-0-opt-ngram")
    tab_to(visit, "#panel-1-opt-tau input")
    keys.press("Control+a")
    keys.type("2")
    tab_to(visit, "#prompt textarea", "Shift+Tab")
    keys.press("Enter")
    assert visit.wait_until(*OVER) == "done"
    assert sum(visit.origins(0).values()) <= 12
    assert visit.page.locator(".spec").all_inner_texts()[:2] == [
        "prompt-lookup:ngram=3",
        "dmtd:tau=2",
    ]
    tab_to(visit, "[data-panel='1'] [data-origin]")
    keys.press("ArrowRight")
    keys.press("ArrowRight")  # the prefill's token, the head of the first cycle, its late token
    assert "late layers" in visit.page.locator("#race-tooltip").inner_text()
    before = sum(sum(visit.origins(panel).values()) for panel in range(3))
    tab_to(visit, ".player [aria-label='Step back']")
    keys.press("Enter")
    assert sum(sum(visit.origins(panel).values()) for panel in range(3)) == before - 1
    tab_to(visit, ".keep summary")
    keys.press("Enter")
    tab_to(visit, ".keep .menu button")
    with visit.page.expect_download() as download:
        keys.press("Enter")
    assert download.value.suggested_filename.endswith(".html")


def test_a_little_screen_stacks_and_nothing_moves(chromium: object, app_url: str) -> None:
    visit = RacePage(chromium, app_url, 360, 740)
    visit.page.emulate_media(reduced_motion="reduce")
    for popover, inside in (
        ("#presets", "#preset-list"),
        ("#sampling", "#sampling-row"),
        ("#system-prompt", "#system-box"),
    ):
        visit.page.click(f"{popover} > button")
        visit.page.wait_for_selector(inside)
        box = visit.page.locator(inside).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 360, popover
        visit.page.click(f"{popover} > button")
    visit.set("#max-tokens", 80)
    visit.ask(LONG)
    visit.wait_for_tokens()
    moving = visit.page.evaluate(
        "document.getAnimations().filter(each => each.playState === 'running').length"
    )
    assert moving == 0
    assert visit.wait_until(*OVER) == "done"
    tops = [panel.bounding_box()["y"] for panel in visit.page.locator(".panel").all()]
    assert tops == sorted(tops) and len(set(tops)) == 3
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= 360
    visit.close()
