"""The model that ships: whole, small, an ordinary Qwen3, and good at what it was trained for."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoTokenizer, Qwen3ForCausalLM

from dmtd_demo.measure.evaluation import evaluate, held_out_tasks
from dmtd_demo.models.catalog import ASSETS
from dmtd_demo.models.chat import encode_chat
from dmtd_demo.models.loading import load
from dmtd_demo.models.model import Model
from dmtd_demo.race.panels import parse_panel
from dmtd_demo.race.race import race
from dmtd_demo.race.settings import RaceSettings

FOLDER = ASSETS / "classroom"
QUESTIONS = (
    "What is DMTD?",
    "What is 47 + 38?",
    "What is the capital of France?",
    "Tell me a story about Ada, a fox and a red kite at the lake.",
)


@pytest.fixture(scope="module")
def classroom() -> Model:
    return load("classroom")


def records_of(model: Model, panel: str, question: str, new: int) -> list[dict]:
    return [
        record
        for batch in race(
            model,
            [parse_panel(panel)],
            [[{"role": "user", "content": question}]],
            RaceSettings(max_new_tokens=new, audit=False),
        )
        for record in batch
    ]


def ids_of(model: Model, panel: str, question: str, new: int) -> list[int]:
    return [
        token["id"]
        for record in records_of(model, panel, question, new)
        if record["type"] == "step"
        for token in record["tokens"]
    ]


def test_its_addons_say_what_they_are(classroom: Model):
    card = json.loads((FOLDER / "addons" / "addons.json").read_text(encoding="utf-8"))
    assert (
        card["base_model"] == "classroom"
        and card["base_fingerprint"] == classroom.base.fingerprint
        and card["license"] == "apache-2.0"
        and card["hidden_size"] == classroom.backbone.hidden_size
    )
    assert card["addons"].keys() == classroom.addons.keys() and all(
        facts["data"] and facts["k"] for facts in card["addons"].values()
    )


def test_its_files_are_small_and_have_a_card():
    sizes = [path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()]
    assert max(sizes) < 10_000_000 and sum(sizes) < 40_000_000
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    for word in (
        "python -m dmtd_demo train classroom",
        "train heads",
        "train clp",
        "train gate",
        "train adaptive",
        "train head0",
        "train mixed",
        "python -m dmtd_demo eval",
        "cannot",
    ):
        assert word in card


def test_it_says_what_it_is(classroom: Model):
    assert (
        str(classroom.split) == "E0D3"
        and classroom.split.head_input == "replace"
        and classroom.layers == 12
    )
    assert classroom.context == 8192 and 9_000_000 < classroom.parameters < 11_000_000
    assert (
        classroom.has("mtp_heads") and classroom.has("clp") and classroom.addons["mtp_heads"].k == 4
    )
    assert json.loads((FOLDER / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize("question", QUESTIONS)
def test_plain_transformers_generates_what_ar_does(classroom: Model, question: str):
    """The oracle needs nothing of this package: AutoTokenizer, the chat template, generate."""
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    module = Qwen3ForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    messages = [{"role": "user", "content": question}]
    ids = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )["input_ids"]
    assert ids[0].tolist() == encode_chat(classroom.tokenizer, messages)
    wanted = module.generate(ids, max_new_tokens=150, do_sample=False)[0, ids.shape[1] :].tolist()
    assert (
        ids_of(classroom, "ar", question, 150)
        == ids_of(classroom, "dmtd:tau=1", question, 150)
        == wanted
    )


LIMITS = (5, 6, 7, 150)
LOSSLESS = [*(f"dmtd-spec:tau={tau}" for tau in range(2, 7)), "mtp-verified", "prompt-lookup"]


@pytest.fixture(scope="module")
def plain_races(classroom: Model) -> dict[tuple[str, int], list[dict]]:
    return {
        (question, limit): records_of(classroom, "ar", question, limit)
        for question in QUESTIONS
        for limit in LIMITS
    }


@pytest.mark.parametrize("panel", LOSSLESS)
def test_verified_drafts_leave_the_text_as_it_is(
    classroom: Model, plain_races: dict[tuple[str, int], list[dict]], panel: str
):
    """Greedy, token for token, where most drafts stand: up to an end mark inside a draft, and up to
    limits that cut one.
    """
    drafted = full = 0
    for question in QUESTIONS:
        for limit in LIMITS:
            races = plain_races[question, limit], records_of(classroom, panel, question, limit)
            plain, verified = (
                [t for r in records if r["type"] == "step" for t in r["tokens"]]
                for records in races
            )
            assert [t["id"] for t in verified] == [t["id"] for t in plain]
            stops = [r["stop"] for records in races for r in records if r["type"] == "summary"]
            assert stops == 2 * ["eos" if plain[-1]["id"] in classroom.eos_ids else "length"]
            if limit == 150:
                drafted += sum(t["origin"] != "full" for t in verified)
                full += sum(
                    p["kind"] == "verify"
                    for r in races[1]
                    if r["type"] == "step"
                    for p in r["passes"]
                )
    most = {"prompt-lookup": 0, "mtp-verified": 1}.get(
        panel, 0.7 * (int(panel[-1]) - 1) if "tau" in panel else 0
    )
    assert drafted > most * full  # almost every draft of the late layers stands


def test_held_out_prompts_are_answered_at_every_cycle_length(classroom: Model):
    """A sample of what `eval` measures in full (the card has the figures); the bars here only tell
    a working model from a broken one.
    """
    panels = [parse_panel(text) for text in ("ar", "dmtd:tau=2", "dmtd:tau=4", "clp")]
    rows = evaluate(classroom, panels, held_out_tasks(7, 20), RaceSettings())["rows"]
    for row in rows:
        assert row["exact_match"] >= 0.75, row
    assert rows[0]["tokens_per_full_pass"] == 1 and rows[1]["tokens_per_full_pass"] > 1.5
    assert rows[3]["mean_span"] > 1.5 and rows[3]["audit_agreement"] > 0.97
