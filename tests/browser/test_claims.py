"""What the page claims, and what it does not: sampling, other weights, low audits, near-ties, and
what `ar` would have chosen.
"""

from __future__ import annotations

import json
import re
from typing import Any

from race_page import LONG, OVER, RacePage

RUN_COVERED = """() => {
  const [tip, run] = ["#race-tooltip", "#run"].map(id => document.querySelector(id).getBoundingClientRect());
  return tip.left < run.right && tip.right > run.left && tip.top < run.bottom && tip.bottom > run.top;
}"""


def record(panels: list[dict[str, Any]], texts: list[str], temperature: float, **more: Any) -> str:
    """A race of three tokens a panel: of panel 2 the second is another one, as its audit says."""
    header = {
        "type": "header",
        "schema": 1,
        "prompt": "Hi",
        "sampling": {"temperature": temperature},
        "panels": [
            {"panel": i, "spec": p["decoder"], "layers": 4, "dtype": "bfloat16"} | p
            for i, p in enumerate(panels)
        ],
    }
    lines: list[dict[str, Any]] = [header]
    for index, text in enumerate(texts):
        origin = "full" if index == 0 else more.get("origin", "late")
        for number, piece in enumerate(text.split()):
            passes = [{"kind": "full", "runs": [[0, 4, 1]]}]
            if origin == "late" and number:
                passes = [{"kind": "late", "runs": [[3, 4, 1]]}]
            token = {"id": ord(piece[0]), "text": piece, "span": 1, "logprob": -0.7}
            token["origin"] = origin if number else "full"
            lines.append(
                {"type": "step", "panel": index, "step": number, "ms": 10.0 * (number + 1)}
                | {"passes": passes, "tokens": [token]}
            )
    for index, text in enumerate(texts):
        chances = [[ord("b"), "b", 0.41, 0.41 if index == 0 else 0.4]] * 3
        agrees = [True, index == 0, True]
        lines.append({"type": "audit", "panel": index, "agrees": agrees, "choices": chances})
        lines.append(
            {"type": "summary", "panel": index, "stop": "length", "tokens": 3, "full_passes": 1}
            | {"tokens_per_second": 100.0 * (index + 1), "text": text, "agreement": 0.3}
            | {"audit_agreement": None if index == 0 else 0.5}
        )
    return "\n".join(map(json.dumps, lines))


# the texts of all panels begin at one height
LEVEL = """() => {
  const bodies = [...document.querySelectorAll(".panel-body")].map(body => body.getBoundingClientRect());
  return bodies.length > 1 && bodies.every(({ top }) => Math.abs(top - bodies[0].top) < 1);
}"""


def opened(visit: RacePage, text: str) -> None:
    visit.page.set_input_files(
        ".keep input", files=[{"name": "race.jsonl", "mimeType": "", "buffer": text.encode()}]
    )
    visit.page.wait_for_function(
        "document.querySelector('[role=status]').textContent.includes('race.jsonl')"
    )


def test_what_is_claimed_of_a_race(visit: RacePage) -> None:
    page = visit.page
    base = {"decoder": "ar", "model": "m", "quantization": "none"}
    fast = {"decoder": "dmtd", "model": "m", "quantization": "nf4"}
    opened(visit, record([base, fast], ["a b c", "a x c"], 0))
    # other weights: never a plain ratio; and fast without being right is said on the figure
    assert "dmtd (nf4 against not quantized) finished" in visit.sentence
    assert page.locator(".unlike >> nth=1").inner_text() == "nf4 against not quantized"
    assert (
        "against" in visit.table()[1]["speed-up"]
        and visit.table()[1]["agreement with panel 1"] == "30 %"
    )
    assert page.locator(".meaningless").nth(1).is_visible()
    assert page.locator(".meaningless").nth(0).is_hidden()
    assert page.locator(".differs").count() == 1
    page.hover("[data-panel='1'] .differs")
    said = page.locator("#race-tooltip").inner_text()
    assert "b at 41.0 %, and this one at 40.0 %" in said and "left out: 1–3" in said, said

    # its head takes the place of what it does: no text stands lower than another
    page.wait_for_function(LEVEL)
    opened(visit, record([base, dict(fast, quantization="none")], ["a b c", "a x c"], 0))
    page.wait_for_function(LEVEL)
    assert page.locator(".meaningless").nth(1).is_visible()
    page.evaluate("window.dmtdRace.presenter()")
    page.wait_for_function(LEVEL)
    page.keyboard.press("Escape")

    # drawn tokens: no mark where a full pass drew, another name elsewhere, no agreement claimed
    drawn = [dict(base), dict(fast, quantization="none")]
    opened(visit, record(drawn, ["a b c", "a x c"], 0.8))
    assert (
        page.locator(".legend [data-key='differs']")
        .inner_text()
        .startswith("≠\nnot the most probable")
    )
    assert visit.table()[1]["agreement with panel 1"] == "–"
    assert page.locator(".meaningless").nth(1).is_hidden()
    opened(visit, record(drawn, ["a b c", "a x c"], 0.8, origin="full"))
    assert page.locator(".differs").count() == 0

    # a lossless text that parts from ar's says where, and how near it was
    checked = dict(base, decoder="mtp-verified", lossless=True)
    opened(visit, record([base, checked], ["a b c", "a x c"], 0, origin="draft"))
    said = page.locator(".parting").nth(1).inner_text()
    assert "near-ties" in said and "token 2, x (40.00 %) where ar has b (41.00 %)" in said
    page.hover(".spec >> nth=1")
    assert "near-ties" in page.locator("#race-tooltip").inner_text()


