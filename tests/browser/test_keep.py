"""Keeping and sharing: a race as a file that replays itself, as JSON and as a table; a file that
opens again; a link that opens the same comparison.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from race_page import LONG, OVER, RacePage, save

NASTY = 'Say <img src=x onerror="document.title=1"> & </script> =1+1'


def short_race(visit: RacePage, prompt: str = LONG) -> list[str]:
    visit.race(prompt)
    return texts(visit.page)


def texts(page: object) -> list[str]:
    return [
        page.locator(f"[data-panel='{panel}']").evaluate("node => node.textContent")
        for panel in range(3)
    ]


def test_a_race_is_saved_and_opens_again(
    visit: RacePage, chromium: object, app_url: str, tmp_path: Path
) -> None:
    visit.wait_for_charts()
    shown = short_race(visit, NASTY)
    table = visit.table()
    # what the page clicks itself, as in every race, does not shut the menu under the pointer
    visit.page.click(".keep summary")
    visit.page.evaluate("() => document.querySelector('#remember').click()")
    assert visit.page.locator(".keep").get_attribute("open") is not None
    visit.page.mouse.click(2, 300)
    assert visit.page.locator(".keep").get_attribute("open") is None
    record = save(visit, "Save as JSON", tmp_path)
    records = [json.loads(line) for line in record.read_text(encoding="utf-8").splitlines()]
    assert records[0]["type"] == "header" and records[0]["prompt"] == NASTY
    assert {r["type"] for r in records} == {"header", "step", "audit", "summary"}
    spreadsheet = save(visit, "Save as CSV", tmp_path)
    with spreadsheet.open(encoding="utf-8-sig", newline="") as lines:
        rows = list(csv.DictReader(lines))
    for panel, text in enumerate(shown):
        assert (
            "".join(
                json.loads(row["text (JSON)"]) for row in rows if row["panel"] == str(panel + 1)
            )
            == text
        )

    replay = save(visit, "Save as HTML replay", tmp_path)
    page = chromium.new_page()
    asked: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on(
        "console",
        lambda message: complaints.append(message.text) if message.type == "error" else None,
    )
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.context.set_offline(True)
    page.goto(replay.as_uri())
    page.wait_for_selector("[data-status='done']", state="attached")
    assert texts(page) == shown and NASTY in page.locator(".turn").first.inner_text()
    page.keyboard.press("ArrowLeft")
    assert sum(map(len, texts(page))) < sum(map(len, shown))
    page.keyboard.press("ArrowRight")
    page.hover("[data-panel='1'] [data-origin='late'] >> nth=0")
    assert "late layers" in page.locator("#race-tooltip").inner_text()
    assert page.locator(".charts img").count() == 4
    assert page.locator("img[src='x']").count() == 0 and page.title() != "1"
    assert [url for url in asked if not url.startswith(("data:", "blob:"))] == [
        replay.as_uri()
    ] and not complaints
    page.close()

    other = RacePage(chromium, app_url)
    other.page.set_input_files(".keep input", record)
    assert other.wait_until(*OVER) == "done" and record.name in other.sentence
    assert texts(other.page) == shown and other.table() == table
    other.page.get_by_role("button", name="To the start").click()
    assert other.page.locator("[data-origin]").count() == 0
    other.page.get_by_role("button", name="Close it").click()
    assert other.status == "idle" and other.page.locator("#panel-0-decoder").is_visible()
    other.close()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("hello", "needs JSON, one record a line; got"),
        ("", "header of a race, schema 1; got nothing"),
        ('{"type":"header","schema":2}', '"schema":2'),
        (
            '{"type":"header","schema":1,"panels":[{"panel":0,"spec":"ar","decoder":"ar"}]}\n{"type":"step","panel":3}',
            "one of its panels; got 3 in line 2",
        ),
        (
            '{"type":"header","schema":1,"panels":[{"panel":0,"spec":"ar","decoder":"ar"}]}\n{"type":"step","panel":0,"ms":1,"passes":[],"tokens":[{"id":1,"text":"a","span":0,"origin":"magic"}]}',
            'got "magic" in line 2',
        ),
    ],
)
def test_a_file_that_is_no_race_is_refused_in_words(idle: RacePage, text: str, words: str) -> None:
    idle.page.set_input_files(
        ".keep input", files=[{"name": "odd.jsonl", "mimeType": "", "buffer": text.encode()}]
    )
    idle.page.wait_for_function(
        "words => document.querySelector('[role=status]').textContent.includes(words)", arg=words
    )
    assert idle.status == "idle"


@pytest.fixture(scope="module")
def idle(chromium: object, app_url: str) -> RacePage:
    page = RacePage(chromium, app_url)
    yield page
    page.close()


def test_a_link_opens_the_same_comparison(visit: RacePage, chromium: object, app_url: str) -> None:
    visit.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    visit.page.click("#presets > button")
    visit.page.get_by_role("button", name="MTP heads: alone").click()
    visit.page.wait_for_selector("#panel-3-controls", state="visible")
    visit.page.wait_for_selector("#panel-3-opt-threshold")
    visit.set("#panel-1-opt-k", 2)
    visit.set("#seed", 11)
    visit.page.fill("#prompt textarea", NASTY)
    visit.page.click("#presets > button")  # choosing one has closed the list
    visit.page.click("#copy-link")
    visit.page.wait_for_selector("#copy-link:has-text('Copied')")
    link = visit.page.evaluate("navigator.clipboard.readText()")
    query = parse_qs(urlsplit(link).query)
    assert (
        query["prompt"] == [NASTY]
        and query["seed"] == ["11"]
        and query["panel"][0] == "ar"
        and query["panel"][1] == "mtp-heads:k=2"
    )
    other = RacePage(chromium, link)
    other.page.wait_for_selector("#panel-3-controls", state="visible")
    assert (
        other.page.input_value("#prompt textarea") == NASTY
        and other.page.input_value("#seed input") == "11"
        and other.page.input_value("#panels input") == "4"
    )
    other.set("#max-tokens", 4)
    other.page.click("#run")
    assert other.wait_until(*OVER) == "done"
    assert other.page.locator(".spec").all_inner_texts() == query["panel"]
    other.close()


def test_a_link_that_cannot_be_opened_says_why(chromium: object, app_url: str) -> None:
    visit = RacePage(chromium, f"{app_url}?panel=ar&panel=warp:speed=9", ready="error")
    assert "warp" in visit.sentence and "link" in visit.sentence
    visit.close()
    mistyped = RacePage(chromium, f"{app_url}?pannel=ar&seed=3&panel=ar&panel=clp&panel=dmtd")
    note = mistyped.page.get_by_text("what nothing here reads: pannel.")
    note.wait_for()
    # the rest of the link counts
    assert mistyped.page.input_value("#seed input") == "3" and mistyped.status == "idle"
    mistyped.close()


def test_new_chat_asks_before_it_clears(visit: RacePage) -> None:
    short_race(visit)
    questions: list[str] = []
    visit.page.once("dialog", lambda dialog: (questions.append(dialog.message), dialog.dismiss()))
    visit.page.click("#new-chat")
    visit.page.wait_for_timeout(500)
    assert "Clear" in questions[0] and visit.page.locator("[data-origin]").count() > 0
    visit.page.once("dialog", lambda dialog: dialog.accept())
    visit.page.click("#new-chat")
    visit.wait_until("idle")
    assert visit.page.locator("[data-origin]").count() == 0
