"""Add-ons for any Qwen: texts, hidden states computed once, training on frozen backbones, and
resuming after the process was killed.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tqdm import tqdm

import naive
from dmtd_demo.backbone.qwen import Backbone
from dmtd_demo.backbone.split import Split
from dmtd_demo.decoders import DECODERS
from dmtd_demo.errors import UserError
from dmtd_demo.models.addons import Base, CollocationLengthPredictor, methods_in
from dmtd_demo.models.chat import encode_chat
from dmtd_demo.models.loading import load
from dmtd_demo.race.panels import parse_panel
from dmtd_demo.race.race import race_ids
from dmtd_demo.race.settings import RaceSettings
from dmtd_demo.training import features
from dmtd_demo.training.any_model import Settings, train_addon
from dmtd_demo.training.clp import OwnHead
from dmtd_demo.training.conversations import LeftOut, messages_in
from dmtd_demo.training.corpus import ANSWER, read_rows
from dmtd_demo.training.data import IGNORED, Row
from dmtd_demo.training.features import Source
from tiny import tiny_model, tiny_module
from written import KIND

SETTINGS = dict(data=None, steps=None, seed=0, resume=False, checkpoint_seconds=1e9)


def write(path: Path, lines: list[dict]) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def said(*turns: str) -> dict:
    return {
        "messages": [
            {"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)
        ]
    }


@pytest.fixture
def data(tmp_path) -> str:
    return write(
        tmp_path / "data.jsonl",
        [said(f"What is {i} + 1?", f"{i} + 1 is {i + 1}. " * 4) for i in range(24)],
    )


def test_rows_of_messages_text_and_the_models_own_answers(model_folder, tmp_path, data):
    model = load(str(model_folder))
    end = model.tokenizer.eos_token_id
    row = read_rows(model, data, tmp_path / "own.jsonl")[3]
    prompt = encode_chat(model.tokenizer, [{"role": "user", "content": "What is 3 + 1?"}])
    assert row.ids == prompt + model.tokenizer("3 + 1 is 4. " * 4).input_ids + [
        end
    ] and row.answers == [(len(prompt), len(row.ids))]
    (tmp_path / "book.txt").write_text("Once upon a time. " * 200)
    rows = read_rows(model, str(tmp_path / "book.txt"), tmp_path / "own.jsonl")
    assert sum((row.ids for row in rows), []) == model.tokenizer(
        "Once upon a time. " * 200
    ).input_ids and rows[0].answers == [(1, 512)]
    assert not (tmp_path / "own.jsonl").exists()
    asked = write(
        tmp_path / "asked.jsonl", [said("What is a token?"), said("Hi", "Hello", "Sort b a")]
    )
    ids = encode_chat(model.tokenizer, said("What is a token?")["messages"])
    wanted = model.backbone.module.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids)),
        max_new_tokens=ANSWER,
        do_sample=False,
    )[0].tolist()
    for _ in range(2):  # the second time from the file, whose last line was cut short
        assert read_rows(model, asked, tmp_path / "own.jsonl")[0].ids == wanted
        with (tmp_path / "own.jsonl").open("a") as file:
            file.write('{"prompt": [1, 2')


def test_a_prompt_as_long_as_a_row_is_not_answered(model_folder, tmp_path, monkeypatch, capsys):
    model = load(str(model_folder))
    short, long = said("What is a token?"), said("What is a token? " * 20)
    longest = len(encode_chat(model.tokenizer, long["messages"]))
    monkeypatch.setattr("dmtd_demo.training.corpus.LONGEST", longest)
    own, lines = tmp_path / "own.jsonl", [short, long, said(long["messages"][0]["content"], "Yes")]
    (row,) = read_rows(model, write(tmp_path / "asked.jsonl", lines), own)
    assert row.answer < len(row.ids) and len(own.read_text().splitlines()) == 1
    assert f": 2 with a prompt of {longest:,} tokens or more" in capsys.readouterr().out


ASKED = {"role": "user", "content": "Which colour has the sea?"}
BLUE = {"role": "assistant", "content": "Blue."}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "look"}}]}
IMAGE = {"type": "image_url", "image_url": {"url": "data:"}}
# conversations in the wild, and what they are read as: turns, or why they are left out
WILD: list[tuple[list[dict[str, Any]], list[dict[str, str]] | str]] = [
    ([ASKED, BLUE], [ASKED, BLUE]),
    (
        [
            {
                "role": "user",
                "content": [{"type": "text", "text": "Which colour "}, "has the sea?"],
            },
            {"role": "assistant", "content": {"type": "output_text", "text": "Blue."}},
        ],
        [ASKED, BLUE],
    ),
    (
        [{"from": "Human", "value": ASKED["content"]}, {"from": "gpt", "value": "Blue."}],
        [ASKED, BLUE],
    ),
    (
        [
            {"role": "developer", "content": "Be brief.", "name": "me"},
            {**ASKED, "name": "you"},
            {**BLUE, "tool_calls": [], "refusal": None},
        ],
        [{"role": "system", "content": "Be brief."}, ASKED, BLUE],
    ),
    ([{"role": "system", "content": ""}, ASKED, BLUE], [ASKED, BLUE]),
    ([BLUE, ASKED, BLUE], [BLUE, ASKED, BLUE]),
    ([ASKED, {**BLUE, "content": None, "tool_calls": []}], "with an empty turn of the assistant"),
    ([ASKED, {"role": "assistant"}], "with an empty turn of the assistant"),
    ([{**ASKED, "content": " "}, BLUE], "with an empty turn of the user"),
    ([ASKED, {**BLUE, "content": []}], "with an empty turn of the assistant"),
    ([ASKED, CALL], "with a call of a tool"),
    ([ASKED, {**BLUE, "function_call": {"name": "look"}}], "with a call of a tool"),
    ([ASKED, BLUE, {"role": "tool", "content": "7"}, BLUE], "with a turn of a tool"),
    ([ASKED, {"role": "critic", "content": "No."}, BLUE], "with a turn of another role (critic)"),
    (
        [ASKED, {"role": "\ud800\x1b[1m", "content": "No."}],
        "with a turn of another role (\ufffd\ufffd[1m)",
    ),
    ([{**ASKED, "content": [{"type": "text", "text": "a"}, IMAGE]}, BLUE], "(image_url)"),
    ([ASKED, {**BLUE, "content": 7}], "with a part that is no text (int)"),
    ([{**ASKED, "content": "a\x00"}, BLUE], "with control characters, or a turn that is too long"),
    ([ASKED, {**BLUE, "content": "\ud83d"}], "with control characters, or a turn that is too long"),
    ([BLUE], "without a turn of a user"),
    ([], "without a turn of a user"),
    ([ASKED, BLUE, {"role": "system", "content": "Stop."}], "that end with a system prompt"),
]


def test_conversations_of_the_wild_are_each_a_decided_case(model_folder, tmp_path, capsys):
    model = load(str(model_folder))
    own = tmp_path / "own.jsonl"
    counts: dict[str, int] = {}
    for turns, wanted in WILD:
        if not isinstance(wanted, str):
            assert messages_in(turns) == wanted
            row = read_rows(model, write(tmp_path / "one.jsonl", [{"messages": turns}]), own)[0]
            assert model.tokenizer.decode(row.ids[row.answer :]) == "Blue.<|im_end|>"
            assert row.ids[: row.answer] == encode_chat(model.tokenizer, wanted[:-1])
            continue
        with pytest.raises(LeftOut) as reason:
            messages_in(turns)
        assert str(reason.value).endswith(wanted)
        counts[str(reason.value)] = counts.get(str(reason.value), 0) + 1
    assert capsys.readouterr().out == ""

    lines = [{"conversations": turns} for turns, _ in WILD] + [{"text": "Once upon a time."}]
    rows = read_rows(model, write(tmp_path / "all.jsonl", lines), own)
    assert len(rows) == 7 and "None" not in "".join(model.tokenizer.decode(r.ids) for r in rows)
    (tmp_path / "all.json").write_text(json.dumps(lines, indent=1))
    assert read_rows(model, str(tmp_path / "all.json"), own) == rows
    said_so = capsys.readouterr().out.splitlines()
    assert len(said_so) == 2 and said_so[0].startswith(f"left out of {tmp_path / 'all.jsonl'}: ")
    assert all(f"{count} {reason}" in said_so[0] for reason, count in counts.items())

    bad = [{"messages": turns} for turns, wanted in WILD if isinstance(wanted, str)]
    with pytest.raises(
        UserError, match="that can be learned; left out of .* with a call of a tool"
    ):
        read_rows(model, write(tmp_path / "bad.jsonl", bad), own)
    model.tokenizer.chat_template = (
        "{% if messages[0].role != 'user' %}{{ raise_exception('roles must alternate') }}{% endif "
        "%}" + model.tokenizer.chat_template
    )
    with pytest.raises(UserError, match="1 with an order of turns that the model's chat template"):
        read_rows(model, write(tmp_path / "one.jsonl", [{"messages": [BLUE, ASKED, BLUE]}]), own)
    assert not own.exists()


def test_features_are_the_formulas_states_and_labels():
    model = tiny_model("qwen3", addons=True)
    module, heads = model.backbone.module, model.addons["mtp_heads"]
    ids = torch.randint(0, 97, (20,)).tolist()
    row, start = Row(ids, [(8, 20)]), 7  # positions 7 .. 18 predict the answer's tokens
    h = naive.hidden(module, ids, [True] * 20, 0, 1, "replace")
    source = Source(model.backbone, Split(4, 0, 1), heads)
    seen = features.collect("heads", source, [row], 10**9)
    assert torch.allclose(seen.h, h[start:19], atol=1e-4)
    assert seen.labels.tolist() == [
        [ids[n + 1 + i] if n + 1 + i < 20 else -100 for i in range(1, 5)] for n in range(start, 19)
    ]
    assert features.collect("head0", source, [row], 10**9).labels.tolist() == [
        [ids[n + 1]] for n in range(start, 19)
    ]
    greedy, guessed = (
        module.lm_head(h).argmax(-1).tolist(),
        module.lm_head(heads(h)).argmax(-1).tolist(),
    )
    right = [
        [n + i >= 19 or guessed[n][i - 1] == greedy[n + i] for i in range(1, 5)]
        for n in range(start, 19)
    ]
    assert features.collect("gate", source, [row], 10**9).labels.tolist() == right
    lengths = [next((i for i, ok in enumerate(each) if not ok), 4) for each in right]
    assert features.collect("clp", source, [row], 10**9).labels.tolist() == lengths
    # room for no more than two rows
    assert len(features.collect("clp", source, [row] * 50, 3000).h) == 24


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_what_is_trained_is_learned_loaded_and_decoded(model_folder, tmp_path, data, quantization):
    model = load(str(model_folder), quantization=quantization)
    before = {name: t.clone() for name, t in model.backbone.module.state_dict().items()}
    with pytest.raises(
        UserError, match="training clp needs MTP heads in .*: run `train heads --model"
    ):
        train_addon("clp", model, tmp_path / "out", Settings(**{**SETTINGS, "data": data}))
    recipes = {"heads": 800, "head0": 60, "clp": 60, "gate": 20, "adaptive": 20, "mixed": 60}
    for name, steps in recipes.items():
        train_addon(
            name, model, tmp_path / "out", Settings(**{**SETTINGS, "data": data, "steps": steps})
        )
    # the scales of 4-bit matrices come back rounded where bitsandbytes laid the matrices out anew
    assert all(
        torch.equal(t, before[name])
        for name, t in model.backbone.module.state_dict().items()
        if ".weight." not in name
    )
    rows = read_rows(model, data, tmp_path / "x")[::10]  # those that were not trained on
    model = load(
        str(model_folder), quantization=quantization, addons=str(tmp_path / "out" / "addons")
    )
    seen = features.collect("heads", Source(model.backbone, Split.default(4)), rows, 10**9)
    guessed = model.backbone.logits(model.addons["mtp_heads"](seen.h)).argmax(-1)
    known = seen.labels != -100
    assert (guessed == seen.labels)[known].float().mean() > 0.3  # of some 600 tokens
    card = json.loads((tmp_path / "out" / "addons" / "addons.json").read_text())
    assert (
        card["base_fingerprint"] == model.base.fingerprint
        and card["addons"]["mtp_heads"]["data"] == "data.jsonl"
    )
    for panel in (
        "clp:threshold=0",
        "mtp-gate:threshold=0",
        "mtp-verified",
        "mtp-heads",
        "dmtd-adaptive:threshold=0",
        "mixed:threshold=0",
    ):
        records = [
            r
            for batch in race_ids(
                model,
                [parse_panel(panel)],
                [rows[0].ids[:20]],
                RaceSettings(max_new_tokens=12, ignore_eos=True),
            )
            for r in batch
        ]
        assert records[-1]["stop"] == "length"


def start(model_folder: Path, output: Path, data: str, **more: object) -> multiprocessing.Process:
    """The training in a process of its own; forked, so that it need not import everything again."""
    settings = {**SETTINGS, "data": data, "steps": 400, **more}

    def run() -> None:
        # what is forked shares the lock of the bars, and takes it along where it is killed
        tqdm.set_lock(threading.RLock())
        train_addon("heads", load(str(model_folder)), output, Settings(**settings))

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    return process


def test_a_killed_run_goes_on_bit_for_bit(model_folder, tmp_path, data):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    killed = start(model_folder, cut, data, checkpoint_seconds=0.05)
    log = cut / "log.jsonl"
    while not (log.exists() and log.read_text().endswith("\n")):
        assert killed.is_alive()
        time.sleep(0.01)
    os.kill(killed.pid, signal.SIGKILL)
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    reached = json.loads(log.read_text().splitlines()[-1])["step"]
    assert 0 < reached < 400
    for process in (start(model_folder, cut, data, resume=True), start(model_folder, whole, data)):
        process.join()
        assert process.exitcode == 0
    kept, resumed = (
        load_file(folder / "checkpoint" / "heads.safetensors") for folder in (whole, cut)
    )
    assert set(kept) == set(resumed) and all(
        torch.equal(t, resumed[name]) for name, t in kept.items()
    )
    assert (cut / "addons" / "mtp_heads.safetensors").read_bytes() == (
        whole / "addons" / "mtp_heads.safetensors"
    ).read_bytes()


@pytest.mark.parametrize(
    "name,lines,more,word",
    [
        (
            "classroom",
            [said("a", "b")],
            {},
            "with --model it needs one of heads, head0, clp, gate, adaptive, mixed",
        ),
        ("heads", [{"prompt": "x"}], {}, "line 1 needs to be a JSON object with messages"),
        ("heads", [], {}, "at least one conversation"),
        ("heads", [said("a", "b")], {"steps": 0}, "--max-steps needs"),
        ("heads", None, {"data": "nowhere.jsonl"}, "nowhere.jsonl"),
    ],
)
def test_bad_input_is_a_sentence(model_folder, tmp_path, name, lines, more, word):
    given = {} if lines is None else {"data": write(tmp_path / "d.jsonl", lines)}
    with pytest.raises(UserError, match=word):
        settings = Settings(**{**SETTINGS, **given, **more})
        train_addon(name, load(str(model_folder)), tmp_path, settings)


def test_a_predictor_for_a_models_own_head(small_tokenizer, tmp_path, data, monkeypatch):
    """Learns how many of the head's drafts are right, and mtp-native takes it along."""
    model = tiny_model(
        KIND,
        tokenizer=small_tokenizer,
        vocab_size=len(small_tokenizer),
        max_position_embeddings=512,
    )
    text, answer = [5, 9, 3, 7, 2, 8, 4], 3
    ids = torch.tensor([text])
    h = naive.hidden(model.backbone.module, text, [True] * 7, 0, 1, "replace")
    greedy = model.backbone.module.lm_head(h).argmax(-1)
    head = OwnHead(model.addons["native_mtp"], 2)
    own = torch.where(torch.arange(7) >= answer - 1, greedy, IGNORED)[None]
    right = head.right(h[None], ids, own, greedy[None])[0]
    guesses = head.head.guesses(h, ids[0], 2)
    for t in range(answer - 1, 5):
        assert right[t, 0] == (guesses[t, 0] == greedy[t + 1])
        assert right[t, 1] == (guesses[t, 1] == greedy[t + 2])
    assert right[5, 1] and right[6].all()  # past the end
    facts = {"threshold": 0.7, "validation": {}}  # a random model answers nothing exactly
    monkeypatch.setattr("dmtd_demo.training.calibrate.spans", lambda *a: facts)
    settings = Settings(**{**SETTINGS, "data": data, "steps": 5})
    train_addon("native_clp", model, tmp_path, settings)
    card = json.loads((tmp_path / "addons" / "addons.json").read_text())
    assert set(card["addons"]) == {"native_clp"} and card["addons"]["native_clp"]["k"] == 4
    model.addons["native_clp"] = CollocationLengthPredictor(model.backbone.hidden_size, 4)
    model.addon_facts["native_clp"] = card["addons"]["native_clp"]
    assert parse_panel("mtp-native").decoder in DECODERS
    options = DECODERS["mtp-native"].defaults(model)
    assert (options.k, options.threshold, options.rule) == (4, 0.7, "cumulative")
    with pytest.raises(UserError, match="needs a model with an MTP head of its own"):
        train_addon("native_clp", tiny_model(), tmp_path, settings)


