"""What the page costs while tokens come fast: python benchmarks/page_cost.py [--panels 4 --tokens
4000 --rate 800 --json]

A scripted decoder writes known tokens by the clock, so that only the page's own work is measured:
the race, the stream, the drawing. The app runs in a process of its own, headless Chromium opens it
and runs one race; both may use the cores that this script may (taskset -c 0,1 …).

Generation is what the server saw: from the start of the first step to the end of the last, all
panels. Times on the page are counted from that same start. The audit (one pass of the real model
per panel, after the race) is not part of it: "done" comes after the audit, and its time is taken
off. A page that lags draws during the audit: it is finished when both the last token is drawn and
that is over.
"""

from __future__ import annotations

import argparse
import base64
import json
import multiprocessing
import os
import shutil
import socket
import sys
import time
import urllib.request
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

if TYPE_CHECKING:
    import psutil

sys.path.extend(
    str(Path(__file__).resolve().parents[1] / folder) for folder in ("tests/browser", "tests", "")
)

MOST_TIME = 1.05  # of the generation time, until the page is finished
MOST_BUSY = 0.5  # share of the generation time that the page's main thread works
# bytes per token in the last quarter, against the first: each time the stream drops its older lines
# (web/wire.py), the rest is sent again, once or twice a quarter
MOST_GROWTH = 1.25
START_SECONDS = 300

# Tells the console when the last token is drawn, and when the race is over; both after the page has
# painted them.
WATCH = """total => {
  const told = (name) => requestAnimationFrame(() => setTimeout(() => console.log("cost", name, performance.timeOrigin + performance.now())));
  let drawn = 0;
  const texts = new MutationObserver((changes) => {
    if (!drawn) told("first");
    for (const change of changes) drawn += change.addedNodes.length;
    if (drawn >= total) { texts.disconnect(); told("drawn"); }
  });
  for (const text of document.querySelectorAll("[data-panel]")) texts.observe(text, { childList: true });
  const race = document.querySelector("[data-status]");
  new MutationObserver(() => { if (race.dataset.status !== "running") told(race.dataset.status); }).observe(race, { attributeFilter: ["data-status"] });
}"""


class Traffic:
    """What the stream of events brought: for each, the tokens of the record that were new in it,
    and its bytes.
    """

    def __init__(self, session: Any) -> None:
        self.session = session  # a CDP session of the page
        self.received = b""
        self.value = ""
        self.lines = 0
        self.events: list[tuple[int, int]] = []
        self.requests: set[str] = set()
        session.on("Network.responseReceived", self._opened)
        session.on(
            "Network.dataReceived",
            lambda event: self._take(event["requestId"], event.get("data", "")),
        )
        session.send("Network.enable")

    def _opened(self, event: dict[str, Any]) -> None:
        if "/queue/data" in event["response"]["url"]:
            self.requests.add(event["requestId"])
            self._take(
                event["requestId"],
                self.session.send(
                    "Network.streamResourceContent", {"requestId": event["requestId"]}
                )["bufferedData"],
            )

    def _take(self, request: str, data: str) -> None:
        if request in self.requests:
            self.received += base64.b64decode(data)

    def read(self) -> None:
        for line in self.received.decode().split("\n"):
            if line.startswith("data:"):
                self._message(line[5:])

    def _message(self, data: str) -> None:
        message = json.loads(data)
        if message["msg"] not in ("process_generating", "process_completed"):
            return
        found = message["output"]["data"][0]
        for action, path, part in found if isinstance(found, list) else [("replace", [], found)]:
            if path or action not in ("replace", "append"):
                raise ValueError(
                    f"an event needs to replace or lengthen the string; got {action} at {path}"
                )
            self.value = part if action == "replace" else self.value + part
        head, *lines = self.value.splitlines()
        first = json.loads(head)["first"]
        fresh = [json.loads(line) for line in lines[max(self.lines - first, 0) :]]
        self.lines = max(self.lines, first + len(lines))
        self.events.append(
            (
                sum(len(line["tokens"]) for line in fresh if line["type"] == "step"),
                len(data.encode()),
            )
        )

    def per_token(self, start: float, stop: float) -> float:
        """Bytes per token of the events that brought this part of all tokens; those that brought
        none, as the last, are not among them.
        """
        total = sum(tokens for tokens, _ in self.events)
        seen = 0
        part = []
        for tokens, size in self.events:
            if tokens and start * total <= seen < stop * total:
                part.append((tokens, size))
            seen += tokens
        return sum(size for _, size in part) / sum(tokens for tokens, _ in part)


