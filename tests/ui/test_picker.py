"""What the picker grants to whom."""

from __future__ import annotations

import pytest

from dmtd_demo.errors import UserError
from dmtd_demo.models.catalog import CATALOG
from dmtd_demo.models.loading import load
from dmtd_demo.models.placement import offered
from dmtd_demo.models.residents import Residents
from dmtd_demo.server.address import is_loopback
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


def test_others_get_the_list_and_nothing_else(model_folder):
    page = Page(Residents(load("classroom")))
    page.build()
    assert not hasattr(page.picker, "other") and OTHER not in [
        value for _, value in page.picker.choice.choices
    ]
    for choice, other in (
        (OTHER, str(model_folder)),
        (str(model_folder), ""),
        ("someone/some-qwen", ""),
        ("../assets/classroom", ""),
        (None, ""),
        (["classroom"], ""),
    ):
        with pytest.raises(UserError, match="models of its list"):
            page.picker._name(choice, other)
    assert page.picker._name("Qwen3-4B", str(model_folder)) == "Qwen3-4B"


def test_the_model_that_the_app_began_with_stays_in_the_list(model_folder):
    page = Page(Residents(load(str(model_folder)), str(model_folder)))
    page.build()
    assert page.picker._name(str(model_folder), "") == str(model_folder)
    assert (
        "gate" in page.picker.look(str(model_folder))[0]
        and str(model_folder) in page.picker.look(str(model_folder))[0]
    )


def test_every_quantization_is_explained(model_folder):
    """In the words of the page, with the model's own arithmetic: whichever the visitor can choose."""
    picker = Page(Residents(load(str(model_folder)), "tiny")).picker
    name = next(iter(CATALOG))
    for quantization in offered(picker.device):
        told = picker.explain(name, quantization)
        assert quantization in told and "iB" in told, told
