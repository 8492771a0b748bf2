"""The page in the browser's language."""

from __future__ import annotations

from pathlib import Path

from dmtd_demo.web.texts import LANGUAGES
from race_page import END_SECONDS, RacePage, save

CHINESE = LANGUAGES["zh-CN"]
# a sentence that was left untranslated; the name of a model stays
ENGLISH_WORDS = r"[A-Za-z]{3,} [a-z]{3,} [a-z]{3,}"


def has(visit: RacePage, hook: str, text: str) -> None:
    visit.page.locator(hook, has_text=text).first.wait_for()


def test_a_chinese_browser_sees_chinese(
    chromium: object, app_url: str, screenshots: Path, tmp_path: Path
) -> None:
    visit = RacePage(chromium, app_url, locale="zh-CN")
    page = visit.page
    assert (
        page.title() == CHINESE["page.title"]
        and page.evaluate("document.documentElement.lang") == "zh-CN"
    )
    for hook, key in (
        ("#run", "control.run"),
        ("#panels", "control.panels"),
        ("#sampling > button", "control.sampling"),
        ("#head h1", "page.title"),
        ("#head .baseline", "baseline.same_weights"),
        ("#examples", "example.story"),
        ("[role='status']", "race.recorded.mark"),
        (".legend", "origin.late.name"),
        ("#panel-1-opt-tau", "option.tau.label"),
        (".charts", "chart.span"),
    ):
        has(visit, hook, CHINESE[key])
    assert page.get_attribute("#prompt textarea", "placeholder") == CHINESE["control.prompt"]
    assert page.input_value("#panel-0-decoder input") == f"ar · {CHINESE['decoder.ar.label']}"
    page.hover("#seed label > span")
    has(visit, "#race-tooltip", CHINESE["hint.seed"])
    page.screenshot(path=screenshots / "chinese.png")
    visit.race(tokens=24)
    assert [cell for cell in visit.table()[0]][:4] == [
        CHINESE[f"table.{key}"] for key in ("panel", "speed", "ratio", "first_token")
    ]
    assert (
        visit.sentence.startswith("完成。dmtd ")
        and "次完整前向" in page.locator(".facts").first.inner_text()
    )
    page.locator("[data-panel='1'] [data-origin='late']").first.hover()
    has(visit, "#race-tooltip", CHINESE["token.made_by"])
    page.wait_for_timeout(300)
    page.screenshot(path=screenshots / "chinese-race.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280
    left = page.evaluate(
        "(words) => [...document.querySelectorAll('h1, .baseline, #buttons, #settings, .bar, "
        ".player, .charts figcaption, .summary')].map(node => node.innerText).filter(text => new "
        "RegExp(words).test(text))",
        ENGLISH_WORDS,
    )
    assert not left

    page.click("#tour-switch")
    page.click("#tour-race:not([disabled])", timeout=1000 * END_SECONDS)
    page.wait_for_function(
        "document.querySelector('#tour-outcome').textContent.length > 20",
        timeout=1000 * END_SECONDS,
    )
    assert (
        page.locator("#tour-title").inner_text() == "第 1 步，共 10 步 · 解码为什么慢"
        and page.locator("#tour-text").inner_text() == CHINESE["tour.1.text"]
    )
    passes = page.locator(".facts").first.inner_text().split(" · ")[1]
    assert (
        passes in page.locator("#tour-outcome").inner_text()
        and "{" not in page.locator("#tour-outcome").inner_text()
    )
    page.screenshot(path=screenshots / "chinese-tour.png")
    page.keyboard.press("Escape")
    page.wait_for_selector("#tour-card", state="hidden")

    page.click("#models > button")
    has(visit, "#model-facts", CHINESE["models.runs"])
    has(visit, "#model-quantization label", f"none {CHINESE['models.default']}")
    page.locator("#model-choice label", has_text="Qwen3-4B").first.click()
    has(visit, "#model-facts", "需从 Qwen/Qwen3-4B 下载。")
    page.screenshot(path=screenshots / "chinese-models.png")
    page.click("#models > button")

    path = save(visit, CHINESE["keep.html"], tmp_path)
    # the file has all languages
    for locale, title, status in (
        ("zh-CN", CHINESE["page.title"], "完成。"),
        ("en-GB", LANGUAGES["en"]["page.title"], "Done."),
    ):
        replay = RacePage(chromium, path.as_uri(), locale=locale, ready="done")
        assert replay.page.locator("h1").inner_text() == title and status in replay.sentence
        replay.close()
    visit.close()


def test_other_browsers_see_english(chromium: object, app_url: str) -> None:
    for locale in ("en-US", "is-IS"):  # no file for the second
        visit = RacePage(chromium, app_url, locale=locale)
        assert visit.page.evaluate("document.documentElement.lang") == "en"
        has(visit, "#run", "Run")
        has(visit, ".legend", "late layers")
        if locale != "en-US":  # that of every other test
            visit.race("Hello", tokens=8)
            assert visit.sentence.startswith("Done. dmtd finished ")
        assert not any(
            "\u4e00" <= sign <= "\u9fff" for sign in visit.page.locator("body").inner_text()
        )
        visit.close()
