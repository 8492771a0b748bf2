"""What the picker grants to whom."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest

from dmtd_demo.models.catalog import CATALOG
from dmtd_demo.models.loading import load
from dmtd_demo.models.placement import offered
from dmtd_demo.models.residents import Residents
from dmtd_demo.server.address import is_loopback
from dmtd_demo.server.allowance import Rights, Rules
from dmtd_demo.server.trust import OWNER, Standing
from dmtd_demo.ui.models import OTHER
from dmtd_demo.ui.page import Page


@pytest.mark.parametrize(
    "host,granted",
    [
        (None, True),
        ("127.0.0.1", True),
        ("localhost", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("192.0.2.7", False),
        ("no.such.host.invalid", False),
    ],
)
def test_only_a_loopback_host_is_this_machine_alone(host, granted, monkeypatch):
    monkeypatch.delenv("GRADIO_SERVER_NAME", raising=False)
    assert is_loopback(host) == granted
    monkeypatch.setenv("SPACE_ID", "me/space")
    assert not is_loopback(host)


def test_the_environment_counts_too(monkeypatch):
    monkeypatch.setenv("GRADIO_SERVER_NAME", "0.0.0.0")
    assert not is_loopback() and is_loopback("127.0.0.1")


def asked_by(standing: Standing) -> SimpleNamespace:
    """A request of an event."""
    return SimpleNamespace(session_hash="one", state=SimpleNamespace(standing=standing))


OWNER_ASKS, STRANGER_ASKS = asked_by(OWNER), asked_by(Standing(False, "it was forwarded"))
MINE = Rules(Rights(anything=True), Rights())


@pytest.mark.parametrize("rules,owner", [(Rules(), True), (Rules(), False), (MINE, False)])
def test_others_get_the_list_and_nothing_else(model_folder, rules, owner):
    page = Page(Residents(load("classroom")), rules)
    page.build()
    assert OTHER not in [value for _, value in page.picker.choice.choices]
    request = OWNER_ASKS if owner else STRANGER_ASKS
    said = set()
    for choice, other in (
        (OTHER, str(model_folder)),
        (OTHER, "/no/such/folder"),
        (OTHER, str(model_folder / "config.json")),
        (str(model_folder), ""),
        ("someone/some-qwen", ""),
        ("../assets/classroom", ""),
        (None, ""),
        (["classroom"], ""),
    ):
        for answer in (
            page.picker.look(request, choice, other)[0],
            page.picker.explain(request, choice, "none", other),
            list(page.picker.prepare(request, choice, "none", other))[-1][0],
        ):
            assert "models of its list" in answer
            if choice == OTHER:
                said.add(answer)
    assert len(said) == 1, "the same for what is there and what is not"
    brought = list(page.picker.bring((str(model_folder), "none"), request))[-1]
    assert "models of its list" in brought[0] and brought[1] is None
    assert page.models.keys == ["classroom"]
    assert "Qwen3-4B" in page.picker.look(request, "Qwen3-4B", str(model_folder))[0]


def test_the_owner_names_any_folder_and_others_do_not_unload_it(model_folder):
    page = Page(Residents(load("classroom")), MINE, own=True)
    page.build()
    assert OTHER in [value for _, value in page.picker.choice.choices]
    stranger, owner = (
        page.picker.show_choices(rights)["choices"] for rights in (MINE.stranger, MINE.owner)
    )
    assert OTHER not in [value for _, value in stranger] and len(owner) == len(stranger) + 1
    path = str(model_folder)
    assert path in page.picker.look(OWNER_ASKS, OTHER, path)[0]
    *_, (_, wanted) = page.picker.prepare(OWNER_ASKS, OTHER, "none", path)
    *_, (_, key, _) = page.picker.bring(wanted, OWNER_ASKS)
    assert key == model_folder.name in page.models.keys
    assert "its owner alone unloads it" in page.picker.drop(key, STRANGER_ASKS)[0]
    assert key in page.models.keys
    page.picker.drop(key, OWNER_ASKS)
    assert key not in page.models.keys


def test_the_model_that_the_app_began_with_stays_in_the_list_by_its_name(model_folder, tmp_path):
    """Where it lies is the owner's business."""
    page = Page(Residents(load(str(model_folder)), str(model_folder)), MINE)
    built = page.build()
    name = model_folder.name
    assert page.picker._name(name, "", MINE.stranger) == str(model_folder)
    parent = str(model_folder.parent)
    assert parent not in json.dumps(built.get_config_file(), default=str)
    told = page.picker.look(STRANGER_ASKS, name)
    assert "gate" in told[0] and parent not in str(told)
    assert str(model_folder) in page.picker.look(OWNER_ASKS, name)[0]
    shutil.copytree(model_folder, tmp_path / name)
    page.picker.names["gone"] = str(tmp_path / "gone")
    told = page.picker.look(STRANGER_ASKS, "gone")[0]
    assert "complaint" in told and str(tmp_path) not in told
    both = Residents(load("classroom"))
    for folder in (model_folder, tmp_path / name):
        both._add(load(str(folder)), str(folder))
    assert both.keys == ["classroom", name, f"{name} (2)"]
    names = Page(both).picker.names
    assert names[name] == str(model_folder) and names[f"{name} (2)"] == str(tmp_path / name)


def test_every_quantization_is_explained(model_folder):
    """In the words of the page, with the model's own arithmetic: whichever the visitor can choose."""
    picker = Page(Residents(load(str(model_folder)), "tiny")).picker
    name = next(iter(CATALOG))
    for quantization in offered(picker.facts_of.device):
        told = picker.explain(STRANGER_ASKS, name, quantization)
        assert quantization in told and "iB" in told, told
    for odd in (None, ["none"], {}, 4, "int9"):
        assert "quantization needs one of" in picker.explain(STRANGER_ASKS, name, odd).lower()
