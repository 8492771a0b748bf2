"""A model of the hub into the local cache, by a process of its own.

What is wanted no longer ends at once, whatever the network does.

    python -m dmtd_demo.models.download HUB-ID

prints JSON lines: {"done": bytes, "total": bytes} …, then {"folder": path} or
{"error": sentence}.
"""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from huggingface_hub.utils import tqdm

from dmtd_demo.errors import UserError
from dmtd_demo.models import hub
from dmtd_demo.progress import Progress

PARENT = Path(__file__).resolve().parents[2]  # of the package
ASK_SECONDS = 0.2  # how often it is asked whether the download is still wanted


def download(hub_id: str, progress: Progress) -> Path:
    """Download a model; returns its folder in the cache, or its GGUF file.

    A download that was cancelled goes on from where it was when it is asked for again. Raises
    UserError, and Cancelled where `progress` does.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "dmtd_demo.models.download", hub_id],
        cwd=PARENT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
    )
    lines: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_read, args=(process, lines), daemon=True).start()
    done, total = 0, 0
    try:
        while True:
            try:
                line = lines.get(timeout=ASK_SECONDS)
            except queue.Empty:
                progress("Downloading", done, total)
                continue
            if not line:
                raise UserError(
                    f"{hub_id} could not be downloaded: the process that did it ended with code "
                    f"{process.wait()}; try again"
                )
            told = json.loads(line)
            if "error" in told:
                raise UserError(told["error"])
            if "folder" in told:
                return Path(told["folder"])
            done, total = told["done"], told["total"]
            progress("Downloading", done, total)
    finally:
        process.kill()
        process.wait()


def _read(process: subprocess.Popen[str], lines: queue.Queue[str]) -> None:
    for line in process.stdout or ():
        lines.put(line)
    lines.put("")


class Bar(tqdm):
    """A progress bar that draws nothing: it prints how many bytes have come, of how many."""

    lock = threading.Lock()

    def __init__(self, *args: Any, **settings: Any) -> None:
        self.counts_bytes = settings.get("unit") == "B" and "transfer" not in str(
            settings.get("name", "")
        )
        super().__init__(*args, **settings)

    def display(self, *args: Any, **settings: Any) -> None:
        pass

    def update(self, n: float | None = 1) -> None:
        with self.lock:
            self.n += n or 0
        self.refresh()

    def refresh(self, *args: Any, **settings: Any) -> None:
        """Print also where a file has begun, whose size is in the total from now on."""
        if self.counts_bytes:
            with self.lock:
                _say(done=int(self.n), total=int(self.total or 0))


def _say(**told: Any) -> None:
    print(json.dumps(told), flush=True)


def main(hub_id: str) -> None:
    try:
        parts = hub.split(hub_id)
        if parts and parts[1]:
            _say(folder=str(hub.fetch_file(hub_id, Bar)))
        else:
            _say(folder=str(hub.fetch(hub_id, hub.MODEL_FILES, Bar)))
    except UserError as error:
        _say(error=str(error))


if __name__ == "__main__":
    main(sys.argv[1])
