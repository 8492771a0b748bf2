"""Page translators, which wrap text nodes, and texts that are written from right to left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from race_page import RacePage, save

# as those of browsers do it: each piece of text in elements of their own, what asks not to be left
TRANSLATE = """() => {
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = [];
  while (walker.nextNode()) found.push(walker.currentNode);
  for (const node of found) {
    const own = node.parentElement;
    if (!node.textContent.trim() || own.closest("script, style, textarea, svg")) continue;
    if (own.closest("[translate]")?.getAttribute("translate") === "no") continue;
    const outer = document.createElement("font"), inner = document.createElement("font");
    inner.textContent = `«${node.textContent}»`;
    outer.append(inner);
    node.replaceWith(outer);
  }
}"""
READ = """() => [...document.querySelectorAll(".text, .tps, .spec, .facts, .summary td")]
  .map(node => node.innerText)"""
ARABIC = "مرحبا بالعالم"
DIRECTION = "(query) => getComputedStyle(document.querySelector(query)).direction"
PANEL = {"panel": 0, "spec": "ar", "decoder": "ar", "model": "m", "layers": 4}
RECORD: list[dict[str, Any]] = [
    {
        "type": "header",
        "schema": 1,
        "prompt": "?",
        "panels": [PANEL, {**PANEL, "panel": 1}],
        "conversations": [
            [
                {"role": "user", "content": ARABIC},
                {"role": "assistant", "content": ARABIC},
                {"role": "user", "content": "Hello"},
            ]
        ]
        * 2,
    },
    *(
        {
            "type": "step",
            "panel": panel,
            "step": 0,
            "ms": 1.0,
            "passes": [{"kind": "full", "runs": [[0, 4, 1]]}],
            "tokens": [
                {"id": i, "text": text, "origin": "full", "span": i, "logprob": -0.1}
                for i, text in enumerate(texts)
            ],
        }
        for panel, texts in enumerate((["1. ", *ARABIC], ["Hello", " you"]))
    ),
    *(
        {"type": "summary", "panel": panel, "stop": "eos", "tokens": 2, "full_passes": 1}
        for panel in range(2)
    ),
]


def check_directions(page: Any) -> None:
    written = ".panel >> nth=0 >> .turn"
    assert page.locator(written).evaluate_all(
        "nodes => nodes.map(node => [getComputedStyle(node).direction, node.dir])"
    ) == [["rtl", "auto"], ["rtl", "auto"], ["ltr", "auto"]]
    assert page.evaluate(DIRECTION, "[data-panel='0']") == "rtl"
    assert page.evaluate(DIRECTION, "[data-panel='1']") == "ltr"
    for part in (".text", ".spec", ".tps", ".facts", ".summary td", ".history"):
        assert page.locator(part).first.evaluate("node => node.translate") is False, part


def test_a_translator_leaves_the_tokens_and_figures_alone(visit: RacePage, tmp_path: Path) -> None:
    page = visit.page
    visit.race("What is 47 + 38?", 60)
    # in one go: verdicts may come in between
    before, after = page.evaluate(
        f"() => {{const before = ({READ})(); ({TRANSLATE})(); return [before, ({READ})()];}}"
    )
    assert after == before and len(before) > 10
    assert "«" in page.locator(".race").inner_text()
    visit.race("What is 12 + 21?", 60)
    assert "33" in page.locator(".panel .text >> nth=0").inner_text()
    page.locator("[data-panel='0'] [data-index='2']").hover()
    page.wait_for_selector("#race-tooltip:not([hidden])")
    page.evaluate(TRANSLATE)
    page.locator("[data-panel='0'] [data-index='1']").click()

    (tmp_path / "race.jsonl").write_text("\n".join(map(json.dumps, RECORD)), encoding="utf-8")
    page.locator(".keep input[type='file']").set_input_files(tmp_path / "race.jsonl")
    page.wait_for_selector("[data-source='file']")
    check_directions(page)
    page.fill("#prompt textarea", ARABIC)
    assert page.locator("#prompt textarea").evaluate("box => box.dir") == "auto"
    assert page.evaluate(DIRECTION, "#prompt textarea") == "rtl"
    kept = save(visit, "Save as HTML", tmp_path)
    page.goto(kept.as_uri())
    page.wait_for_selector("[data-status='done']")
    check_directions(page)
    page.evaluate(TRANSLATE)
    page.locator("[data-panel='0'] [data-index='1']").click()
    page.goto(visit.url)
