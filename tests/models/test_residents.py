"""The models in memory: held once, leaving when the next would not fit, never under a race; loading
that can be cancelled.
"""

from __future__ import annotations

import gc
import threading

import pytest
import torch

from dmtd_demo.errors import Cancelled, UserError
from dmtd_demo.models import residents as module
from dmtd_demo.models.addons import MTPHeads, save_addon
from dmtd_demo.models.loading import load
from dmtd_demo.models.residents import Residents
from dmtd_demo.race.panels import parse_panel
from dmtd_demo.race.race import race, race_ids
from dmtd_demo.race.settings import RaceSettings
from dmtd_demo.server.job import Job
from tiny import tiny_module


@pytest.fixture
def folders(tmp_path, small_tokenizer):
    """Three different models."""
    paths = []
    for seed in range(3):
        path = tmp_path / f"tiny{seed}"
        tiny_module(
            "qwen3",
            seed=seed,
            vocab_size=len(small_tokenizer),
            hidden_size=64,
            intermediate_size=128,
            max_position_embeddings=512,
        ).save_pretrained(path)
        small_tokenizer.save_pretrained(path)
        paths.append(str(path))
    return paths


@pytest.fixture
def models(folders):
    return Residents(load(folders[0]), folders[0])


def room_for(monkeypatch, models: Residents, spare: int) -> None:
    """A machine where, beside what the models hold now, `spare` bytes are free; what leaves is free
    again.
    """
    limit = sum(models.get(key).memory for key in models.keys) + spare
    for place in ("dmtd_demo.models.residents", "dmtd_demo.models.placement"):
        monkeypatch.setattr(
            f"{place}.free",
            lambda device: limit - sum(models.get(key).memory for key in models.keys),
        )


def need(models: Residents, name: str) -> int:
    found = module.find(name)
    return models.plan(found.sizes, found.context, None).need.total


def test_equal_weights_are_held_once(models, folders, tmp_path):
    assert models.load(folders[1]).fresh and models.keys == ["tiny0", "tiny1"]
    link = tmp_path / "link"
    link.symlink_to(folders[1])
    for name in (folders[1], str(link)):
        again = models.load(name)
        assert not again.fresh and again.key == "tiny1"
    assert models.load(folders[1], "nf4").key == "tiny1 · nf4"  # other weights
    assert len(models.keys) == 3


def test_the_least_recently_used_leaves(models, folders, monkeypatch):
    models.load(folders[1])
    with models.using(["tiny0"]):
        pass  # now tiny1 is the one that was used longest ago
    room_for(monkeypatch, models, need(models, folders[2]) - 1000)
    arrival = models.load(folders[2])
    assert arrival.left == ["tiny1"] and models.keys == ["tiny0", "tiny2"]
    with pytest.raises(UserError, match="in memory .tiny0, tiny2.; 'tiny1' is not: load it"):
        models.get("tiny1")


def test_what_a_race_uses_stays(models, folders, monkeypatch):
    models.load(folders[1])
    room_for(monkeypatch, models, need(models, folders[2]) - 1000)
    with models.using(["tiny0"]):
        with pytest.raises(UserError, match="in use by a race"):
            models.unload("tiny0")
        assert models.load(folders[2]).left == ["tiny1"]  # although tiny0 was loaded before it
    models.unload("tiny0")
    with pytest.raises(UserError, match="only one in memory"):
        models.unload("tiny2")


def test_memory_that_goes_while_all_are_in_use_takes_no_model(models, folders, monkeypatch):
    """Between the placing of a model and the making of room others may take what was free."""
    placement = models.plan(module.find(folders[1]).sizes, 64, None)
    monkeypatch.setattr("dmtd_demo.models.residents.free", lambda device: 0)
    left: list = []
    with models.using(models.keys):
        models._make_room(placement, left)
    assert not left and models.keys


def test_the_add_ons_that_the_app_began_with_come_with_their_model_again(folders, tmp_path):
    first = load(folders[0])
    size = first.backbone.hidden_size
    save_addon(tmp_path / "a", "mtp_heads", MTPHeads(size, 2), first.base, size)
    with_heads = load(folders[0], addons=str(tmp_path / "a"))
    models = Residents(with_heads, folders[0], addons=str(tmp_path / "a"))
    models.load(folders[1])
    models.unload("tiny0")
    assert models.load(folders[0]).key == "tiny0" and models.get("tiny0").has("mtp_heads")
    assert not models.get("tiny1").has("mtp_heads")


