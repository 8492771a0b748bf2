"""What a visitor of the page sees and does."""

from __future__ import annotations

import re
from pathlib import Path

from race_page import END_SECONDS, LONG, OVER, RacePage


def test_a_race(visit: RacePage, screenshots: Path) -> None:
    visit.wait_for_charts()
    visit.set("#max-tokens", 48)
    visit.ask(LONG)
    visit.wait_for_tokens()
    assert visit.wait_until(*OVER) == "done"
    visit.page.wait_for_timeout(400)  # the charts are drawn four times a second
    visit.page.screenshot(path=screenshots / "race.png", full_page=True)

    origins = [visit.origins(panel) for panel in range(3)]
    assert set(origins[0]) == {"full"}
    assert set(origins[1]) == {"full", "late"}
    assert set(origins[2]) == {"full", "mtp"}
    # tau = 4: three late tokens after each full one
    assert abs(origins[1]["late"] / origins[1]["full"] - 3) < 0.5

    rows = visit.table()
    totals = [sum(counts.values()) for counts in origins]
    assert [int(row["tokens"].replace(",", "")) for row in rows] == totals
    legend = {
        button.get_attribute("data-key"): int(button.locator("b").inner_text().replace(",", ""))
        for button in visit.page.locator(".legend button").all()
    }
    for origin in ("full", "late", "mtp"):
        assert legend[origin] == sum(counts.get(origin, 0) for counts in origins)
    for index, row in enumerate(rows):
        shown = visit.page.locator(".tps").nth(index).inner_text()
        assert shown == row["tokens/s"] and float(shown.replace(",", "")) > 0
    assert rows[0]["speed-up"] == "1.00×" and rows[0]["agreement with panel 1"] == "100 %"

    rates, spans = visit.chart("chart-tps"), visit.chart("chart-span")
    assert all(
        rate["x"] == sorted(rate["x"]) and len(rate["x"]) == len(rate["y"]) > 3 for rate in rates
    )
    for counts, span in zip(totals, spans):  # all tokens but the prefill's lie in spans
        assert sum(length * number for length, number in zip(span["x"], span["y"])) == counts - 1
    assert spans[0]["x"] == [1] and max(spans[1]["x"]) == 4


def test_stop(visit: RacePage) -> None:
    visit.page.click("#sampling > button")
    # noise, which hardly ever ends by itself; with this seed not in 1,500 tokens
    visit.set("#temperature", 50)
    visit.set("#seed", 2)
    visit.set("#max-tokens", 4000)
    visit.ask(LONG)
    visit.wait_for_tokens()
    visit.page.click("#stop")
    assert visit.wait_until(*OVER, seconds=10) == "stopped"
    count = sum(visit.origins(0).values())
    assert 0 < count < 4000
    visit.page.wait_for_timeout(500)
    assert sum(visit.origins(0).values()) == count


def test_a_closed_tab_frees_the_device(chromium: object, app_url: str) -> None:
    gone = RacePage(chromium, app_url)
    gone.page.click("#sampling > button")
    gone.set("#temperature", 50)
    gone.set("#seed", 2)
    gone.set("#max-tokens", 6000)
    gone.ask(LONG)
    gone.wait_for_tokens()
    gone.close()
    visit = RacePage(chromium, app_url)
    visit.set("#max-tokens", 8)
    visit.ask(LONG)
    assert visit.wait_until(*OVER, seconds=30) == "done"
    visit.close()


def test_a_chat_goes_on_until_a_new_one(visit: RacePage) -> None:
    visit.set("#panels", 2)
    visit.page.wait_for_selector("[data-panel='2']", state="detached")
    visit.set("#max-tokens", 16)
    visit.ask("My name is <b>Ada</b>.\nHello!")
    visit.wait_until("done")
    first = visit.page.locator("[data-panel='0']").inner_text()
    visit.reply("And what is the capital of France?")
    visit.wait_until("done")
    turns = visit.page.locator(".panel >> nth=0 >> .turn")
    assert turns.count() == 3  # question, answer, question; the new answer is the panel's text
    assert turns.nth(0).inner_text() == "My name is <b>Ada</b>.\nHello!"  # text, never markup
    assert (
        re.sub(r"\s+", " ", turns.nth(1).inner_text()).strip()[:5]
        == re.sub(r"\s+", " ", first).strip()[:5]
    )
    assert visit.page.locator(".turn [data-origin]").count() == 0
    visit.page.once("dialog", lambda dialog: dialog.accept())
    visit.page.click("#new-chat")
    visit.wait_until("idle")
    assert visit.page.locator(".turn").count() == visit.page.locator("[data-origin]").count() == 0
    visit.ask("Hello")
    visit.wait_until("done")
    assert turns.count() == 1


