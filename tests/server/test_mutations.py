"""What this app reads of others, mutated at random: files of races, of tasks and of training, and requests.

One sentence each: no traceback, no hang, no memory that stays. A fiftieth of the inputs here; all
20,000 by

DMTD_STRESS=full python -m pytest -s tests/server/test_mutations.py tests/browser/test_mutated_races.py
"""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

from mutations import FULL, mutated

from dmtd_demo import Comparison
from dmtd_demo.errors import UserError
from dmtd_demo.measure.evaluation import read_tasks
from dmtd_demo.models.loading import load
from dmtd_demo.training import corpus

FILES = 12_000 if FULL else 300
SECONDS = 10


def lines_of_a_race() -> list[dict[str, Any]]:
    from dmtd_demo import compare

    model = load("classroom", threads=1)
    return compare("What is 1 + 1?", ["ar", "clp"], model, max_new_tokens=8).records


def test_files_that_are_none(tmp_path: Path, model_folder: Path, monkeypatch: Any) -> None:
    """A race, tasks and conversations, mutated in their bytes and in their values."""
    model = load(str(model_folder))
    # not answered here: what cannot be read is to be found, and an answer takes a second
    monkeypatch.setattr(corpus, "answered", lambda *_: [])
    part = [{"type": "text", "text": "Hi"}]
    talk = [{"role": "user", "content": part}, {"role": "assistant", "content": "Hello"}]
    sources: list[tuple[Any, list[Any]]] = [
        (lambda path: Comparison.open(path).replay(), lines_of_a_race()),
        (lambda path: read_tasks(path, 9), [{"messages": talk[:1], "answer": "Hello"}] * 3),
        (
            lambda path: corpus.read_rows(model, path, tmp_path / "own"),
            [{"messages": talk}, {"conversations": talk}, {"text": "Once upon"}],
        ),
    ]
    rng, refused, slowest = random.Random(26), 0, 0.0
    for number in range(FILES):
        read, lines = sources[number % len(sources)]
        path = tmp_path / "mutated.jsonl"
        path.write_bytes(mutated(lines, rng))
        began = time.monotonic()
        try:
            read(str(path))
        except UserError as error:
            refused += 1
            assert len(str(error)) < 2000, error
        slowest = max(slowest, time.monotonic() - began)
        assert slowest < SECONDS, path.read_bytes()[:300]
    print(f"\n{FILES} files: {refused} refused, the slowest took {slowest:.2f} s")
    assert FILES / 10 < refused < FILES
