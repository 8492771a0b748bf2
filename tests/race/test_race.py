"""The race: clocks, limits, EOS, stop, audit."""

from __future__ import annotations

import time

import pytest
import torch

import naive
from dmtd_demo.backbone.split import Split
from dmtd_demo.decoders import DECODERS, Decoder, Pass, Step, Token
from dmtd_demo.errors import UserError
from dmtd_demo.race import local
from dmtd_demo.race.panels import PanelSpec, parse_panel
from dmtd_demo.race.race import race_ids
from dmtd_demo.race.settings import RaceSettings
from dmtd_demo.sampling import Sampling
from tiny import VOCABULARY, tiny_model

ALL = [PanelSpec("ar"), PanelSpec("dmtd", {"tau": 3}), PanelSpec("clp", {"threshold": 0.3})]


def model_with(**changes):
    return tiny_model("qwen3", addons=True, split=Split(4, 0, 1), **changes)


def run(model, panels=ALL, prompt=(5, 6, 7), **settings):
    return [
        record
        for batch in race_ids(model, panels, [list(prompt)] * len(panels), RaceSettings(**settings))
        for record in batch
    ]


def of(records, kind, panel=None):
    return [r for r in records if r["type"] == kind and panel in (None, r.get("panel"))]


def emitted(records, panel):
    return [t for r in of(records, "step", panel) for t in r["tokens"]]


def test_the_record_has_the_schema():
    records = run(model_with(), max_new_tokens=20, top=2, sampling=Sampling(seed=4))
    header = records[0]
    assert (
        header["type"] == "header"
        and header["schema"] == 1
        and header["seed"] == 4
        and header["machine"]["device"] == "cpu"
    )
    assert [p["spec"] for p in header["panels"]] == ["ar", "dmtd:tau=3", "clp:threshold=0.3"]
    assert header["panels"][1]["options"] == {"tau": 3, "split": "E0D1"}
    for panel in range(3):
        steps = of(records, "step", panel)
        assert [s["step"] for s in steps] == list(range(len(steps)))
        assert all(a["ms"] <= b["ms"] for a, b in zip(steps, steps[1:]))
        (summary,) = of(records, "summary", panel)
        tokens = emitted(records, panel)
        assert summary["tokens"] == len(tokens) == 20 and summary["stop"] == "length"
        assert (
            tokens[0]["span"] == 0
            and tokens[1]["span"] == 1
            and all(len(t["top"]) == 2 for t in tokens)
        )
        assert sum(int(n) * c for n, c in summary["spans"].items()) == 19
        (audit,) = of(records, "audit", panel)
        assert len(audit["agrees"]) == 20
    assert of(records, "summary", 0)[0]["agreement"] == 1.0
    (verified,) = run(model_with(), [PanelSpec("mtp-verified")], max_new_tokens=2)[0]["panels"]
    assert verified["lossless"] and verified["alike"] and "lossless" not in header["panels"][0]


@pytest.mark.parametrize("limit", range(1, 9))
def test_what_a_span_emits_over_the_limit_is_dropped(limit):
    records = run(model_with(), max_new_tokens=limit)
    assert all(len(emitted(records, p)) == limit for p in range(3))


def test_eos_inside_a_span_ends_the_text_there():
    plain = run(model_with(), [PanelSpec("clp", {"threshold": 0.0})], max_new_tokens=21)
    ids = [t["id"] for t in emitted(plain, 0)]
    # inside a span of five
    position = next(i for i in range(2, 21) if ids[i] not in ids[:i] and (i - 1) % 5 in (1, 2, 3))
    records = run(
        model_with(eos=frozenset([ids[position]])),
        [PanelSpec("clp", {"threshold": 0.0})],
        max_new_tokens=21,
    )
    tokens = emitted(records, 0)
    assert [t["id"] for t in tokens] == ids[: position + 1]
    assert tokens[-1]["text"] == "" and of(records, "summary")[0]["stop"] == "eos"
    on = run(
        model_with(eos=frozenset([ids[position]])),
        [PanelSpec("clp", {"threshold": 0.0})],
        max_new_tokens=21,
        ignore_eos=True,
    )
    assert [t["id"] for t in emitted(on, 0)] == ids