def test_what_cannot_fit_is_refused_and_nobody_leaves(models, folders, monkeypatch):
    models.load(folders[1])
    room_for(monkeypatch, models, 1000)
    with models.using(["tiny0", "tiny1"]), pytest.raises(UserError, match="GiB free"):
        models.load(folders[2])
    assert models.keys == ["tiny0", "tiny1"]


@pytest.mark.parametrize("stage", ["Checking the weights", "Loading the weights"])
@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_a_cancelled_load_leaves_everything_as_it_was(
    models, folders, monkeypatch, stage, quantization
):
    # tiny0 has to leave, and comes back
    room_for(monkeypatch, models, need(models, folders[1]) - 1000)
    held = models.get("tiny0").memory
    seen = []

    def progress(what: str, done: int, total: int) -> None:
        seen.append((what, done, total))
        if what == stage and done > total / 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        models.load(folders[1], quantization, progress)
    gc.collect()
    assert models.keys == ["tiny0"] and models.get("tiny0").memory == held
    assert seen[-1][0] == stage and 0 < seen[-1][1] < seen[-1][2]
    shape = (128, 64)  # of the matrices of the MLP: 8 in tiny0, as one with their neighbours
    mine = {p.data_ptr() for p in models.get("tiny0").backbone.module.parameters()}
    assert not [
        t
        for t in gc.get_objects()
        if torch.nn.Parameter in type(t).__mro__ and t.shape == shape and t.data_ptr() not in mine
    ]
    assert models.load(folders[1]).fresh


def test_progress_counts_the_bytes_and_the_tensors(models, folders):
    seen: dict[str, list] = {}
    models.load(
        folders[1],
        progress=lambda stage, done, total: seen.setdefault(stage, []).append((done, total)),
    )
    assert list(seen) == ["Checking the weights", "Loading the weights"]
    for counts in seen.values():
        assert (
            counts == sorted(counts) and len(counts) > 40 and counts[-1][0] >= 0.9 * counts[-1][1]
        )


def test_a_job_is_cancelled_from_outside_and_by_closing():
    for close in (False, True):
        job, ended = Job(), threading.Event()

        def work(progress, ended=ended):
            try:
                for step in range(10_000):
                    progress("counting", step, 10_000)
                    threading.Event().wait(0.001)
            finally:
                ended.set()

        states = job.run(work, wait=True)
        next(states)
        if close:
            states.close()
        else:
            job.cancelled.set()
            with pytest.raises(Cancelled):
                list(states)
        assert ended.is_set()


def test_panels_on_different_models(folders):
    one, other = load(folders[0]), load(folders[1], quantization="nf4")
    panels = [parse_panel("ar"), parse_panel("dmtd"), parse_panel("ar")]
    records = [
        r
        for batch in race(
            [one, other, other],
            panels,
            [[{"role": "user", "content": "Hi"}]] * 3,
            RaceSettings(max_new_tokens=12, ignore_eos=True),
        )
        for r in batch
    ]
    assert [(p["model"], p["quantization"]) for p in records[0]["panels"]] == [
        ("tiny0", "none"),
        ("tiny1", "nf4"),
        ("tiny1", "nf4"),
    ]

    def ids(records, panel):
        return [
            t["id"]
            for r in records
            if r["type"] == "step" and r["panel"] == panel
            for t in r["tokens"]
        ]

    for model, panel, index in ((one, "ar", 0), (other, "dmtd", 1), (other, "ar", 2)):
        alone = [
            r
            for batch in race(
                model,
                [parse_panel(panel)],
                [[{"role": "user", "content": "Hi"}]],
                RaceSettings(max_new_tokens=12, ignore_eos=True),
            )
            for r in batch
        ]
        assert ids(records, index) == ids(alone, 0)
    assert [r["agreement"] for r in records if r["type"] == "summary"][0] == 1.0
    other.tokenizer = None  # other token ids mean other texts: nothing to compare
    records = [
        r
        for batch in race_ids(
            [one, other],
            panels[:2],
            [[1, 2]] * 2,
            RaceSettings(max_new_tokens=4, ignore_eos=True, audit=False),
        )
        for r in batch
    ]
    assert [r["agreement"] for r in records if r["type"] == "summary"] == [1.0, None]