def cpu_seconds(processes: Sequence[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes if process.is_running())


def cores_seconds() -> float:
    """Seconds that the cores which this script may use were busy, with anybody's work."""
    import psutil

    times = psutil.cpu_times(percpu=True)
    return sum(
        sum(times[core]) - times[core].idle - times[core].iowait for core in os.sched_getaffinity(0)
    )


def measure(panels: int, tokens: int, rate: float, profile: Path | None = None) -> dict[str, Any]:
    import psutil
    from scripted_page import serve_page

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ["HF_HUB_OFFLINE"] = "1"
    spawn = multiprocessing.get_context("spawn")
    report, end = spawn.Pipe(duplex=False)
    server = spawn.Process(target=serve_page, args=(port, rate, end), daemon=True)
    server.start()
    try:
        _wait_for(f"http://127.0.0.1:{port}/", server)
        return _measure(
            f"http://127.0.0.1:{port}/",
            psutil.Process(server.pid),
            report,
            panels,
            tokens,
            rate,
            profile,
        )
    finally:
        server.terminate()
        server.join(20)


def _wait_for(url: str, server: Any) -> None:
    for _ in range(START_SECONDS * 2):
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.5)
            if not server.is_alive():
                break
    sys.exit("page_cost: the app did not start")


def _measure(
    url: str,
    server: psutil.Process,
    report: Connection,
    panels: int,
    tokens: int,
    rate: float,
    profile: Path | None,
) -> dict[str, Any]:
    import psutil
    from conftest import ARGUMENTS, BROWSERS
    from playwright.sync_api import sync_playwright
    from scripted_page import CYCLES

    from dmtd_demo.machine import describe

    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        sys.exit(
            f"page_cost: needs an installed Chromium or Chrome; none of {', '.join(BROWSERS)} is "
            "on the PATH"
        )
    each = tokens // panels
    query = urlencode(
        [
            ("prompt", "Write."),
            *(("panel", f"scripted:makes={makes}") for makes in list(CYCLES)[:panels]),
            ("max-tokens", each),
            # every token drawn as it comes
            ("speed", 1),
        ]
    )
    patience = 1000 * (START_SECONDS + 20 * tokens / rate)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        page = browser.new_page(viewport={"width": 1280, "height": 720})
        page.set_default_timeout(patience)
        page.goto(f"{url}?{query}")
        page.wait_for_selector("#chart-span .main-svg", state="attached")
        page.wait_for_function(
            "count => document.querySelectorAll('[data-panel]').length === count && "
            "document.querySelector('#max-tokens input').value === arguments[0]".replace(
                "arguments[0]", f"'{each}'"
            ),
            arg=panels,
        )
        page.wait_for_timeout(1500)  # what the page does as it opens is not measured
        page.evaluate(WATCH, each * panels)
        clocks = {
            domain: page.context.new_cdp_session(page) for domain in ("timeTicks", "threadTicks")
        }
        for domain, session in clocks.items():
            session.send("Performance.enable", {"timeDomain": domain})
        traffic = Traffic(page.context.new_cdp_session(page))
        moments: dict[str, float] = {}
        page.on(
            "console",
            lambda message: (
                moments.update({message.text.split()[1]: float(message.text.split()[2])})
                if message.text.startswith("cost")
                else None
            ),
        )

        def busy() -> dict[str, float]:
            return {
                domain: next(
                    metric["value"]
                    for metric in session.send("Performance.getMetrics")["metrics"]
                    if metric["name"] == "TaskDuration"
                )
                for domain, session in clocks.items()
            }

        def load_now() -> tuple[float, float, float]:
            return (
                cpu_seconds([server]),
                cpu_seconds(
                    [p for p in psutil.Process().children(recursive=True) if p.pid != server.pid]
                ),
                cores_seconds(),
            )

        if profile:
            clocks["timeTicks"].send("Profiler.enable")
            clocks["timeTicks"].send("Profiler.start")
        before, load_before, started = busy(), load_now(), time.time()
        with page.expect_console_message(lambda message: message.text.startswith("cost drawn")):
            page.click("#run")
        after, load_after, took = busy(), load_now(), time.time() - started
        if profile:
            profile.write_text(json.dumps(clocks["timeTicks"].send("Profiler.stop")["profile"]))
        while not {"done", "stopped", "error"} & set(moments):
            page.wait_for_timeout(200)
        page.wait_for_timeout(500)
        browser.close()
    if "done" not in moments:
        sys.exit("page_cost: the race did not come to its end")
    traffic.read()
    began, ended = report.recv()
    audit = sum(report.recv() for _ in range(panels))
    generation = ended - began
    drawn, done = moments["drawn"] / 1000 - began, moments["done"] / 1000 - began
    finished = max(drawn, done - audit)
    own, theirs = load_after[0] - load_before[0], load_after[1] - load_before[1]
    return {
        "panels": panels,
        "tokens": each * panels,
        "rate": rate,
        "generation_seconds": generation,
        "tokens_per_second": each * panels / generation,
        "first_drawn_seconds": moments["first"] / 1000 - began,
        "last_drawn_seconds": drawn,
        "done_seconds": done,
        "audit_seconds": audit,
        "finished_seconds": finished,
        "finished_over_generation": finished / generation,
        "main_thread_busy": (after["timeTicks"] - before["timeTicks"]) / generation,
        "main_thread_cpu": (after["threadTicks"] - before["threadTicks"]) / generation,
        "events": len(traffic.events),
        "bytes": sum(size for _, size in traffic.events),
        "bytes_per_token_by_quarter": [traffic.per_token(q / 4, (q + 1) / 4) for q in range(4)],
        "cores": len(os.sched_getaffinity(0)),
        "server_cpu": own / took,
        "browser_cpu": theirs / took,
        "others_cpu": (load_after[2] - load_before[2] - own - theirs) / took,
        "machine": describe("cpu"),
    }