@pytest.mark.parametrize("head_input", ["sum", "replace"])
def test_the_audit_is_ars_argmax_after_each_prefix(head_input):
    model = tiny_model("qwen2", addons=True, split=Split(4, 1, 1, head_input))
    records = run(model, max_new_tokens=40, prompt=[4, 2])
    for panel in range(3):
        ids = [t["id"] for t in emitted(records, panel)]
        text = [4, 2, *ids]
        logits = model.backbone.module.lm_head(
            naive.hidden(model.backbone.module, text, [True] * len(text), 1, 1, head_input)
        )
        (audit,) = of(records, "audit", panel)
        assert audit["agrees"] == [
            int(logits[1 + i].argmax()) == token for i, token in enumerate(ids)
        ]
        chances = logits.float().softmax(-1)
        for i, (token, (choice, text, chance, own)) in enumerate(zip(ids, audit["choices"])):
            assert choice == int(logits[1 + i].argmax()) and isinstance(text, str)
            assert chance == pytest.approx(float(chances[1 + i, choice]), abs=2e-5)
            assert own == pytest.approx(float(chances[1 + i, token]), abs=2e-5)
    assert all(of(records, "audit", 0)[0]["agrees"])
    # a random model's late layers do not know
    assert not all(of(records, "audit", 1)[0]["agrees"])


def test_agreement_is_the_common_prefix():
    records = run(model_with(), max_new_tokens=30)
    ids = [[t["id"] for t in emitted(records, p)] for p in range(3)]
    for panel in range(3):
        common = next((i for i in range(30) if ids[0][i] != ids[panel][i]), 30)
        assert of(records, "summary", panel)[0]["agreement"] == pytest.approx(common / 30, abs=1e-4)


class Paced(Decoder):
    """A decoder whose step takes a set time."""

    needs = frozenset()
    seconds = 0.0

    def steps(self, model, prompt_ids, sampler):
        while True:
            time.sleep(self.seconds)
            yield Step((Token(1, "full", -0.5),), (Pass("full", ((0, 4, 1),)),))


@pytest.fixture
def paced(monkeypatch):
    for name, seconds in (("quick", 0.002), ("slow", 0.006)):
        monkeypatch.setitem(
            DECODERS, name, type(name, (Paced,), {"name": name, "label": name, "seconds": seconds})
        )
    monkeypatch.setattr(local, "warm_up", lambda *_: None)


def test_the_panel_furthest_behind_moves_next(paced):
    """By the records alone, whatever the machine does meanwhile: a turn goes to the panel with the
    lowest clock, ties to the lower index.
    """
    clocks = [0.0, 0.0]
    turns = 0
    done = [False, False]
    for batch in race_ids(
        tiny_model(),
        [PanelSpec("slow"), PanelSpec("quick")],
        [[1], [1]],
        RaceSettings(max_new_tokens=60, audit=False),
    ):
        steps = of(batch, "step")
        if not steps:
            continue
        panel = steps[0]["panel"]
        assert all(s["panel"] == panel for s in steps)
        if not any(done):
            assert panel == min((0, 1), key=lambda p: (clocks[p], p))
            turns += 1
        clocks[panel] = steps[-1]["ms"]
        for end in of(batch, "end"):
            done[end["panel"]] = True
    assert turns > 4 and all(done)


def test_stop_ends_within_a_step_and_still_sums_up(paced):
    seen = []
    records = []
    for batch in race_ids(
        tiny_model(),
        [PanelSpec("slow"), PanelSpec("quick")],
        [[1], [1]],
        RaceSettings(max_new_tokens=200),
        should_stop=lambda seen=seen: len(seen) >= 3,
    ):
        seen += of(batch, "step")
        records += batch
    assert [s["stop"] for s in of(records, "summary")] == ["stopped", "stopped"]
    assert len(seen) < 60


