"""`eval` as a judge of language: how likely `ar` itself finds a text, by depth and kind of request."""

from __future__ import annotations

import json

import pytest
import torch

from dmtd_demo.measure.evaluation import evaluate, nats, read_tasks
from dmtd_demo.race.panels import parse_panel
from dmtd_demo.race.settings import RaceSettings
from tiny import tiny_model


def test_nats_are_those_of_the_plain_model():
    model = tiny_model("qwen3")
    prompt, text = [5, 9, 3, 7], torch.randint(0, 97, (30,)).tolist()
    logits = model.backbone.module(torch.tensor([prompt + text])).logits[0, 3:-1]
    wanted = -logits.log_softmax(-1).gather(-1, torch.tensor(text)[:, None]).sum().item()
    assert nats(model, prompt, text) == pytest.approx(wanted, rel=1e-4)


def test_every_panel_is_judged_by_kind_of_request(small_tokenizer, tmp_path):
    model = tiny_model(tokenizer=small_tokenizer, vocab_size=len(small_tokenizer), addons=True)
    lines = [
        {"messages": [{"role": "user", "content": f"Say {i}"}], "answer": "x", "family": family}
        for i, family in enumerate(("code", "lists", "code"))
    ]
    # the last answer of a whole conversation is the one that is wanted
    lines.append({"messages": [*lines[0]["messages"], {"role": "assistant", "content": "y"}]})
    path = tmp_path / "tasks.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    tasks = read_tasks(str(path), 9)
    assert tasks[-1][1:] == (lines[0]["messages"], "y")
    panels = [parse_panel(text) for text in ("ar", "clp:threshold=0", "mtp-verified")]
    settings = RaceSettings(max_new_tokens=12, ignore_eos=True)
    ar, clp, verified = evaluate(model, panels, tasks, settings)["rows"]
    # of a random model, whose heads say anything; 12 tokens are 1, 5, 5 and a last one
    assert ar["nats"] == verified["nats"] < clp["nats"]
    assert ar["accepted"] == [] and len(clp["accepted"]) == 4 and clp["accepted"] == [0.6667] * 4
    assert set(clp["by_family"]) == {"all", "code", "lists"}
    assert clp["by_family"]["code"]["prompts"] == 2
    assert clp["by_family"]["code"]["tokens_per_full_pass"] > 2
