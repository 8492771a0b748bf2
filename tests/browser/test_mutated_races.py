"""Files of races, mutated at random, as the page's own reader takes them: one sentence, or a race that can be played."""

from __future__ import annotations

import json
import random
import time
from typing import Any

from mutations import FULL, mutated
from test_scripts import HEADER, STEPS, answer, blank  # noqa: F401 - a fixture

RACES = 4_000 if FULL else 200
AT_ONCE = 50
SUMMARIES = [
    {"type": "summary", "panel": panel, "stop": "eos", "tokens": 3, "full_passes": 2}
    for panel in (0, 1)
]
AUDITS = [{"type": "audit", "panel": 0, "agrees": [True, False, True]}]
READ = """return texts.map((bytes) => {
  let records;
  try {
    records = parseRecord(decoded(new Uint8Array(bytes).buffer));
  } catch (error) {
    return error.constructor === Error && error.message ? "" : `refused by ${error.stack}`;
  }
  try {
    const tape = new Tape();
    for (const record of records) tape.add(record);
    tape.add({ type: "page", turns: tape.header.conversations ?? [] });
    parseRecord(recordLines(tape));
    recordTable(tape);
    tape.counts(tape.moments.length);
    return "read";
  } catch (error) {
    return `played by ${error.stack}`;
  }
});"""


def test_races_that_are_none(blank: Any) -> None:  # noqa: F811
    rng, slowest = random.Random(26), 0.0
    found: list[str] = []
    for _ in range(RACES // AT_ONCE):
        texts = [list(mutated([HEADER, *STEPS, *AUDITS, *SUMMARIES], rng)) for _ in range(AT_ONCE)]
        began = time.monotonic()
        found += answer(blank, f"const texts = {json.dumps(texts)};\n{READ}")
        slowest = max(slowest, time.monotonic() - began)
    wrong = [said for said in found if said not in ("", "read")]
    print(f"\n{RACES} races: {found.count('')} refused, {AT_ONCE} took {slowest:.2f} s at most")
    assert not wrong, wrong[:3]
    assert 0 < found.count("read") < len(found) and slowest < 10
