"""What the page shows to its owner, and what to whoever comes by a front."""

from __future__ import annotations

import json

from playwright.sync_api import Browser


def offered(chromium: Browser, url: str, headers: dict[str, str]) -> tuple[bool, bool]:
    """Whether a visitor is the owner, and whether any other model is offered. The training is seen
    by the owner, and by nobody else."""
    page = chromium.new_page(extra_http_headers=headers)
    try:
        page.goto(url)
        page.wait_for_function("window.dmtdRace")
        owner = json.loads(page.evaluate("fetch('me').then(answer => answer.text())"))["owner"]
        page.wait_for_selector("#train", state="visible" if owner else "hidden")
        page.click("#models button")
        page.wait_for_selector("#model-choice label >> nth=0")
        return owner, "hub id" in page.locator("#model-choice").inner_text()
    finally:
        page.close()


def test_a_stranger_is_not_offered_what_only_the_owner_may(chromium: Browser, app_url: str) -> None:
    assert offered(chromium, app_url, {}) == (True, True)
    front = {"X-Forwarded-For": "203.0.113.9"}
    assert offered(chromium, app_url, front) == (False, False)
