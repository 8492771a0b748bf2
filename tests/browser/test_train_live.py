"""Training an add-on on the page, and what the panels make of it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from app_process import ROOT
from race_page import END_SECONDS, OVER, RacePage


def begin(visit: RacePage, conversations: int) -> None:
    if not visit.page.locator("#train-start").is_visible():
        visit.page.click("#train > button")
    visit.set("#train-rows", conversations)
    visit.page.press("#train-rows input[type='number']", "Tab")
    visit.page.click("#train-start")


HEARD = """() => document.querySelector("#train-start").addEventListener("click", () => {
  const pressed = performance.now();
  const watcher = new MutationObserver(() => {
    if (!document.querySelector("#train-progress [role='status']")) return;
    window.heard = performance.now() - pressed;
    watcher.disconnect();
  });
  watcher.observe(document.querySelector("#train-progress"), { subtree: true, childList: true });
}, { capture: true, once: true })"""


def told(visit: RacePage, words: str) -> str:
    said = visit.page.locator("#train-progress [role='status']", has_text=words)
    said.wait_for(timeout=1000 * END_SECONDS)
    return said.inner_text()


def test_clp_is_trained_watched_and_raced(visit: RacePage, screenshots: Path) -> None:
    caution = visit.page.locator("#panel-2-controls .decoder-options input[type='number']").first
    shipped = caution.input_value()
    visit.page.click("#train > button")
    visit.page.wait_for_selector("#train-start")
    visit.page.evaluate(HEARD)
    begin(visit, 2000)
    told(visit, "hidden states")
    assert visit.page.evaluate("window.heard") < 200  # ms
    visit.page.click("#train-start")  # while it goes on
    assert "already" in visit.sentence
    visit.page.click("#train-cancel")
    told(visit, "Cancelled")
    assert caution.input_value() == shipped

    begin(visit, 40)
    visit.page.wait_for_selector("#train-figures table", timeout=1000 * END_SECONDS)
    visit.page.locator("#train").scroll_into_view_if_needed()
    visit.page.screenshot(path=screenshots / "train.png")
    folder = re.search(r"--addons (\S+)", told(visit, "clp is trained"))[1]
    shutil.rmtree((ROOT / folder).parent)  # the app runs where the project lies
    assert visit.page.locator("#train-figures polyline").count() == 2
    assert visit.page.locator("#train-figures tbody tr").count() == 5  # lengths 0 to 4
    visit.page.wait_for_function(
        'shipped => document.querySelector("#panel-2-controls .decoder-options '
        "input[type='number']\").value !== shipped",
        arg=shipped,
    )

    visit.set("#max-tokens", 24)
    visit.ask("What is 47 + 38?")
    assert visit.wait_until(*OVER) == "done"
    assert set(visit.origins(2)) <= {"full", "mtp"}
    visit.page.click("#train-back")
    told(visit, "came with")
    visit.page.wait_for_function(
        'shipped => document.querySelector("#panel-2-controls .decoder-options '
        "input[type='number']\").value === shipped",
        arg=shipped,
    )
