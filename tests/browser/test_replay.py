"""Replay: a race on screen is paused, stepped through, scrubbed and played again; its keys stay out
of the way of typing.
"""

from __future__ import annotations

from race_page import LONG, OVER, RacePage


def counts(visit: RacePage) -> list[int]:
    return [sum(visit.origins(panel).values()) for panel in range(3)]


def clock(visit: RacePage) -> float:
    return float(visit.page.locator(".player .time").inner_text().split(" / ")[0])


def test_a_race_is_stepped_scrubbed_and_played_again(visit: RacePage) -> None:
    player = visit.page.locator(".player")
    visit.race(tokens=40)
    whole = counts(visit)
    speeds = visit.page.locator(".tps").all_inner_texts()
    end = clock(visit)

    # in ms; the clock beside it is rounded to hundredths of a second
    slider = player.locator("input[type='range']")
    last = float(slider.input_value())
    visit.page.keyboard.press("ArrowLeft")  # the focus has left the Run button after the click
    # the tokens of a step share its time
    assert sum(counts(visit)) == sum(whole) - 1 and float(slider.input_value()) <= last
    visit.page.keyboard.press("ArrowRight")
    assert counts(visit) == whole and visit.page.locator(".tps").all_inner_texts() == speeds

    player.get_by_role("button", name="To the start").click()
    assert counts(visit) == [0, 0, 0] and clock(visit) == 0
    player.get_by_role("button", name="cycle", exact=True).click()
    seen: set[int] = set()
    while not seen & {1, 5, 9}:  # panel 1 may begin late on the common clock
        before = counts(visit)
        player.get_by_role("button", name="Step on").click()
        after = counts(visit)
        moved = [panel for panel in range(3) if after[panel] > before[panel]]
        assert moved
        assert visit.page.locator(".newest").count() == 1
        seen.add(after[1])
    assert all(
        visit.page.locator(f"[data-panel='{panel}'] [data-origin].opens").count() for panel in moved
    )
    player.get_by_role("button", name="Step back").click()
    assert sum(counts(visit)) < sum(after)

    slider.fill(str(float(slider.get_attribute("max")) / 2))
    half = counts(visit)
    assert all(0 < some <= most for some, most in zip(half, whole)) and half[0] < whole[0]
    assert abs(clock(visit) - end / 2) < 0.02

    visit.page.select_option("#speed", "0.1")
    visit.page.evaluate("document.activeElement.blur()")
    began = clock(visit)
    visit.page.keyboard.press("Space")
    visit.page.wait_for_function(
        "began => Number(document.querySelector('.player .time').textContent.split(' / ')[0]) > "
        "began",
        arg=began,
    )
    visit.page.keyboard.press("Space")
    paused = clock(visit)
    assert began < paused
    visit.page.wait_for_timeout(300)
    assert clock(visit) == paused
    visit.page.select_option("#speed", "1")
    visit.page.evaluate("document.activeElement.blur()")
    visit.page.keyboard.press("Space")
    # the clock shows its end, rounded, a few ms before it is there
    visit.page.wait_for_function(
        "count => document.querySelectorAll('[data-panel] [data-origin]').length === count",
        arg=sum(whole),
    )
    assert counts(visit) == whole and visit.status == "done" and clock(visit) == end


def test_a_running_race_is_paused_on_screen_and_goes_on_behind(visit: RacePage) -> None:
    visit.page.click("#sampling > button")
    visit.set("#temperature", 50)  # noise, which hardly ever ends by itself
    visit.set("#max-tokens", 4000)
    visit.ask(LONG)
    visit.wait_for_tokens()
    visit.page.keyboard.press("Space")
    held = counts(visit)
    visit.page.wait_for_timeout(500)
    assert counts(visit) == held and visit.status == "running"
    visit.page.keyboard.press("Escape")
    assert visit.wait_until(*OVER) == "stopped"
    assert counts(visit) == held
    visit.page.locator(".player input[type='range']").fill("99999999")
    assert sum(counts(visit)) > sum(held)


def test_keys_do_nothing_while_typing(visit: RacePage) -> None:
    visit.page.fill("#prompt textarea", "")
    visit.page.locator("#prompt textarea").press_sequentially("rpf? r")
    assert visit.page.locator("#prompt textarea").input_value() == "rpf? r"
    assert visit.status == "idle" and visit.page.locator("dialog[open]").count() == 0
    visit.page.locator("#prompt textarea").blur()
    visit.page.keyboard.press("?")
    assert "pause" in visit.page.locator("dialog[open]").inner_text()
    visit.page.keyboard.press("Escape")
    assert visit.page.locator("dialog[open]").count() == 0
    visit.set("#max-tokens", 4)
    visit.page.locator("#max-tokens input").blur()
    visit.page.fill("#prompt textarea", "Hello")
    visit.page.locator("#prompt textarea").blur()
    visit.page.keyboard.press("r")
    assert visit.wait_until(*OVER) == "done"
