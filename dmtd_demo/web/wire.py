"""The wire form of a race's record: one string that grows.

So each event of Gradio's carries no more than the string's new end.
The string is JSON lines for assets/race/race.js. Its first line names the run and says which line
of the record comes next; the record is a "page" line, the race's own records as they are, and an
"over" line. Gradio's page compares the whole string at every event (2,000 tokens in three panels:
19 s for 10 s of work), so what the page says that it has is dropped from it now and then. It has to
say so: where it lags, it sees only the last of the events that came meanwhile. When the race is
over, its whole record comes once more, for readers without that script.
"""

from __future__ import annotations

import json

# characters that the page has: from so many on they are dropped, and what is left is sent again
READ = 60_000


class WireRecord:
    """The lines of one race so far, and the string that shows them to the page."""

    def __init__(self, run: str) -> None:
        self.run = run
        self.lines: list[str] = []
        self.first = 0  # of the lines, the first that the string still has
        self.tail = ""  # the lines from there on

    def add(self, line: str) -> None:
        """Append one JSON line, without its line break."""
        self.lines.append(line)
        self.tail += line + "\n"

    def window(self, taken: int) -> str:
        """Return the string for a page that has the first `taken` lines of the record."""
        read = sum(len(line) + 1 for line in self.lines[self.first : taken])
        if read > READ:
            self.first, self.tail = min(taken, len(self.lines)), self.tail[read:]
        return self._from(self.first) + self.tail

    def whole(self) -> str:
        """Return the string with every line of the record."""
        return self._from(0) + "".join(line + "\n" for line in self.lines)

    def _from(self, first: int) -> str:
        return json.dumps({"run": self.run, "first": first}) + "\n"


def refusal(run: str, message: str, status: str = "error") -> str:
    """Return the string of a race that does not begin, and why."""
    record = WireRecord(run)
    record.add(
        json.dumps({"type": "refused", "status": status, "message": message}, ensure_ascii=False)
    )
    return record.whole()


def noted(shown: str, key: str, values: dict[str, str]) -> str:
    """Return the string of a page without a race, with a sentence below the panels.

    shown: what the page is told else, as a string of this form, or nothing.
    """
    record = WireRecord("")
    for line in shown.split("\n")[1:-1]:
        record.add(line)
    record.add(json.dumps({"type": "noted", "text": key, "values": values}, ensure_ascii=False))
    return record.whole()


def waiting(ahead: int) -> str:
    """Return the string of a race that comes after `ahead` others."""
    record = WireRecord("")
    record.add(json.dumps({"type": "waiting", "ahead": ahead}))
    return record.whole()


def layout(panels: int, clear: bool = False) -> str:
    """Return the string of a page without a race, with this many panels."""
    record = WireRecord("")
    record.add(json.dumps({"type": "layout", "panels": panels, "clear": clear}))
    return record.whole()