def test_the_models_own_heads_go_on_in_its_dtype(
    small_tokenizer, tmp_path, data, monkeypatch, capsys
):
    """CLP learns from heads in float32; the panels of the page go on with those of the model. It
    goes with the heads that it knows: into its folder, and out of it.
    """
    model = tiny_model(
        addons=True,
        tokenizer=small_tokenizer,
        vocab_size=len(small_tokenizer),
        max_position_embeddings=512,
        dtype=torch.bfloat16,
    )
    heads = model.addons["mtp_heads"]
    facts = {"threshold": 0.7, "validation": {}}
    monkeypatch.setattr("dmtd_demo.training.calibrate.spans", lambda *a: facts)
    settings = Settings(**{**SETTINGS, "data": data, "steps": 3})
    train_addon("clp", model, tmp_path, settings)
    assert model.addons["mtp_heads"] is heads and heads.weight.dtype == torch.bfloat16
    folder = tmp_path / "addons"
    assert methods_in(folder) == {"clp", "mtp_heads"}
    assert torch.equal(load_file(folder / "mtp_heads.safetensors")["weight"], heads.weight)
    # what was begun goes on with what it began with
    other = replace(settings, seed=1, resume=True)
    with pytest.raises(UserError, match="--resume needs the settings .* seed 0; .* seed 1"):
        train_addon("clp", model, tmp_path, other)
    train_addon("heads", model, tmp_path, settings)
    # the same heads, saved once more, are no others
    train_addon("clp", model, tmp_path, settings)
    capsys.readouterr()
    train_addon("heads", model, tmp_path, replace(settings, resume=True))
    assert methods_in(folder) == {"clp", "mtp_heads"} and "before" not in capsys.readouterr().out
    train_addon("heads", model, tmp_path, replace(settings, seed=1))
    assert f"from {tmp_path}: clp, clp's checkpoint; train" in capsys.readouterr().out
    assert methods_in(folder) == {"mtp_heads"} and not list(folder.glob("clp*"))
    short = write(tmp_path / "short.jsonl", [{"text": "Hi"}])
    with pytest.raises(UserError, match="needs texts with tokens to foresee; those of short.jsonl"):
        train_addon("heads", model, tmp_path, replace(settings, data=short))
    with pytest.raises(UserError, match="there is none: start without --resume"):
        train_addon("clp", model, tmp_path, replace(settings, resume=True))
    model.base = Base("another", None, "beef")
    with pytest.raises(UserError, match="made for the base .*; this model is another"):
        train_addon("heads", model, tmp_path, settings)


def test_a_sampled_softmax_has_the_sum_of_the_whole_one_on_average():
    module = tiny_module("qwen3", vocab_size=9000)
    backbone = Backbone(module)
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 300, (64, 4), generator=generator)
    states = torch.randn(5, backbone.hidden_size, generator=generator)
    sampled = features._Sampled.of(backbone, labels)
    common = labels.unique()
    assert sampled is not None and torch.equal(sampled.number[common], torch.arange(len(common)))
    whole = backbone.logits(states).exp().sum(-1)
    drawn = [sampled.drawn(step)(states) for step in range(60)]
    torch.testing.assert_close(drawn[0][:, : len(common)], backbone.logits(states)[:, common])
    mean = torch.stack([logits.exp().sum(-1) for logits in drawn]).mean(0)
    torch.testing.assert_close(mean, whole, rtol=0.02, atol=0)
    # where the data has most of the vocabulary, the whole softmax is no dearer
    assert features._Sampled.of(Backbone(tiny_module("qwen3")), labels.remainder(97)) is None