def test_run_at_the_very_end_of_a_race_is_not_lost(visit: RacePage) -> None:
    visit.set("#max-tokens", 12)
    visit.page.evaluate("""() => {
      const race = document.querySelector("[data-status]");
      window.ends = 0;
      new MutationObserver(() => { if (race.dataset.status === "done" && ++window.ends === 1) document.querySelector("#run").click(); }).observe(race, { attributeFilter: ["data-status"] });
    }""")
    visit.ask(LONG)
    visit.page.wait_for_function("window.ends === 2", timeout=1000 * END_SECONDS)
    # the prompt again, anew
    assert visit.page.locator(".panel >> nth=0 >> .turn").count() == 1
    assert visit.status == "done"


def test_each_decoder_has_its_own_options(visit: RacePage) -> None:
    options = visit.page.locator("[id^='panel-0-opt-']")
    assert options.count() == 0  # ar has none
    visit.page.click("#panel-0-decoder input")
    visit.page.get_by_role("option", name="dmtd ·").click()
    visit.page.wait_for_selector("#panel-0-opt-tau")
    assert sorted(option.get_attribute("id") for option in options.all()) == [
        "panel-0-opt-split",
        "panel-0-opt-tau",
    ]
    # Gradio sets its own value a moment after it has built what holds it
    for _ in range(20):
        visit.set("#panel-0-opt-tau", 2)
        visit.page.wait_for_timeout(300)
        if visit.page.input_value("#panel-0-opt-tau input[type='number']") == "2":
            break
    visit.set("#panels", 4)
    visit.page.wait_for_selector("[data-panel='3']", state="attached")
    visit.race(tokens=12)
    assert visit.page.locator(".spec >> nth=0").inner_text() == "dmtd:tau=2"
    assert set(visit.origins(0)) == {"full", "late"} and sum(visit.origins(3).values()) > 0


def test_bad_input_gets_a_sentence_and_the_app_goes_on(visit: RacePage) -> None:
    for prompt, words in (
        ("   ", "empty"),
        ("ring \x07 bell", "U+0007"),
        ("word " * 20_000, "context of"),
    ):
        visit.ask(prompt)
        assert visit.wait_until(*OVER) == "error"
        assert words in visit.sentence
    for control, value, back, words in (
        ("#panel-1-opt-tau", 99, 4, "1 to 16"),
        ("#max-tokens", 0, 8, "1 or more"),
        ("#panels", 7, 3, "2 to 4"),
        ("#seed", "", 1, "Seed"),
    ):
        visit.set(control, value)
        visit.ask("Hello")
        assert visit.wait_until(*OVER) == "error"
        assert words in visit.sentence
        visit.set(control, back)
    visit.ask("Hello")
    assert visit.wait_until(*OVER) == "done"


SCREENS = (
    ("laptop", 1280, 720, "light"),
    ("laptop-dark", 1440, 900, "dark"),
    ("projector", 1920, 1080, "light"),
    ("phone", 360, 740, "dark"),
)


def test_it_fits_the_screen(chromium: object, app_url: str, screenshots: Path) -> None:
    visit = RacePage(chromium, app_url, charts=True)
    visit.set("#max-tokens", 48)
    visit.page.click("#run")  # what stands in the box from the start
    assert visit.wait_until(*OVER) == "done"
    for name, width, height, scheme in SCREENS:
        visit.page.set_viewport_size({"width": width, "height": height})
        visit.page.emulate_media(color_scheme=scheme)
        # the charts follow
        visit.page.wait_for_function(
            "width => document.documentElement.scrollWidth <= width", arg=width
        )
        visit.page.wait_for_timeout(300)
        visit.page.screenshot(path=screenshots / f"{name}.png", full_page=width < 900)
        check_screen(visit, width, height)
    visit.close()


def check_screen(visit: RacePage, width: int, height: int) -> None:
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
    # none is cut off
    assert (
        visit.page.evaluate(
            "[...document.querySelectorAll('input[type=number]')].filter(box => box.scrollWidth > "
            "box.clientWidth).map(box => box.value)"
        )
        == []
    )
    if width > 900:  # prompt, buttons, text and speed without scrolling
        for hook in ("#prompt", "#run", "#stop", ".tps >> nth=2", "[role='status']"):
            box = visit.page.locator(hook).first.bounding_box()
            assert box and box["y"] + box["height"] <= height, hook
