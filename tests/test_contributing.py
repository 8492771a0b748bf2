"""The worked example of CONTRIBUTING.md: a decoder in one file, taken from the text as it stands
there.
"""

from __future__ import annotations

import math
import re
import statistics
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import naive
from dmtd_demo.backbone.split import Split
from dmtd_demo.decoders import DECODERS, Token
from dmtd_demo.models.loading import load
from dmtd_demo.race.panels import parse_panel
from dmtd_demo.race.race import race
from dmtd_demo.race.settings import RaceSettings
from dmtd_demo.sampling import Sampler
from tiny import tiny_model

TEXT = (Path(__file__).resolve().parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")


@pytest.fixture
def confident(monkeypatch: pytest.MonkeyPatch) -> type:
    [source] = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    module = ModuleType("dmtd_demo.decoders.confident")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # where dataclasses look for it
    exec(compile(source, "CONTRIBUTING.md", "exec"), module.__dict__)
    monkeypatch.setitem(DECODERS, "confident", module.Confident)
    return module.Confident


def test_the_example_is_its_formula(confident: type) -> None:
    model = tiny_model(split=Split(4, 1, 1))
    prompt = [5, 9, 2, 40]

    def written(least: float) -> list[Token]:
        steps = confident(confident.Options(least=least, longest=3)).steps(model, prompt, Sampler())
        return [token for _ in range(40) for token in next(steps).tokens]

    # of these weights: half of their tokens are less likely
    least = math.exp(statistics.median(token.logprob for token in written(1.0)))
    with torch.inference_mode():
        tokens = written(least)
        origins = [token.origin for token in tokens]
        # what a position read, the next token was made by
        heads = [True] * len(prompt) + [origin == "full" for origin in origins[1:]]
        text = [*prompt, *(token.id for token in tokens[:-1])]
        logits = model.backbone.module.lm_head(
            naive.hidden(model.backbone.module, text, heads, 1, 1, "replace")
        )[len(prompt) - 1 :]
    assert [token.id for token in tokens] == logits.argmax(-1).tolist()
    chances = logits.log_softmax(-1).max(-1).values.exp()
    length = 0
    # a cycle begins after an unlikely token, or where it is as long as it may be
    for index in range(1, len(tokens)):
        begins = length in (0, 3) or chances[index - 1] < least
        assert (origins[index] == "full") == begins
        length = 1 if begins else length + 1
    assert {"full", "late"} == set(origins) and len(
        {origins[index : index + 3].count("late") for index in range(37)}
    ) > 1


def test_the_example_races(confident: type) -> None:
    panels = [parse_panel("ar"), parse_panel("confident:least=0.8,longest=4")]
    records = [
        record
        for batch in race(
            load("classroom"),
            panels,
            [[{"role": "user", "content": "What is a token?"}]] * 2,
            RaceSettings(max_new_tokens=40),
        )
        for record in batch
    ]
    summary = next(
        record for record in records if record["type"] == "summary" and record["panel"] == 1
    )
    assert (
        summary["origins"]["late"]
        and max(map(int, summary["spans"])) <= 4
        and summary["tokens_per_full_pass"] > 1.5
    )
