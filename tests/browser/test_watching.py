"""A race that can be watched: played slowed after its own clock measured it, with everything that
tells of it on screen, and a finish in words."""

from __future__ import annotations

import re
from typing import Any

import pytest

from dmtd_demo.decoders import DECODERS
from race_page import CUT, END_SECONDS, LONG, OVER, RacePage

ON_SCREEN = (
    ".status",
    "[data-legend]",
    ".player",
    ".tps",
    "[data-live-chart='tps']",
    "[data-live-chart='span']",
)


# entries of a panel's list that its field would cut
TOO_LONG = """labels => {
  const field = document.querySelector("#panel-1-decoder input"), style = getComputedStyle(field);
  const pen = document.createElement("canvas").getContext("2d");
  pen.font = `${style.fontWeight} ${style.fontSize} ${style.fontFamily}`;
  return labels.filter(label => pen.measureText(label).width > field.clientWidth);
}"""


def playing(visit: RacePage) -> str:
    return visit.page.locator("[data-status]").get_attribute("data-playing")


def drawn(visit: RacePage) -> int:
    return visit.page.locator("[data-panel] [data-origin]").count()


def facts(visit: RacePage) -> list[str]:
    return visit.page.locator(".facts").all_inner_texts()


def places(visit: RacePage) -> list[float]:
    """The edges of the panels and of what is below them."""
    boxes = [part.bounding_box() for part in visit.page.locator(".panel, .bar, .player").all()]
    return [box[edge] for box in boxes for edge in ("x", "y", "width", "height")]


def boxes(visit: RacePage, hook: str) -> list[dict[str, float]]:
    return [part.bounding_box() for part in visit.page.locator(hook).all()]


def off_screen(visit: RacePage, height: int) -> list[str]:
    """What of it can not be seen without scrolling, in any panel."""
    return [
        f"{hook}: {box}"
        for hook in ON_SCREEN
        for box in (part.bounding_box() for part in visit.page.locator(hook).all())
        if not box or box["y"] < 0 or box["y"] + box["height"] > height
    ]


@pytest.mark.parametrize(("width", "height"), [(1280, 720), (1366, 625)])
def test_a_race_is_played_slowed_and_all_of_it_is_on_screen(
    chromium: Any, app_url: str, width: int, height: int
) -> None:
    visit = RacePage(chromium, app_url, width, height, speed="")
    page = visit.page
    assert page.input_value("#speed") == "watch"
    page.select_option("#speed", "0.1")
    visit.set("#max-tokens", 40)
    visit.ask("What is a KV cache?")
    page.wait_for_function(
        "document.querySelector('.status').textContent.includes('Played 10× slowed; measured ')",
        timeout=1000 * END_SECONDS,
    )
    page.click(".player [aria-label='Pause']")
    assert visit.status == "running" and playing(visit) == "slowed"
    assert page.locator("#run").get_attribute("aria-disabled") == "false"
    some = drawn(visit)
    assert page.evaluate("scrollY") == 0
    assert not off_screen(visit, height)
    before = places(visit)
    page.click(".player [aria-label='Step on']")
    assert drawn(visit) == some + 1 and visit.status == "running"

    page.click(".player [aria-label='To the end']")
    assert visit.wait_until(*OVER) == "done" and playing(visit) == "no"
    assert some < drawn(visit)
    assert page.locator(".live-chart .line").first.get_attribute("d").startswith("M")
    # the bar of span length 4 of dmtd
    bars = page.locator("[data-live-chart='span'] >> nth=1 >> .column:not(.none)")
    assert "4" in bars.all_inner_texts()
    # all figures are those of the clock, however slowly it was played
    rows, shown = visit.table(), page.locator(".tps").all_inner_texts()
    assert shown == [row["tokens/s"] for row in rows]
    assert "dmtd finished " in visit.sentence and "ar's" in visit.sentence
    assert all("finished" in each or "limit" in each for each in facts(visit))
    # nothing has moved
    assert all(abs(now - was) <= 1 for now, was in zip(places(visit), before))
    # six lines of text, and a way to go on without scrolling
    assert all(box["height"] > 150 for box in boxes(visit, ".scroll"))
    assert page.locator("#to-reply").is_visible() == (height < 700)
    if height < 700:
        page.click("#to-reply")
    page.fill("#reply-text textarea", "And then?")
    (reply,) = boxes(visit, ".reply-row")
    assert reply["y"] + reply["height"] <= height and page.evaluate("scrollY") == 0
    assert not off_screen(visit, height)
    page.fill("#reply-text textarea", "")

    # remembered; and Stop goes to the end of what is only played
    page.reload()
    # the tab's chat comes back with it
    page.wait_for_selector("[data-status='done']", timeout=1000 * END_SECONDS)
    assert page.input_value("#speed") == "0.1"
    # a name of two lines moves no text
    page.goto(f"{app_url}?panel=ar&panel=prompt-lookup:ngram=3&panel=dmtd-spec:tau=4")
    page.wait_for_function("document.querySelector('#panel-2-opt-tau input')?.value === '4'")
    visit.set("#max-tokens", 40)
    visit.ask(LONG)
    page.wait_for_selector("[data-panel='2'] [data-origin]", timeout=1000 * END_SECONDS)
    assert page.locator(".spec").nth(1).inner_text() == "prompt-lookup:ngram=3"

    def uneven() -> float:
        tops = [box["y"] for box in boxes(visit, ".scroll")]
        return max(tops) - min(tops)

    assert uneven() <= 1
    page.keyboard.press("p")
    assert uneven() <= 1
    page.wait_for_function("document.querySelector('.status').textContent.includes('measured ')")
    # with every figure there
    page.click(".player [aria-label='To the end']")
    assert visit.wait_until(*OVER) == "done" and uneven() <= 1
    page.keyboard.press("p")
    assert uneven() <= 1 and not page.evaluate(CUT)
    # nor would another decoder's be
    labels = [f"{name} · {decoder.label}" for name, decoder in DECODERS.items()]
    assert not page.evaluate(TOO_LONG, labels)
    page.select_option("#speed", "watch")
    visit.ask(LONG)
    page.wait_for_function("document.querySelector('.status').textContent.includes('measured ')")
    page.click("#stop")
    assert visit.wait_until(*OVER, seconds=5) == "done"
    visit.close()