def test_a_pinned_token_shows_its_own_pass_and_nothing_is_covered(visit: RacePage) -> None:
    page = visit.page
    visit.race(tokens=16)
    picture = page.locator(".cycle >> nth=1 >> b")
    last = picture.inner_text()
    wanted = "full" if last == "late layers" else "late"
    page.click(f"[data-panel='1'] [data-origin='{wanted}'] >> nth=1")
    assert picture.inner_text() == {"full": "full pass", "late": "late layers"}[wanted]
    tip, token = (page.locator(hook).bounding_box() for hook in ("#race-tooltip", ".pinned"))
    assert tip["y"] + tip["height"] <= token["y"] or tip["y"] >= token["y"] + token["height"]
    page.keyboard.press("Escape")
    assert picture.inner_text() == last
    page.hover("#seed label > span")
    page.wait_for_selector("#race-tooltip", state="visible")
    assert not page.evaluate(RUN_COVERED)


def test_caution_has_a_scale_of_nines(visit: RacePage) -> None:
    page = visit.page
    number, scale = (
        "#panel-2-opt-threshold input[type='number']",
        "#panel-2-opt-threshold .caution input",
    )
    page.get_by_role("button", name="careful: 0.99", exact=True).first.click()
    assert page.input_value(number) == "0.99"
    careful = float(page.input_value(scale))
    page.fill(number, "0.999")
    page.wait_for_function(
        "([scale, careful]) => document.querySelector(scale).value > careful + 0.9",
        arg=[scale, careful],
    )
    assert page.locator("#panel-2-opt-threshold output").inner_text() == "strict"
    page.locator(scale).fill("1.52")
    assert abs(float(page.input_value(number)) - 0.97) < 0.001
    visit.set("#max-tokens", 8)
    visit.ask(LONG)
    assert visit.wait_until(*OVER) == "done"
    assert re.search(r"threshold=0\.9698", page.locator(".spec >> nth=2").inner_text())


def test_ar_goes_on_where_it_would_have_chosen_otherwise(visit: RacePage) -> None:
    page = visit.page
    visit.set("#panels", 2)
    page.wait_for_selector("[data-panel='2']", state="detached")
    visit.set("#panel-1-opt-tau", 6)
    visit.race("Tell me a story about Iris, a fox and a red lantern in the harbour.", 100)
    page.locator("[data-panel='1'] .differs").first.click()
    tooltip = page.locator("#race-tooltip").inner_text()
    choice = re.search(r"ar’s own\s+(\S+) at", tooltip)[1].replace("␣", " ")
    branch = page.locator(".panel >> nth=1 >> .branch")
    page.wait_for_function(
        "document.querySelector('.branch:not([hidden]) .ar')?.lastChild?.data.length > 5"
    )
    here, own = (
        branch.locator(f"dd.{name}").evaluate("node => node.lastChild.data")
        for name in ("here", "ar")
    )
    assert own.startswith(choice) and not here.startswith(choice)
    page.keyboard.press("Escape")
    assert branch.is_hidden()
