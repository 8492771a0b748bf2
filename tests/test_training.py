"""The loop and the recipes, on a few tokens."""
from __future__ import annotations

import torch

import naive
from dmtd_demo.addons import MTPHeads
from dmtd_demo.loading import load
from dmtd_demo.split import Split
from dmtd_demo.training import clp, masking
from dmtd_demo.training.data import IGNORED, collate, encode
from dmtd_demo.training.loop import Recipe, rate_factor
from dmtd_demo.training.run import train_recipe
from dmtd_demo.training.world import held_out
from dmtd_demo.training.world.mix import COMPOSITIONAL, FAMILIES, held_out_examples, training_examples
from tiny import tiny_model


def test_the_masked_forward_is_the_formula(family):
    model = tiny_model(family[0], tied=family[1])
    for head_input in ("sum", "replace"):
        for tau in (1, 2, 3, 6):
            ids = torch.randint(0, 97, (1, 20))
            phase = torch.arange(20)[None] - 8
            heads = masking.cyclical_heads(phase, tau)
            ours = masking.masked_hidden(model.backbone, Split(4, 1, 2, head_input), ids, heads)[0]
            assert torch.allclose(ours, naive.hidden(model.backbone.module, ids[0].tolist(), heads[0].tolist(), 1, 2, head_input), atol=1e-4)


def test_the_phase_is_anchored_to_the_first_generated_token():
    heads = masking.cyclical_heads(torch.arange(10) - 4, 3).tolist()
    assert heads == [True] * 4 + [True, False, False, True, False, False]


def test_every_answer_is_scored_and_the_phase_is_the_last_ones(small_tokenizer):
    _, example = next((f, e) for f, e in training_examples("x") if len(e.messages) > 2)
    row = encode(small_tokenizer, example)
    messages = [{"role": role, "content": text} for role, text in example.messages]
    assert small_tokenizer.decode(row.ids) == small_tokenizer.apply_chat_template(messages, tokenize=False).rstrip("\n")
    batch = collate([row], 512, small_tokenizer.pad_token_id)
    scored = [t for t in batch.targets[0].tolist() if t != IGNORED]
    assert small_tokenizer.decode(scored) == "".join(text + "<|im_end|>" for role, text in example.messages if role == "assistant")
    assert batch.phase[0, row.answer] == 0 and batch.targets[0, row.answer - 1] == row.ids[row.answer]


def test_held_out_contents_are_never_trained_on():
    asked = held_out_examples(5, 200)
    assert all(held_out(e.content) for _, e in asked) and {f for f, _ in asked} == {f.name for f in COMPOSITIONAL}
    stream = training_examples("leak")
    assert all(e.content is None or not held_out(e.content) for _, (_, e) in zip(range(3000), stream))
    assert held_out_examples(5, 40) == held_out_examples(5, 40) != held_out_examples(6, 40)


def test_there_are_enough_families():
    assert len(FAMILIES) >= 12 and len(COMPOSITIONAL) >= 10


def test_labels_of_clp_are_the_correct_prefix():
    """By hand on one row: how many head predictions in a row equal the backbone's own greedy tokens."""
    model = tiny_model("qwen3", addons=True)
    heads: MTPHeads = model.addons["mtp_heads"]
    ids = torch.randint(0, 97, (1, 12))
    h = naive.hidden(model.backbone.module, ids[0].tolist(), [True] * 12, 0, 1, "replace")[None]
    greedy = model.backbone.logits(h).argmax(-1)
    predicted = model.backbone.logits(heads(h[0])).argmax(-1)
    for position in range(3):   # plant a correct prefix of this length at its position
        greedy[0, position * 4 + 1: position * 4 + 1 + position] = predicted[position * 4, :position]
        greedy[0, position * 4 + 1 + position] = (predicted[position * 4, position] + 1) % 97
    targets = torch.zeros_like(ids)
    lengths = clp.correct_prefix(model.backbone, heads, h, targets, greedy)
    assert [int(lengths[0, 4 * p]) for p in range(3)] == [0, 1, 2]


def test_calibration_follows_the_text_until_the_first_wrong_token():
    text = [10, 11, 12, 13, 14]
    guesses = [[12, 13, 99, 0], [0, 0, 0, 0], [14, 0, 0, 0], [0, 0, 0, 0]]   # read at text[0], text[1] …
    sure = [0.0, 0.0, 1.0, 0.0, 0.0]
    span = [0, 0]
    assert clp._first_wrong(text, guesses, [sure] * 4, 0.5, 4, span) == (2, 0)   # 11 + 12, 13; then 14 and the end
    assert span == [4, 2]
    greedy = [0.0, 0.0, 0.0, 1.0, 0.0]
    assert clp._first_wrong(text, guesses, [greedy] * 4, 0.5, 4, [0, 0]) == (3, 1)


def test_the_rate_warms_up_stays_and_falls():
    recipe = Recipe("x", torch.nn.Linear(1, 1), lambda b, p: None, lambda o: None, warm_up=0.1, decay=0.4)
    factors = [rate_factor(recipe, s / 100) for s in range(101)]
    assert factors[0] < 0.01 and factors[20] == factors[60] == 1 and factors[100] == 0
    assert all(a >= b for a, b in zip(factors[60:], factors[61:]))


def test_the_three_recipes_run_resume_and_make_a_model(tmp_path, monkeypatch):
    monkeypatch.setattr("dmtd_demo.training.run.TOKENIZER_CONVERSATIONS", 2000)
    monkeypatch.setattr("dmtd_demo.training.data.TOKENS_PER_BATCH", 512)
    monkeypatch.setattr("dmtd_demo.training.clp.VALIDATION_PROMPTS", 4)
    monkeypatch.setattr("dmtd_demo.training.run.clp.calibrate", lambda *a: {"threshold": 0.8, "validation": {}})   # an untrained model answers nothing exactly
    common = dict(seed=0, device="cpu", threads=1, checkpoint_seconds=1e9)
    train_recipe("classroom", tmp_path, 600, resume=False, **common)
    train_recipe("classroom", tmp_path, 1200, resume=True, **common)
    train_recipe("heads", tmp_path, 400, resume=False, **common)
    train_recipe("clp", tmp_path, 400, resume=False, **common)
    model = load(str(tmp_path / "model"))
    assert model.split == Split(12, 0, 3, "replace") and model.tau == 4 and model.context == 8192 and model.trained_length == 512
    assert model.has("mtp_heads") and model.has("clp") and model.addon_facts["clp"]["threshold"] == 0.8
    assert max(p.stat().st_size for p in (tmp_path / "model").rglob("*")) < 10_000_000
    log = (tmp_path / "log.jsonl").read_text().splitlines()
    assert len(log) == 2
