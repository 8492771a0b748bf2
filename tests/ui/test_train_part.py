"""Training add-ons on the page: what it shows, what it leaves behind, and who may."""

from __future__ import annotations

import re
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dmtd_demo.decoders import DECODERS
from dmtd_demo.errors import Cancelled, UserError
from dmtd_demo.models.addons import CollocationLengthPredictor, load_addons, methods_in, save_addon
from dmtd_demo.models.loading import load
from dmtd_demo.models.model import Model
from dmtd_demo.models.residents import Residents
from dmtd_demo.server.allowance import Rights, Rules, may_train
from dmtd_demo.server.trust import OWNER, Standing
from dmtd_demo.training import features
from dmtd_demo.training.all_addons import Plan
from dmtd_demo.training.features import Features, confusion
from dmtd_demo.ui import training
from dmtd_demo.ui.page import Page
from dmtd_demo.ui.training import TrainingPart

VISITOR = SimpleNamespace(session_hash="one")
OPEN = Rules(Rights(train=True), Rights(train=True))


@pytest.fixture
def classroom() -> Model:
    return load("classroom")


@pytest.fixture
def part(classroom: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainingPart:
    monkeypatch.setattr(training, "OUTPUT", tmp_path)
    monkeypatch.setattr(training, "LOOK_SECONDS", 0.0)
    for name in training.STEPS:
        monkeypatch.setitem(training.STEPS, name, 12)
    return TrainingPart(Residents(classroom, "classroom"), OPEN)


def test_clp_learns_and_the_model_uses_it(part: TrainingPart, classroom: Model, tmp_path: Path):
    before = dict(classroom.addons)
    shown = list(part.train(VISITOR, "classroom", "clp", 40))
    stages = {
        match[1]
        for progress, _, _ in shown
        for match in [re.search(r'data-slot="stage"><span data-t="([\w.]+)"', progress)]
        if match
    }
    assert "train.stage.features" in stages  # what takes less than a look is not seen
    words, picture, key = shown[-1]
    assert key == "classroom" and "train.done" in words and picture.count("<polyline") == 2
    rows = [
        [int(n.replace(",", "")) for n in re.findall(r'class="whole">([\d,]+)<', row)]
        for row in re.findall(r"<tr><th.*?</tr>", picture)
    ]
    # positions of the four conversations kept aside, by how many heads were right there
    assert len(rows) == 5 and sum(sum(row) for row in rows) > 20
    assert classroom.addons["clp"] is not before["clp"] and all(
        classroom.addons[name] is module for name, module in before.items() if name != "clp"
    )
    folder = Path(re.search(r"<code>(.*?)</code>", words)[1])
    modules, facts = load_addons(
        folder,
        classroom.backbone.hidden_size,
        torch.float32,
        classroom.backbone.device,
        classroom.base,
    )
    assert (
        torch.equal(modules["clp"].linear.weight, classroom.addons["clp"].linear.weight)
        and facts["clp"] == classroom.addon_facts["clp"]
    )
    assert (
        folder.is_relative_to(tmp_path)
        and facts["clp"]["data"] == "the conversations that classroom learns from"
    )
    # as the page says: what the panels use here, all of it
    elsewhere = load("classroom", addons=str(folder))
    assert (
        elsewhere.addon_facts == classroom.addon_facts and elsewhere.addons.keys() == before.keys()
    )
    for name, module in elsewhere.addons.items():
        assert all(
            torch.equal(its, classroom.addons[name].state_dict()[part])
            for part, its in module.state_dict().items()
        )

    words, key = part.put_back("classroom", VISITOR)
    assert key == "classroom" and classroom.addons == before
    assert "came with" in part.put_back("classroom", VISITOR)[0]


def test_heads_show_the_accuracy_of_each(part: TrainingPart, classroom: Model):
    before = classroom.addons["mtp_heads"]
    words, picture, key = list(part.train(VISITOR, "classroom", "heads", 20))[-1]
    assert key == "classroom" and classroom.addons["mtp_heads"] is not before
    assert "threshold" not in words  # they have none
    # what chose among those before goes, there and in the folder
    assert 'data-t="train.left_out"' in words and "clp, gate" in words
    assert classroom.has("adaptive") and not classroom.has("clp") and not classroom.has("gate")
    assert "clp" not in classroom.addon_facts
    saved = methods_in(Path(re.search(r"<code>(.*?)</code>", words)[1]))
    assert saved == classroom.addons.keys()
    assert picture.count("<polyline") == 5 and [
        name for name in re.findall(r'class="line-\d">(\d) ', picture)
    ] == ["1", "2", "3", "4"]
    # nothing is left to go the next time, whatever the model once had
    words, *_ = list(part.train(VISITOR, "classroom", "heads", 20))[-1]
    assert "<code>" in words and "train.left_out" not in words


def test_clp_learns_from_the_heads_in_memory(
    part: TrainingPart, classroom: Model, monkeypatch: pytest.MonkeyPatch
):
    """Whatever was trained before: other heads, put back since; or for the model of this name
    before it was loaded again.
    """
    read = []
    collect = features.collect
    monkeypatch.setattr(
        features,
        "collect",
        lambda name, source, *more: (read.append(source.heads), collect(name, source, *more))[1],
    )

    def heads_read(model: Model) -> bool:
        read.clear()
        assert list(part.train(VISITOR, "classroom", "clp", 20))[-1][2] == "classroom"
        return torch.equal(read[0].weight, model.addons["mtp_heads"].weight)

    assert list(part.train(VISITOR, "classroom", "heads", 20))[-1][2] == "classroom"
    assert heads_read(classroom)
    part.put_back("classroom", VISITOR)
    assert heads_read(classroom)

    again = load("classroom")
    part.models._held["classroom"].model = again  # unloaded and loaded again
    assert "came with" in part.put_back("classroom", VISITOR)[0]
    assert heads_read(again)


def test_cancel_leaves_the_model_as_it_was(part: TrainingPart, classroom: Model, tmp_path: Path):
    before = dict(classroom.addons)
    running = part.train(VISITOR, "classroom", "clp", 2000)
    next(running)
    part.request_cancel(VISITOR)
    assert "train.cancelled" in list(running)[-1][0]
    assert classroom.addons == before and not list(tmp_path.iterdir())
    part.models.get("classroom")
    assert part.models._held["classroom"].users == 0


@pytest.mark.parametrize(
    "key,name,rows,words",
    [
        ("classroom", "dmtd", 40, "one of the add-ons"),
        ("classroom", None, 40, "one of the add-ons"),
        ("Qwen3-4B", "clp", 40, "in memory"),
        ("classroom", "clp", 5, "20 to 2000"),
        ("classroom", "clp", 10**9, "20 to 2000"),
        ("classroom", "clp", None, "20 to 2000"),
    ],
)
def test_bad_input_is_refused_in_words(
    part: TrainingPart, classroom: Model, key, name, rows, words
):
    before = dict(classroom.addons)
    [(said, _, arrived)] = part.train(VISITOR, key, name, rows)
    assert words in said and arrived is None and classroom.addons == before


def test_gate_without_heads_says_what_is_missing(part: TrainingPart, classroom: Model):
    del classroom.addons["mtp_heads"]
    said, _, arrived = list(part.train(VISITOR, "classroom", "gate", 20))[-1]
    assert "needs MTP heads" in said and arrived is None


def test_the_clp_of_a_models_own_head(part: TrainingPart, tmp_path: Path):
    *_, (said, _, arrived) = part.train(VISITOR, "classroom", "native_clp", 20)
    assert "needs a model with an MTP head of its own" in said and arrived is None
    hybrid = load("classroom-hybrid")
    del hybrid.addons["native_clp"]
    part = TrainingPart(Residents(hybrid, "classroom-hybrid"), OPEN)
    assert part.first == "native_clp"
    assert part.first not in [name for _, name in training._choices(load("classroom"))]
    *_, (said, picture, arrived) = part.train(VISITOR, "classroom-hybrid", "native_clp", 20)
    assert "train.done" in said and "<table" in picture and arrived == "classroom-hybrid"
    # mtp-native decodes by it now
    assert hybrid.has("native_clp") and DECODERS["mtp-native"].defaults(hybrid).k > 1


def test_a_page_for_others_has_no_training(classroom: Model):
    for allowed in (False, True):
        page = Page(Residents(classroom), OPEN if allowed else Rules()).build()
        assert (
            any(getattr(block, "elem_id", None) == "train" for block in page.blocks.values())
            == allowed
        )
        assert (
            any(
                getattr(fn.fn, "__self__", None).__class__ is TrainingPart
                for fn in page.fns.values()
            )
            == allowed
        )


def test_a_request_that_may_not_train_is_told_why(classroom: Model, tmp_path: Path):
    """Where the work is done, whatever the page shows."""
    part = TrainingPart(Residents(classroom, "classroom"), Rules(Rights(train=True), Rights()))
    before = dict(classroom.addons)
    owner, stranger = (
        SimpleNamespace(session_hash="one", state=SimpleNamespace(standing=standing))
        for standing in (OWNER, Standing(False, "it was forwarded"))
    )
    for request in (stranger, VISITOR):
        [(said, _, arrived)] = part.train(request, "classroom", "clp", 40)
        assert "not open to this request" in said and arrived is None
        said, key = part.put_back("classroom", request)
        assert "not open to this request" in said and key is None
    assert "it was forwarded" in part.put_back("classroom", stranger)[0]
    assert "came with" in part.put_back("classroom", owner)[0] and classroom.addons == before


def test_who_may_train(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("DMTD_TRAIN", raising=False)
    assert may_train(own=True) and not may_train(own=False)
    for text, granted in (("1", True), ("0", False)):
        monkeypatch.setenv("DMTD_TRAIN", text)
        assert may_train(own=True) == may_train(own=False) == granted
    monkeypatch.setenv("DMTD_TRAIN", "perhaps")
    with pytest.raises(UserError, match="DMTD_TRAIN needs 1"):
        may_train(own=True)


def test_the_confusion_matrix_counts_every_position():
    torch.manual_seed(0)
    predictor = CollocationLengthPredictor(8, 3)
    h, labels = torch.randn(5000, 8), torch.randint(4, (5000,))
    said = predictor(h).argmax(-1)
    assert confusion(predictor, Features(h, labels)) == [
        [int(((labels == true) & (said == column)).sum()) for column in range(4)]
        for true in range(4)
    ]


def test_all_of_them_are_one_job_with_one_bar(
    part: TrainingPart, classroom: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """What `train all` does has tests of its own: here it only tells, and leaves add-ons."""
    plan = Plan(10, 5, 5, 5, {"data": 60.0, "heads": 60.0})

    def quick(model, output, settings, *, tell, planned):
        tell("Measuring this machine", 0, 0)
        planned(plan)
        for stage, done in (("data: hidden states", 250), ("heads: updates", 750)):
            tell(stage, done, 1000)
            time.sleep(0.4)  # looked at more often than that
        for name in ("mtp_heads", "clp"):
            facts = model.addon_facts[name] | ({"threshold": 0.77} if name == "clp" else {})
            addon = model.addons[name]
            save_addon(
                output / "addons", name, addon, model.base, model.backbone.hidden_size, **facts
            )

    def cancelled(model, output, settings, *, tell, planned):
        (output / "all.json").write_text("{}")
        raise Cancelled

    # one that was cancelled goes on with the same settings, and the page says so
    monkeypatch.setattr(training, "train_all", cancelled)
    for minutes in (5, 6):
        assert "train.kept" in list(part.train(VISITOR, "classroom", "all", 40, minutes))[-1][0]
    begun = sorted(tmp_path.iterdir())
    monkeypatch.setattr(training, "train_all", quick)
    shown = [each[0] for each in part.train(VISITOR, "classroom", "all", 40, 5)]
    bars = [re.findall(r'value="(\d+)" max="1000"', each) for each in shown]
    assert ["250"] in bars and ["750"] in bars and "train.all.heads" in "".join(shown)
    assert "about 0.5 minutes left" in "".join(shown)
    assert len(begun) == 2 and sorted(tmp_path.iterdir()) == begun and "train.again" in shown[-2]
    assert [(folder / "asked.json").exists() for folder in begun].count(True) == 1
    assert "train.all_done" in shown[-1] and classroom.addon_facts["clp"]["threshold"] == 0.77
    part.put_back("classroom", VISITOR)
    assert classroom.addon_facts["clp"]["threshold"] != 0.77
    [(said, _, arrived)] = part.train(VISITOR, "classroom", "all", 40, 10**6)
    assert "2 to 240 minutes" in said and arrived is None
