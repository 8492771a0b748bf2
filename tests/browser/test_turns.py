"""The conversation: the last turn asked again or edited, the system prompt, and what a model
thinks, folded.
"""

from __future__ import annotations

import json

from race_page import LONG, OVER, RacePage


def turns(visit: RacePage) -> list[str]:
    return visit.page.locator(".panel >> nth=0 >> .turn").all_inner_texts()


def asked(visit: RacePage, button: str) -> str:
    visit.press(button)
    return visit.wait_until(*OVER)


def places(visit: RacePage) -> list[object]:
    visit.page.evaluate("window.scrollTo(0, 0)")
    return [visit.page.locator(hook).bounding_box() for hook in ("#run", "#stop", "#new-chat")]


def test_run_asks_anew_and_reply_goes_on(visit: RacePage) -> None:
    visit.set("#max-tokens", 8)
    box = "#reply-text textarea"
    assert visit.page.locator("#reply").is_hidden()
    where = places(visit)
    visit.page.fill("#prompt textarea", "Hello")
    assert asked(visit, "#run") == "done"
    first = visit.page.locator("[data-panel='0']").inner_text()
    # another knob, the same question: nothing of the last answer is in it
    visit.set("#panel-1-opt-tau", 2)
    assert asked(visit, "#run") == "done"
    assert turns(visit) == ["Hello"]
    assert visit.page.locator("[data-panel='0']").inner_text() == first
    assert places(visit) == where and visit.page.locator("#regenerate").is_visible()

    visit.page.fill(box, "What is a token?")
    visit.page.press(box, "Enter")
    visit.page.wait_for_function("document.querySelectorAll('.turn.user').length >= 6")
    assert visit.wait_until(*OVER) == "done"
    before = turns(visit)
    assert len(before) == 3 and before[2] == "What is a token?"
    assert visit.page.input_value(box) == ""
    assert visit.page.input_value("#prompt textarea") == "Hello"

    visit.page.fill(box, "a draft of the next question")
    visit.write_into("#system-prompt", "#system textarea", "Answer in one word.")
    assert visit.page.locator("#thinking").count() == 0  # this model's template has no such switch
    assert asked(visit, "#regenerate") == "done"
    assert turns(visit) == ["System prompt", *before]
    assert visit.page.input_value(box) == "a draft of the next question"
    visit.page.locator(".turn.system summary").first.click()
    assert "Answer in one word." in turns(visit)[0]

    visit.page.click("#edit-last")
    assert visit.page.input_value(box) == "What is a token?" and "replaces" in visit.sentence
    visit.page.click("#edit-last")
    assert visit.page.input_value(box) == "a draft of the next question"
    visit.page.click("#edit-last")
    visit.page.fill(box, LONG)
    assert asked(visit, "#reply") == "done"
    assert turns(visit)[1:] == [*before[:2], LONG]
    assert visit.page.input_value(box) == "a draft of the next question"
    assert asked(visit, "#reply") == "done"  # editing is over: this one is a new turn
    assert len(turns(visit)) == 6 and turns(visit)[-1] == "a draft of the next question"
    assert places(visit) == where

    visit.write_into("#system-prompt", "#system textarea", "word " * 10_000)
    visit.press("#run")
    assert visit.wait_until("error") == "error"
    assert (
        "system prompt" in visit.sentence
        and "context of" in visit.sentence
        and "\n" not in visit.sentence
    )


def thinking_record(pieces: list[tuple[str, str]]) -> tuple[str, str]:
    """A race of one panel that wrote these pieces, as JSON lines; and its text."""
    header = {
        "type": "header",
        "schema": 1,
        "prompt": "And?",
        "panels": [{"panel": 0, "spec": "ar", "decoder": "ar", "layers": 12}],
        "conversations": [
            [
                {"role": "user", "content": "2+2?"},
                {"role": "assistant", "content": "<think>\nhm <b>\n</think>\n\n4"},
                {"role": "user", "content": "And?"},
            ]
        ],
    }
    steps = [
        {
            "type": "step",
            "panel": 0,
            "step": i,
            "ms": i + 1.0,
            "passes": [{"kind": "full", "runs": [[0, 12, 1]], "ms": 1.0}],
            "tokens": [{"id": i, "text": text, "origin": origin, "span": i, "logprob": -0.1}],
        }
        for i, (text, origin) in enumerate(pieces)
    ]
    over = {
        "type": "summary",
        "panel": 0,
        "stop": "length",
        "tokens": len(pieces),
        "full_passes": 5,
        "text": "".join(text for text, _ in pieces),
    }
    return "\n".join(json.dumps(line) for line in [header, *steps, over]), over["text"]


def opened(visit: RacePage, pieces: list[tuple[str, str]]) -> str:
    """Open such a race on the page; return its text."""
    record, text = thinking_record(pieces)
    visit.page.set_input_files(
        ".keep input", files=[{"name": "thought.jsonl", "mimeType": "", "buffer": record.encode()}]
    )
    assert visit.wait_until(*OVER) == "done"
    return text


def test_a_thought_is_folded_and_every_token_stays(visit: RacePage) -> None:
    pieces = [
        ("<think>", "full"),
        ("\n", "late"),
        ("Two and two", "late"),
        ("</think>", "full"),
        ("\n\n", "late"),
        ("Four.", "mtp"),
    ]
    whole = opened(visit, pieces)
    text = visit.page.locator("[data-panel='0']")
    tokens = text.locator("[data-origin]")
    assert tokens.count() == 6 and text.evaluate("node => node.textContent") == whole
    toggle = visit.page.get_by_role("button", name="Thought: 4 tokens")
    assert toggle.get_attribute("aria-expanded") == "false"
    widths = [box["width"] for box in (token.bounding_box() for token in tokens.all())]
    assert all(0 < width < 8 for width in widths[:4]) and widths[5] > 20
    # a tick in the colour of late layers
    assert (
        tokens.nth(2).evaluate("node => getComputedStyle(node).backgroundColor")
        == "rgb(213, 94, 0)"
    )
    toggle.click()
    assert tokens.nth(2).bounding_box()["width"] > 40 and "Two and two" in text.inner_text()
    toggle.click()
    visit.page.get_by_role("button", name="To the start").click()
    assert visit.page.locator(".thought-toggle").is_hidden()
    for _ in range(3):
        visit.page.get_by_role("button", name="Step on").click()
    assert visit.page.get_by_role("button", name="Thinking: 3 tokens").is_visible()

    earlier = visit.page.locator(".turn.assistant")
    assert earlier.inner_text().split() == ["Thought", "4"]
    earlier.locator("summary").click()
    assert "hm <b>" in earlier.inner_text()

    # by a template that opened it, and by a server whose template did: in pieces of its own
    for parts in (
        ["<think>\nTwo", " and two", "</think>\n\n", "Four."],
        ["Two and ", "two</think>\n\nFo", "ur."],
    ):
        opened(visit, [(part, "full") for part in parts])
        count = len(parts) - 1
        assert visit.page.get_by_role("button", name=f"Thought: {count} token").is_visible()
        assert text.evaluate("node => node.textContent").endswith("Four.")
        assert tokens.nth(0).bounding_box()["width"] < 8 < tokens.last.bounding_box()["width"]
