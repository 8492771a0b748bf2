"""The page as the tests use it: the hooks of the design, and what a visitor does with them."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

HELD_MS = 120  # a press of a mouse's button
END_SECONDS = 90  # a race of a hundred tokens, on the slowest machine that runs these tests
OVER = ("done", "stopped", "error")
LONG = "What is DMTD?"  # `classroom` answers it in about a hundred words
COUNT_RACES = """window.begun = 0;
new MutationObserver(records => { window.begun += records.some(record => record.target.dataset.status === 'running'); })
  .observe(document, { subtree: true, attributes: true, attributeFilter: ['data-status'] });"""
# labels and choices of panels whose text does not fit its box
CUT = """[...document.querySelectorAll("#panel-row input, #panel-row [data-testid='block-info'], .spec, .how")]
  .filter(box => box.offsetWidth > 1 && box.type !== "range" && box.scrollWidth > box.clientWidth + 1)
  .map(box => box.value || box.textContent)"""


def _at_speed(url: str, speed: str) -> str:
    return f"{url}{'&' if '?' in url else '?'}speed={speed}" if speed else url


def _kept_context(browser: Any, url: str, locale: str) -> Any:
    """Where pages in this language open: one tab stays open there, so that what Gradio's page loads
    and compiles is there for the next one. It halves the processor time of opening a page.
    """
    for context in browser.contexts:
        if context.pages and context.pages[0].url.endswith(f"manifest.json?{locale}"):
            return context
    context = browser.new_context(locale=locale)
    context.new_page().goto(f"{urljoin(url, '/manifest.json')}?{locale}")
    return context


class RacePage:
    def __init__(
        self,
        browser: Any,
        url: str,
        width: int = 1280,
        height: int = 720,
        scheme: str = "light",
        ready: str = "idle",
        locale: str = "en-US",
        charts: bool = False,
        speed: str = "1",
    ) -> None:
        """speed: what races are played at; "1" is the clock's own speed, "" leaves it to the page."""
        size = {"width": width, "height": height}
        if url.startswith("http"):
            self.kept = _kept_context(browser, url, locale)
            self.page = self.kept.new_page()
            self.page.set_viewport_size(size)
            self.page.emulate_media(color_scheme=scheme)
        else:  # a file: on no other page's site
            self.kept = None
            self.page = browser.new_page(viewport=size, color_scheme=scheme, locale=locale)
        self.url = url
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on(
            "console",
            lambda message: (
                self.complaints.append(message.text) if message.type == "error" else None
            ),
        )
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.add_init_script(COUNT_RACES)
        self.page.goto(_at_speed(url, speed))
        self.page.wait_for_selector(f"[data-status='{ready}']", timeout=1000 * END_SECONDS)
        if charts:
            self.wait_for_charts()

    def wait_for_charts(self) -> None:
        """They come when the page has come to rest, two seconds after everything else; only tests
        that look at them wait for them.
        """
        self.page.wait_for_selector(
            "#chart-span .main-svg", state="attached", timeout=1000 * END_SECONDS
        )

    def close(self) -> None:
        """The visitor leaves.

        A page that complained, or asked anybody but the app for anything, has failed.
        """
        if self.kept:  # the next page is that of another visitor
            with suppress(Exception):  # the page is on no site where it could keep anything
                self.page.evaluate("localStorage.clear()")
            self.kept.clear_permissions()
            self.kept.clear_cookies()
        self.page.close()
        own = urlsplit(self.url).netloc
        outside = [
            url
            for url in self.requests
            if urlsplit(url).scheme in ("http", "https", "ws", "wss")
            and urlsplit(url).netloc != own
        ]
        assert not self.complaints, self.complaints
        assert not outside, outside

    def ask(self, prompt: str) -> None:
        self.page.fill("#prompt textarea", prompt)
        self.press("#run")

    def reply(self, text: str) -> None:
        """Goes on with the chat."""
        self.page.fill("#reply-text textarea", text)
        self.press("#reply")

    def press(self, button: str) -> None:
        """One that begins a race, until it has begun: before, the status is still that of the race
        before, and on a fast machine it may be over at once. A hand holds a button down for a
        while, in which it must not move away.
        """
        begun = self.page.evaluate("window.begun")
        self.page.click(button, delay=HELD_MS)
        self.page.wait_for_function("begun => window.begun > begun", arg=begun)

    def race(self, prompt: str = LONG, tokens: int = 24) -> None:
        """A whole race with so many new tokens at most."""
        self.set("#max-tokens", tokens)
        self.ask(prompt)
        assert self.wait_until(*OVER) == "done"

    def set(self, control: str, value: object) -> None:
        self.page.fill(f"{control} input[type='number']", str(value))

    def write_into(self, popover: str, box: str, text: object) -> None:
        """Gradio builds what a popover holds when it is first opened, and sets its own value a
        tenth of a second later, over a text that is there already: written until it stays.
        """
        if not self.page.locator(box).is_visible():
            self.page.click(f"{popover} > button")
        self.page.wait_for_selector(box)
        for _ in range(20):
            self.page.fill(box, str(text))
            self.page.wait_for_timeout(300)
            if self.page.input_value(box) == str(text):
                return
        raise AssertionError(f"{box} does not keep {text}")

    @property
    def status(self) -> str:
        marked = self.page.locator("[data-status]")
        assert marked.count() == 1
        return marked.get_attribute("data-status")

    @property
    def sentence(self) -> str:
        return self.page.locator("[data-status] [role='status']").inner_text()

    def wait_until(self, *states: str, seconds: float = END_SECONDS) -> str:
        self.page.wait_for_selector(
            ", ".join(f"[data-status='{state}']" for state in states), timeout=1000 * seconds
        )
        return self.status

    def wait_for_tokens(self, panel: int = 0) -> None:
        self.page.wait_for_selector(
            f"[data-panel='{panel}'] [data-origin]", timeout=1000 * END_SECONDS
        )

    def origins(self, panel: int) -> dict[str, int]:
        counts: dict[str, int] = {}
        for origin in self.page.locator(f"[data-panel='{panel}'] [data-origin]").evaluate_all(
            "nodes => nodes.map(node => node.dataset.origin)"
        ):
            counts[origin] = counts.get(origin, 0) + 1
        return counts

    def chart(self, name: str) -> list[dict[str, list[float]]]:
        self.wait_for_charts()
        return self.page.evaluate(
            "id => document.getElementById(id).data.map(trace => ({x: [...trace.x], y: "
            "[...trace.y]}))",
            name,
        )

    def table(self) -> list[dict[str, str]]:
        headings = self.page.locator(".summary thead th").all_inner_texts()
        rows = self.page.locator(".summary tbody tr").evaluate_all(
            "rows => rows.map(row => [...row.children].map(cell => cell.innerText))"
        )
        return [dict(zip(headings, row)) for row in rows]


def save(visit: RacePage, name: str, folder: Path) -> Path:
    """What the menu Keep saves under this name, as a file in the folder."""
    visit.page.click(".keep summary")
    with visit.page.expect_download() as download:
        visit.page.get_by_role("button", name=name).click()
    path = folder / download.value.suggested_filename
    download.value.save_as(path)
    return path