def table(result: dict[str, Any]) -> str:
    def bar(value: float, most: float, text: str) -> str:
        return f"{text:<16} {'met' if value <= most else 'MISSED'}"

    quarters = result["bytes_per_token_by_quarter"]
    growth = quarters[-1] / quarters[0]
    rows = [
        ("tokens", f"{result['tokens']:,} in {result['panels']} panels", ""),
        (
            "generation, as the server saw it",
            f"{result['generation_seconds']:.2f} s",
            f"{result['tokens_per_second']:.0f} tokens/s of {result['rate']:g} asked for",
        ),
        (
            "first and last token drawn",
            f"{result['first_drawn_seconds']:.2f} s, {result['last_drawn_seconds']:.2f} s",
            "",
        ),
        (
            "finished, the audit taken off",
            f"{result['finished_seconds']:.2f} s",
            bar(
                result["finished_over_generation"],
                MOST_TIME,
                f"{result['finished_over_generation']:.3f} (≤ {MOST_TIME})",
            )
            + (
                f"; done after {result['done_seconds']:.2f} s, of which the audit "
                f"{result['audit_seconds']:.2f} s"
            ),
        ),
        (
            "main thread busy",
            f"{100 * result['main_thread_busy']:.0f} %",
            bar(result["main_thread_busy"], MOST_BUSY, f"(≤ {100 * MOST_BUSY:.0f} %)")
            + f"; in CPU time {100 * result['main_thread_cpu']:.0f} %",
        ),
        (
            "bytes per token, by quarter",
            " ".join(f"{value:.0f}" for value in quarters),
            bar(growth, MOST_GROWTH, f"{growth:.2f} (≤ {MOST_GROWTH})"),
        ),
        (
            "events",
            f"{result['events']}",
            f"{result['bytes'] / 1e6:.2f} MB, the whole record at the end included",
        ),
        (
            "CPU, of a core",
            f"server {result['server_cpu']:.2f}",
            f"browser {result['browser_cpu']:.2f}, others on the same cores "
            f"{result['others_cpu']:.2f}; allowed: {result['cores']} cores",
        ),
    ]
    machine = result["machine"]
    return "\n".join(f"{name:<34} {value:<24} {rest}" for name, value, rest in rows) + (
        f"\n{machine['processor']}, {machine['cores']} cores, {machine['system']}, Python "
        f"{machine['python']}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Measure what the page costs: time, main thread, bytes."
    )
    parser.add_argument("--panels", type=int, default=4, choices=(2, 3, 4))
    parser.add_argument(
        "--tokens", type=int, default=4000, help="in all panels together; default: %(default)s"
    )
    parser.add_argument(
        "--rate",
        type=float,
        default=800,
        help="tokens per second, all panels together; default: %(default)s",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--profile",
        type=Path,
        help=(
            "write what the main thread did here, for Chromium's DevTools (.cpuprofile); it costs "
            "time itself"
        ),
    )
    args = parser.parse_args()
    # after --help, which needs none of it
    from dmtd_demo.destinations import make_folder
    from dmtd_demo.errors import UserError

    try:
        if args.profile:
            make_folder(args.profile.parent)
    except UserError as error:
        parser.error(str(error))
    result = measure(args.panels, args.tokens, args.rate, args.profile)
    print(json.dumps(result) if args.json else table(result))


if __name__ == "__main__":
    main()