def test_closing_the_race_closes_its_decoders(monkeypatch):
    closed = []

    class Watched(Paced):
        def steps(self, model, prompt_ids, sampler):
            try:
                yield from super().steps(model, prompt_ids, sampler)
            finally:
                closed.append(self.name)

    monkeypatch.setitem(
        DECODERS,
        "watched",
        type("watched", (Watched,), {"name": "watched", "label": "watched", "seconds": 0.002}),
    )
    stream = race_ids(
        tiny_model(), [PanelSpec("watched")] * 2, [[1], [1]], RaceSettings(max_new_tokens=200)
    )
    for _ in range(4):
        next(stream)
    before = len(closed)  # the warm-up's own
    stream.close()
    assert len(closed) == before + 2


def test_one_panels_failure_is_that_panels(monkeypatch):
    class Broken(Paced):
        def steps(self, model, prompt_ids, sampler):
            yield from super().steps(model, prompt_ids, sampler) if False else ()
            raise ValueError("a tensor went missing")

    monkeypatch.setitem(
        DECODERS, "broken", type("broken", (Broken,), {"name": "broken", "label": "broken"})
    )
    records = run(tiny_model(), [PanelSpec("ar"), PanelSpec("broken")], max_new_tokens=5)
    assert [s["stop"] for s in of(records, "summary")] == ["length", "error"]
    assert "a tensor went missing" in of(records, "summary", 1)[0]["message"]


def test_weights_with_nan_end_the_panel_that_reads_them():
    """A layer in the middle: late-layer-only passes never see it, but every cycle's head does."""
    model = tiny_model()
    model.backbone.module.model.layers[1].mlp.down_proj.weight.data[0, 0] = float("nan")
    records = run(model, [PanelSpec("ar"), parse_panel("dmtd:tau=2")], max_new_tokens=5)
    for panel in (0, 1):
        (summary,) = of(records, "summary", panel)
        assert summary["stop"] == "error" and "NaN or infinite" in summary["message"]


@pytest.mark.parametrize(
    "settings,word",
    [
        (dict(prompt=[]), "at least one token"),
        (dict(prompt=[1] * 250, max_new_tokens=7), "context of 256"),
        (dict(prompt=[VOCABULARY], max_new_tokens=9), "from 0 to 96"),
        (dict(prompt=[-1], max_new_tokens=9), "from 0 to 96"),
        (dict(max_new_tokens=0), "1 or more"),
        (dict(top=-1), "from 0 to 100"),
        (dict(panels=[]), "at least one panel"),
    ],
)
def test_bad_input_is_said_before_anything_runs(settings, word):
    with pytest.raises(UserError, match=word):
        panels, prompt = settings.pop("panels", ALL), settings.pop("prompt", [1])
        race_ids(model_with(), panels, [prompt] * len(panels), RaceSettings(**settings))


def test_a_prompt_that_fills_the_context_to_the_last_token_runs():
    records = run(model_with(), prompt=[3] * 246, max_new_tokens=10)
    assert [s["tokens"] for s in of(records, "summary")] == [10, 10, 10]


def test_panels_of_the_same_seed_draw_alike():
    records = run(
        model_with(),
        [PanelSpec("ar"), PanelSpec("ar")],
        max_new_tokens=30,
        sampling=Sampling(temperature=1.0, seed=5),
    )
    assert [t["id"] for t in emitted(records, 0)] == [t["id"] for t in emitted(records, 1)]


def test_no_gradients_are_kept():
    model = model_with()
    for p in model.backbone.module.parameters():
        p.requires_grad_(True)
    run(model, max_new_tokens=4)
    assert not torch.is_inference(model.backbone.embed([1]))
