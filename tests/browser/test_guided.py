"""The guided tour: it runs real races through the page's own controls, and leaves the page as it
was.
"""

from __future__ import annotations

from race_page import END_SECONDS, OVER, RacePage

RACE = "#tour-race:not([disabled])"
SAID = "document.querySelector('#tour-outcome').textContent.length > 20"


def controls(visit: RacePage) -> list[str]:
    return [
        visit.page.input_value(hook)
        for hook in (
            "#prompt textarea",
            "#panels input",
            "#max-tokens input",
            "#seed input",
            "#temperature input",
            "#system textarea",
            "#panel-0-decoder input",
            "#panel-1-decoder input",
            "#panel-1-opt-tau input",
        )
    ]


def texts(visit: RacePage) -> list[str]:
    return visit.page.locator(".turn, [data-panel]").evaluate_all(
        "nodes => nodes.map(node => node.textContent)"
    )


def test_the_tour_leaves_the_page_as_it_was(visit: RacePage) -> None:
    visit.set("#panels", 2)
    visit.page.wait_for_selector("[data-panel='2']", state="detached")
    visit.set("#panel-1-opt-tau", 3)
    visit.set("#max-tokens", 10)
    visit.write_into("#sampling", "#temperature input", 0.5)
    visit.write_into("#system-prompt", "#system textarea", "Be brief.")
    visit.ask("Hello")
    assert visit.wait_until(*OVER) == "done"
    visit.page.fill("#prompt textarea", "half a question")
    visit.set("#seed", "")
    was, said, sentence = controls(visit), texts(visit), visit.sentence

    visit.page.click("#tour-switch")
    # a race starts when the reader asks for it
    visit.page.wait_for_selector(RACE)
    visit.page.wait_for_timeout(300)
    assert visit.status == "idle" and not visit.page.locator("[data-origin]").count()
    assert visit.page.evaluate("document.activeElement.id") == "tour-race"
    at = visit.page.locator("#tour-race").bounding_box()
    visit.page.keyboard.press("Enter")
    visit.page.wait_for_function(SAID, timeout=1000 * END_SECONDS)
    assert "1 of 10" in visit.page.locator("#tour-title").inner_text() and visit.status == "done"
    passes = visit.page.locator(".facts").first.inner_text().split(" · ")[1]
    # the figure is this race's own
    assert passes in visit.page.locator("#tour-outcome").inner_text()
    assert set(visit.origins(0)) == {"full"} and set(visit.origins(1)) == {"full", "late"}
    assert (
        visit.page.input_value("#prompt textarea") == "Why is decoding slow?"
        and visit.page.input_value("#panel-1-opt-tau input") == "6"
    )
    visit.page.get_by_role("button", name="Next", exact=True).click()
    visit.page.wait_for_selector(RACE)
    assert visit.page.locator("#tour-race").bounding_box() == at
    visit.page.click(RACE)
    # the second step has three panels
    visit.page.wait_for_selector("[data-panel='2'] [data-origin]", timeout=1000 * END_SECONDS)
    assert "2 of 10" in visit.page.locator("#tour-title").inner_text()
    visit.page.get_by_role("button", name="Back", exact=True).click()  # stops that race
    visit.page.wait_for_function("document.querySelector('#tour-title').textContent[0] === '1'")
    visit.page.click(RACE, timeout=1000 * END_SECONDS)
    visit.page.wait_for_function(SAID, timeout=1000 * END_SECONDS)
    assert visit.page.locator(".spec").all_inner_texts() == ["ar", "dmtd:tau=6"]
    visit.page.keyboard.press("Escape")
    visit.page.wait_for_function(
        "document.querySelector('#prompt textarea').value === 'half a question'"
    )
    assert controls(visit) == was and texts(visit) == said and visit.sentence == sentence
    assert (
        visit.page.locator("#tour-card").is_hidden()
        and visit.page.locator("#new-chat").is_visible()
    )

    visit.set("#seed", 0)
    visit.reply("And again")
    # two panels: the conversation goes on where it was
    visit.page.wait_for_function("document.querySelectorAll('.turn.user').length === 4")
    assert visit.wait_until(*OVER) == "done"


def test_the_whole_tour_needs_no_network(visit: RacePage) -> None:
    """The app and the browser of these tests are cut off from every outside address, and asking for
    one fails the test. Each race is cut short here: tests/ui/test_tour.py runs them whole.
    """
    visit.page.evaluate("""() => {
      const tour = window.dmtdRace.tour;
      const whole = Object.getOwnPropertyDescriptor(Object.getPrototypeOf(tour), "query").get;
      const short = () => whole.call(tour).replace(/max-tokens=\\d+/, "max-tokens=16");
      Object.defineProperty(tour, "query", { get: short });
    }""")
    visit.page.click("#tour-switch")
    for step in range(1, 11):
        visit.page.wait_for_function(
            f"document.querySelector('#tour-title').textContent.includes('{step} of 10')"
        )
        visit.page.click(RACE, timeout=1000 * END_SECONDS)
        visit.page.wait_for_function(
            f"document.querySelector('#tour-title').textContent.includes('{step} of 10') && {SAID}",
            timeout=1000 * END_SECONDS,
        )
        assert visit.status == "done"
        visit.page.get_by_role("button", name="Next" if step < 10 else "Finish", exact=True).click()
    assert visit.page.locator("#tour-card").is_hidden()
