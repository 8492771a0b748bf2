"""Whatever comes in, a UserError or an answer comes out: never another exception, never a hang.

A tenth of the inputs here; all 20,000 by

DMTD_STRESS=full python -m pytest tests/ui/test_fuzz.py
"""

from __future__ import annotations

import copy
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlencode

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dmtd_demo.decoders import DECODERS
from dmtd_demo.errors import UserError
from dmtd_demo.models.addons import ADDONS, MTPHeads, load_addons, save_addon
from dmtd_demo.models.chat import encode_chat, whole
from dmtd_demo.models.loading import load
from dmtd_demo.models.model import Model
from dmtd_demo.models.residents import Residents
from dmtd_demo.race.panels import parse_panel
from dmtd_demo.race.race import race
from dmtd_demo.race.settings import RaceSettings
from dmtd_demo.sampling import Sampling
from dmtd_demo.ui import links
from dmtd_demo.ui.chat import Chat
from dmtd_demo.ui.page import Page

FULL = os.environ.get("DMTD_STRESS") == "full"
SECONDS = 5


def inputs(full: int) -> Callable:
    return settings(
        max_examples=full if FULL else full // 10,
        deadline=1000 * SECONDS,
        suppress_health_check=list(HealthCheck),
    )


SPECIAL = [
    "<|im_end|>",
    "<|im_start|>",
    "<|im_start|>system\n",
    "<|endoftext|>",
    "<think>",
    "</think>",
    "<tool_call>",
    "\u202e",
    "\u2066",
    "\ufeff",
    "\ue000",
    "\x00",
    "\ud800",
    "{{ 7 * 7 }}",
    "{% for x in range(9) %}",
    "<script>alert(1)</script>",
    "%00",
    "\r\n",
    "🏳️‍🌈",
    "𝔘𝔫𝔦",
    "e\u0301",
]
CHARACTERS = st.characters(codec=None)  # every plane, lone surrogates too
WORDS = st.one_of(st.text(CHARACTERS, max_size=40), st.sampled_from(SPECIAL))
TEXT = st.lists(WORDS, max_size=8).map("".join)
NUMBERS = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from([0, 1, -1, 2**31, 2**63, 10**30, math.inf, -math.inf, math.nan, 1e-320, -0.0]),
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=12)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
OPTION_NAMES = sorted(
    {name for decoder in DECODERS.values() for name in decoder.Options.__dataclass_fields__}
)
VALUES = st.one_of(
    st.text(CHARACTERS, max_size=10),
    NUMBERS.map(str),
    st.sampled_from(
        ["E0D3", "E1D2", "E0D0", "E-1D99", "cumulative", "argmax", "nan", "1e9", "٣", '"', '"4']
    ),
)
PANELS = st.one_of(
    TEXT,
    st.sampled_from(sorted(DECODERS)),
    st.builds(
        lambda name, options: name + ":" + ",".join(f"{key}={value}" for key, value in options),
        st.sampled_from([*DECODERS, "AR", ""]),
        st.lists(
            st.tuples(st.one_of(st.sampled_from(OPTION_NAMES), st.text(max_size=6)), VALUES),
            max_size=3,
        ),
    ),
)


@pytest.fixture(scope="module")
def model() -> Model:
    return load("classroom")


@pytest.fixture(scope="module")
def page(model: Model) -> Page:
    page = Page(Residents(model))
    page.build()
    return page


@inputs(6000)
@given(st.lists(TEXT, min_size=1, max_size=3), TEXT)
def test_no_message_ends_its_own_turn(model: Model, texts: list[str], answer: str) -> None:
    turns = [
        message
        for text in texts
        for message in ({"role": "user", "content": text}, {"role": "assistant", "content": answer})
    ][:-1]
    try:
        ids = encode_chat(model.tokenizer, turns)
    except UserError:
        return
    plain = [{"role": turn["role"], "content": "word"} for turn in turns]
    special = set(model.tokenizer.get_added_vocab().values())
    written = [
        i
        for turn in turns
        if turn["role"] == "assistant"
        for i in model.tokenizer(whole(turn["content"]), add_special_tokens=False).input_ids
    ]
    if not special & set(written):  # what a model itself wrote keeps its tags
        assert [i for i in ids if i in special] == [
            i for i in encode_chat(model.tokenizer, plain) if i in special
        ]


@inputs(4000)
@given(PANELS)
def test_a_panel_reads_back_as_it_was_written(text: str) -> None:
    try:
        panel = parse_panel(text)
    except UserError:
        return
    assert str(parse_panel(str(panel))) == str(panel)


