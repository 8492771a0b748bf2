"""Races in a row whose connections are dropped at random: what is lost, and what memory it costs.

    python benchmarks/soak.py --races 500

Starts the page, with `classroom`, and visits it as its script does (tests/app_process.py): a race
each, half of them left in the middle. After a drop a visitor comes anew and hands over what came,
as the tab's storage has it; the reply then has to go on from that. Prints one JSON object: the
races, the drops, the losses, and the server's memory after a tenth of the races and at the end.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from app_process import Visitor, running_app  # noqa: E402 - of the tests

PROMPTS = ("What is 47 + 38?", "What is DMTD?", "Hello", "Sort these words: pear apple fig")


class Record:
    """The lines of a race as they come, put together as the page's script does."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []
        self.text = ""

    def take(self, message: dict[str, Any]) -> None:
        """Take a message of the queue: the string as a whole at first, then what is new of it."""
        data = (message.get("output") or {}).get("data")
        if not data:
            return
        if isinstance(data[0], str):
            self.text = data[0]
        else:
            for action, path, value in data[0]:
                if path:
                    raise ValueError(f"the string has no parts; got {path}")
                self.text = value if action == "replace" else self.text + value
        head, *lines = self.text.split("\n")
        first = json.loads(head)["first"]
        if first > len(self.lines):
            raise ValueError(f"lines {len(self.lines)} to {first} never came")
        self.lines[first:] = [json.loads(line) for line in lines[:-1]]

    def answers(self) -> list[str]:
        """Return each panel's text so far."""
        texts = [""] * len(self.turns)
        for line in self.lines:
            if line["type"] == "step":
                texts[line["panel"]] += "".join(token["text"] for token in line["tokens"])
        return texts

    @property
    def turns(self) -> list[list[dict[str, str]]]:
        """The conversations that were asked."""
        return next((line["turns"] for line in self.lines if line["type"] == "page"), [])


def listen(visitor: Visitor, record: Record, until: float) -> bool:
    """Follow a race; leave it after `until` seconds. Return whether it came to its end."""
    ends = time.monotonic() + until
    for message in visitor.messages():
        record.take(message)
        if time.monotonic() > ends:
            return False
    return True


def main() -> None:
    """Run the races and print what came of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--races", type=int, default=500, help="how many (default: 500)")
    parser.add_argument("--tokens", type=int, default=24, help="of a panel (default: 24)")
    parser.add_argument(
        "--seconds", type=float, default=1e9, help="no further race after so many (default: none)"
    )
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    found: dict[str, Any] = {"races": 0, "dropped": 0, "brought_back": 0, "lost": []}
    with tempfile.TemporaryDirectory() as folder, running_app(Path(folder)) as (url, process):
        server = psutil.Process(process.pid)
        warm, ends = max(1, options.races // 10), time.monotonic() + options.seconds
        for number in range(options.races):
            visitor, record = Visitor(url), Record()
            visitor.ask(rng.choice(PROMPTS), max_tokens=options.tokens)
            drop = rng.random() < 0.5
            whole = listen(visitor, record, rng.uniform(0, 0.3) if drop else 1e9)
            visitor.http.close()
            found["races"] += 1
            found["dropped"] += not whole
            if whole and record.lines[-1].get("status") != "done":
                found["lost"].append({"race": number, "last": record.lines[-1]})
            if not whole and any(record.answers()):
                if (said := brought_back(url, record)) is not None:
                    found["lost"].append({"race": number, "said": said})
                found["brought_back"] += 1
            if number + 1 == warm:
                found["mib_then"] = round(server.memory_info().rss / 2**20, 1)
            if time.monotonic() > ends and number >= warm:
                break
        log = (Path(folder) / "app.log").read_text(encoding="utf-8", errors="replace")
        found["tracebacks"] = log.count("Traceback")
        found["mib_at_the_end"] = round(server.memory_info().rss / 2**20, 1)
    found["growth"] = f"{found['mib_at_the_end'] / found['mib_then'] - 1:+.2%}"
    print(json.dumps({**found, "lost": found["lost"][:5], "losses": len(found["lost"])}))


def brought_back(url: str, record: Record) -> str | None:
    """Reply to what came of a race that was dropped; return what was lost of it, None: nothing."""
    visitor = Visitor(url)
    try:
        answers = record.answers()
        kept = json.dumps([None, {"turns": record.turns, "answers": answers}])
        keys = [None] * (len(visitor.functions["open_link"]["inputs"]) - 1)
        visitor.call("open_link", [kept, *keys])
        prompt = visitor.values[visitor.places["prompt"]]
        visitor.values[visitor.places["prompt"]] = "And now?"
        values = list(visitor.values)
        values[visitor.places["max-tokens"]] = 2
        visitor._send(visitor.race, [json.dumps(["again", "reply", values]), None])
        lines = visitor.lines()
        visitor.values[visitor.places["prompt"]] = prompt
        page = next((line for line in lines if line["type"] == "page"), None)
        if page is None:
            return str(lines[-1])
        there = [messages[-2]["content"] for messages in page["turns"] if len(messages) > 2]
        return None if there == [text for text in answers if text.strip()] else str(there)
    except httpx.HTTPError as error:
        return str(error)
    finally:
        visitor.http.close()


if __name__ == "__main__":
    main()
