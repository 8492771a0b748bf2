"""The app with a decoder that writes known tokens by the clock: what page_cost.py measures."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from dmtd_demo.decoders import DECODERS, Decoder, Options, Pass, Step, Steps, Token
from dmtd_demo.decoders.base import option
from dmtd_demo.models.loading import load
from dmtd_demo.models.model import Model
from dmtd_demo.models.residents import Residents
from dmtd_demo.race import local
from dmtd_demo.sampling import Sampler

ROOT = Path(__file__).resolve().parents[1]

# what the steps of a cycle emit, by the panel's option
CYCLES = {
    "full": [["full"]],
    "late": [["full"], ["late"], ["late"], ["late"]],
    "mtp": [["full", "mtp", "mtp", "mtp"]],
    "mixed": [["full"], ["late"], ["late", "mtp", "mtp"]],
}


class Pace:
    """One clock for all panels: token n of the race is ready n / rate seconds after its start."""

    def __init__(self) -> None:
        self.rate = 0.0
        # gets the times of each race, when its last panel has ended
        self.report: Connection | None = None
        self.running = self.made = 0
        self.began = self.ended = 0.0

    def start(self) -> None:
        if not self.running:
            self.began, self.made = time.time(), 0
        self.running += 1

    def wait(self, tokens: int) -> None:
        self.made += tokens
        time.sleep(max(0.0, self.began + self.made / self.rate - time.time()))
        self.ended = time.time()

    def stop(self) -> None:
        self.running -= 1
        if not self.running and self.report:
            self.report.send((self.began, self.ended))


PACE = Pace()


@dataclass(frozen=True)
class Makes(Options):
    makes: str = option("full", str, "makes", "the origins of its tokens", choices=tuple(CYCLES))


class Scripted(Decoder[Makes]):
    """Writes the README again and again, five alternatives to each token, by the clock."""

    name = "scripted"
    label = "Scripted"
    Options = Makes

    def steps(self, model: Model, prompt_ids: Sequence[int], sampler: Sampler) -> Steps:
        ids = model.tokenizer(
            (ROOT / "README.md").read_text(encoding="utf-8"), add_special_tokens=False
        ).input_ids
        passes = {
            "full": Pass("full", ((0, model.layers, 1),)),
            "late": Pass("late", ((model.layers * 3 // 4, model.layers, 1),)),
        }
        tokens = self._tokens(ids, sampler.top)
        # a race of the page asks for alternatives, the warm-up before it does not
        warming = sampler.top == 0
        if not warming:
            PACE.start()
        try:
            self._wait(1, warming)
            yield Step(
                (next(tokens)("full"),), (Pass("prefill", ((0, model.layers, len(prompt_ids)),)),)
            )
            while True:
                for origins in CYCLES[self.options.makes]:
                    made = tuple(next(tokens)(origin) for origin in origins)
                    self._wait(len(made), warming)
                    yield Step(made, (passes[origins[0]],))
        finally:
            if not warming:
                PACE.stop()

    def _wait(self, tokens: int, warming: bool) -> None:
        if not warming:
            PACE.wait(tokens)

    def _tokens(self, ids: Sequence[int], top: int) -> Iterator[Any]:
        chance = random.Random(0)
        for index in count():
            p = chance.uniform(0.5, 1)
            others = [
                (ids[(index + rank) % len(ids)], (1 - p) * 0.5**rank) for rank in range(1, top)
            ]
            own = ids[index % len(ids)]
            yield lambda origin, own=own, p=p, others=others: Token(
                own, origin, math.log(p), ((own, p), *others)[:top]
            )


def serve_page(port: int, rate: float, report: Connection) -> None:
    """The app with the scripted decoder.

    Sends one (began, ended) per race, and the seconds of each panel's audit.
    """
    from dmtd_demo.ui.page import build
    from dmtd_demo.ui.serve import Place, serve

    def timed(*args: Any) -> list[Any]:
        started = time.time()
        agrees = audit(*args)
        report.send(time.time() - started)
        return agrees

    audit, local.audit_ids = local.audit_ids, timed
    DECODERS[Scripted.name] = Scripted
    PACE.rate, PACE.report = rate, report
    serve(build(Residents(load("classroom"))), Place(port=port, browser=False))