def test_by_itself_it_takes_about_twelve_seconds_and_run_may_interrupt(
    chromium: Any, app_url: str
) -> None:
    visit = RacePage(chromium, app_url, speed="")
    visit.set("#max-tokens", 24)
    # while the clock's own race runs, the page draws its first token and then keeps still
    held = visit.page.evaluate_handle("""() => {
      const race = document.querySelector("[data-status]"), seen = [];
      new MutationObserver(() => {
        if (race.querySelector(".status").textContent.startsWith("Measuring"))
          seen.push(race.querySelectorAll("[data-panel] [data-origin]").length);
      }).observe(race, { childList: true, subtree: true });
      return seen;
    }""")
    visit.ask(LONG)
    measured = "document.querySelector('.status').textContent.includes('measured ')"
    visit.page.wait_for_function(measured, timeout=1000 * END_SECONDS)
    assert held.json_value()[-1] == max(held.json_value()) == 1
    visit.ask(LONG)  # while it is played: a new race
    visit.page.wait_for_function(measured, timeout=1000 * END_SECONDS)
    # the share of the clock that passes in two seconds says how long the whole takes; a page that
    # stands still for longer than that goes on from where it was
    began, ended, after, passed, whole = visit.page.evaluate("""async () => {
      const clock = () => Number(document.querySelector(".player [type='range']").value);
      const began = clock(), start = performance.now();
      await new Promise((done) => setTimeout(done, 2000));
      const ended = clock(), passed = (performance.now() - start) / 1000;
      while (performance.now() < start + 1000 * passed + 4000);
      await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
      const { max } = document.querySelector(".player [type='range']");
      return [began, ended, clock(), passed, Number(max)];
    }""")
    assert 6 < passed * whole / (ended - began) < 18
    assert after - ended < whole / 10
    visit.page.click(".player [aria-label='To the end']")
    assert visit.status == "done"
    visit.close()


def test_at_its_own_speed_it_is_live(visit: RacePage) -> None:
    seen = visit.page.evaluate_handle("""() => {
      const race = document.querySelector("[data-status]"), seen = [];
      new MutationObserver(() => seen.push(`${race.dataset.status} ${race.dataset.playing}`))
        .observe(race, { attributeFilter: ["data-status", "data-playing"] });
      return seen;
    }""")
    visit.race(tokens=12)
    states = seen.json_value()
    assert "running live" in states and states[-1] == "done no"
    assert not any("slowed" in state for state in states)


def test_a_recorded_race_plays_before_any_click(chromium: Any, app_url: str) -> None:
    visit = RacePage(chromium, app_url, speed="")
    page = visit.page
    visit.wait_for_tokens()
    assert visit.status == "idle" and playing(visit) == "recorded"
    assert "Recorded race of classroom" in visit.sentence
    assert page.locator(".mark:visible").count() == 3
    assert all(page.locator(".how").all_inner_texts())
    assert re.search(r"classroom, \d+× slowed; measured", visit.sentence)
    page.select_option(".player select", "1")
    page.wait_for_function("document.querySelector('.status').textContent.includes('own speed;')")
    page.set_viewport_size({"width": 390, "height": 844})
    # each panel's name in one line, beside the mark and the figure
    heights = "specs => specs.map(spec => spec.getBoundingClientRect().height)"
    assert max(page.locator(".spec").evaluate_all(heights)) < 20
    page.set_viewport_size({"width": 1280, "height": 720})
    page.select_option(".player select", "watch")
    # what can be asked, and where a real language model is, beside the box
    assert "small world" in page.locator("#askable").inner_text()
    assert page.locator(".papers a").count() == 2
    page.click("#offer")
    page.wait_for_selector("#model-choice input[value^='SmolLM2']:checked", state="attached")
    page.click("#models > button")
    # terms where they stand, decoders in the list too
    page.click("#panel-1-decoder input")
    page.get_by_role("option", name="mtp-verified").hover()
    page.locator("#race-tooltip", has_text="a full pass checks").wait_for()
    page.keyboard.press("Escape")

    visit.set("#max-tokens", 8)
    visit.ask("Hello")
    assert playing(visit) != "recorded" and not page.locator(".mark:visible").count()
    page.wait_for_function("document.querySelector('.status').textContent.includes('measured ')")
    page.click(".player [aria-label='To the end']")
    assert visit.status == "done" and drawn(visit) <= 24
    visit.close()