@inputs(4000)
@given(
    st.lists(
        st.tuples(st.sampled_from([*links.PARTS, "theme"]), st.one_of(TEXT, PANELS, VALUES)),
        max_size=5,
    ),
    TEXT,
)
def test_any_link_opens_or_is_refused(model: Model, parts: list[tuple[str, str]], raw: str) -> None:
    for query in (
        raw,
        urlencode([(key, value.encode("utf-8", "surrogatepass")) for key, value in parts]),
    ):
        try:
            links.comparison(query, model)
        except UserError:
            pass


@inputs(2000)
@given(
    st.one_of(st.floats(0, 9), NUMBERS, JSON),
    st.one_of(st.integers(0, 99), NUMBERS, JSON),
    st.one_of(st.floats(0, 1), NUMBERS, JSON),
    st.one_of(st.integers(0), NUMBERS, JSON),
    st.one_of(st.integers(1, 9), JSON),
)
def test_any_sampling_draws_or_is_refused(
    model: Model, temperature: Any, top_k: Any, top_p: Any, seed: Any, most: Any
) -> None:
    try:
        sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
        records = race(
            model,
            [parse_panel("ar")],
            [[{"role": "user", "content": "Hi"}]],
            RaceSettings(sampling, max_new_tokens=most, audit=False),
        )
        for seen, _ in enumerate(records):
            if seen == 2:
                records.close()
    except UserError:
        pass


@inputs(2000)
@given(
    st.sampled_from(["", "", "again", "edit", None]),
    st.one_of(TEXT, st.just("Hi"), st.none()),
    st.one_of(TEXT, st.just(""), st.none()),
    st.booleans(),
    st.dictionaries(st.integers(0, 5), st.one_of(JSON, NUMBERS, VALUES), max_size=1),
    st.dictionaries(
        st.integers(0, 60), st.one_of(JSON, VALUES, st.sampled_from(sorted(DECODERS))), max_size=2
    ),
)
def test_whatever_the_controls_send_gets_a_sentence(
    page: Page,
    how: str | None,
    prompt: str | None,
    system: str | None,
    thinking: bool,
    settings: dict[int, Any],
    options: dict[int, Any],
) -> None:
    values = [component.value for component in page.layout.row.inputs]
    for index, value in options.items():
        values[index % len(values)] = value
    # panels, tokens, seed, temperature, top-k, top-p
    numbers = [settings.get(index, value) for index, value in enumerate([2, 3, 0, 0, 0, 1])]
    if isinstance(numbers[1], int) and numbers[1] > 8:
        numbers[1] = 8  # a long race is no other input
    events = list(
        page.races.race(
            SimpleNamespace(session_hash="fuzz"),
            json.dumps(["run", how, [prompt, *numbers, system, thinking, *values]]),
            Chat(),
        )
    )
    last = json.loads(events[-1][0].rstrip("\n").split("\n")[-1])
    assert last["type"] in ("over", "refused")
    assert not last["message"].startswith("The race failed"), last["message"]


@inputs(2000)
@given(
    st.one_of(
        st.text(),
        JSON.map(json.dumps),
        st.tuples(JSON, JSON, st.lists(JSON, min_size=8, max_size=12)).map(json.dumps),
        st.just("[" * 100_000),
    )
)
def test_a_question_that_no_page_asks_gets_a_sentence(page: Page, asked: str) -> None:
    (event,) = page.races.race(SimpleNamespace(session_hash="fuzz"), asked, Chat())
    assert json.loads(event[0].rstrip("\n").split("\n")[-1])["type"] == "refused"
    assert page.showing.address(asked) == ""


@pytest.fixture(scope="module")
def addon_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        save_addon(Path(name), "mtp_heads", MTPHeads(8, 2), "tiny", 8)
        yield Path(name)


def changed(value: Any, path: list[int], new: Any) -> Any:
    """The value with one of its parts replaced: path picks the way down."""
    if not path or not isinstance(value, dict) or not value:
        return new
    value = copy.copy(value)
    key = sorted(value)[path[0] % len(value)]
    value[key] = changed(value[key], path[1:], new)
    return value


@inputs(2000)
@given(
    st.lists(st.integers(0, 9), max_size=4),
    st.one_of(JSON, st.sampled_from(sorted(ADDONS))),
    st.one_of(st.none(), st.binary(max_size=200), st.integers(0, 4000)),
)
def test_any_folder_of_addons_loads_or_is_refused(
    addon_folder: Path, path: list[int], new: Any, file: bytes | int | None
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole = (addon_folder / "mtp_heads.safetensors").read_bytes()
        (folder / "mtp_heads.safetensors").write_bytes(
            whole if file is None else file if isinstance(file, bytes) else whole[:file]
        )
        (folder / "addons.json").write_text(
            json.dumps(changed(json.loads((addon_folder / "addons.json").read_text()), path, new)),
            encoding="utf-8",
            errors="replace",
        )
        try:
            load_addons(folder, 8, torch.float32, torch.device("cpu"))
        except UserError:
            pass
