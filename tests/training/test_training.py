"""The loop and the recipes, on a few tokens."""

from __future__ import annotations

import itertools
import json
import random

import pytest
import torch

import naive
from dmtd_demo.backbone.split import Split
from dmtd_demo.decoders import DECODERS
from dmtd_demo.decoders.clp import accepted_length
from dmtd_demo.errors import UserError
from dmtd_demo.measure import curves
from dmtd_demo.models.addons import MTPHeads
from dmtd_demo.models.loading import load
from dmtd_demo.race.panels import make_decoder, parse_panel
from dmtd_demo.sampling import Sampler
from dmtd_demo.training import calibrate, classroom, clp, cycles, heads, masking
from dmtd_demo.training.corpus import WORLD_NAME
from dmtd_demo.training.data import IGNORED, Batch, Row, collate, encode
from dmtd_demo.training.features import Features
from dmtd_demo.training.loop import Progress, Recipe, Run, rate_factor, train
from dmtd_demo.training.run import Training, train_recipe
from dmtd_demo.training.world import held_out
from dmtd_demo.training.world.mix import (
    COMPOSITIONAL,
    FAMILIES,
    held_out_examples,
    training_examples,
)
from tiny import tiny_model
from written import ANYWHERE


def test_the_masked_forward_is_the_formula(family):
    model = tiny_model(family[0], tied=family[1])
    for head_input in ("sum", "replace"):
        for tau in (1, 2, 3, 6):
            ids = torch.randint(0, 97, (1, 20))
            phase = torch.arange(20)[None] - 8
            heads = masking.cyclical_heads(phase, tau)
            ours = masking.masked_hidden(model.backbone, Split(4, 1, 2, head_input), ids, heads)[0]
            assert torch.allclose(
                ours,
                naive.hidden(
                    model.backbone.module, ids[0].tolist(), heads[0].tolist(), 1, 2, head_input
                ),
                atol=1e-4,
            )


def test_the_phase_is_anchored_to_the_first_generated_token():
    heads = masking.cyclical_heads(torch.arange(10) - 4, 3).tolist()
    assert heads == [True] * 4 + [True, False, False, True, False, False]


def test_every_answer_is_scored_and_the_phase_is_the_last_ones(small_tokenizer):
    _, example = next((f, e) for f, e in training_examples("x") if len(e.messages) > 2)
    row = encode(small_tokenizer, example)
    messages = [{"role": role, "content": text} for role, text in example.messages]
    assert small_tokenizer.decode(row.ids) == small_tokenizer.apply_chat_template(
        messages, tokenize=False
    ).rstrip("\n")
    batch = collate([row], 512, small_tokenizer.pad_token_id)
    scored = [t for t in batch.targets[0].tolist() if t != IGNORED]
    assert small_tokenizer.decode(scored) == "".join(
        text + "<|im_end|>" for role, text in example.messages if role == "assistant"
    )
    assert (
        batch.phase[0, row.answer] == 0 and batch.targets[0, row.answer - 1] == row.ids[row.answer]
    )


def test_held_out_contents_are_never_trained_on():
    asked = held_out_examples(5, 200)
    assert all(held_out(e.content) for _, e in asked) and {f for f, _ in asked} == {
        f.name for f in COMPOSITIONAL
    }
    stream = training_examples("leak")
    assert all(
        e.content is None or not held_out(e.content) for _, (_, e) in zip(range(3000), stream)
    )
    assert held_out_examples(5, 40) == held_out_examples(5, 40) != held_out_examples(6, 40)


def test_there_are_enough_families():
    assert len(FAMILIES) >= 12 and len(COMPOSITIONAL) >= 10


def test_labels_of_clp_are_the_correct_prefix():
    """By hand on one row: how many head predictions in a row equal the backbone's own greedy
    tokens.
    """
    model = tiny_model("qwen3", addons=True)
    heads: MTPHeads = model.addons["mtp_heads"]
    ids = torch.randint(0, 97, (1, 12))
    h = naive.hidden(model.backbone.module, ids[0].tolist(), [True] * 12, 0, 1, "replace")[None]
    greedy = model.backbone.logits(h).argmax(-1)
    predicted = model.backbone.logits(heads(h[0])).argmax(-1)
    for position in range(3):  # plant a correct prefix of this length at its position
        greedy[0, position * 4 + 1 : position * 4 + 1 + position] = predicted[
            position * 4, :position
        ]
        greedy[0, position * 4 + 1 + position] = (predicted[position * 4, position] + 1) % 97
    targets = torch.zeros_like(ids)
    lengths = clp.prefix_length(clp.right_guesses(model.backbone, heads, h, targets, greedy))
    assert [int(lengths[0, 4 * p]) for p in range(3)] == [0, 1, 2]


def test_calibration_follows_the_text_until_the_first_wrong_token():
    text = [10, 11, 12, 13, 14]
    # read at text[0], text[1] …
    guesses = [[12, 13, 99, 0], [0, 0, 0, 0], [14, 0, 0, 0], [0, 0, 0, 0]]
    span = [0, 0]
    # 11 + 12, 13; then 14 and the end
    assert calibrate.follow(text, guesses, [2] * 4, span) == (2, 0)
    assert span == [4, 2]
    assert calibrate.follow(text, guesses, [3] * 4, [0, 0]) == (3, 1)


def test_random_cycles_are_cycles():
    phase = torch.arange(60)[None].repeat(30, 1) - torch.arange(30)[:, None]
    heads, whole = cycles.random_cycles(random.Random(0), phase)
    lengths = set()
    for row in range(30):
        assert heads[row, : row + 1].all()  # the prompt, and the first generated token
        starts = [i for i in range(row, 60) if heads[row, i]]
        gaps = [b - a for a, b in zip(starts, starts[1:])]
        assert max(gaps) <= cycles.LONGEST
        lengths |= set(gaps)
        assert [i for i, gap in zip(starts, gaps) if gap == 6] == [
            i for i in starts[:-1] if whole[row, i]
        ]
    assert lengths == set(range(1, 7))


def test_labels_of_adaptive_cycles_are_the_late_layers_correct_prefix():
    greedy = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8]])
    late = torch.tensor([[9, 2, 3, 9, 5, 6, 7, 8]])
    targets = torch.tensor([[0, 0, 0, 0, 0, 0, 0, IGNORED]])
    # past the end everything agrees
    assert cycles.late_prefix(late, greedy, targets)[0].tolist() == [2, 1, 0, 5, 5, 5, 5, 5]


def test_exact_match_by_tau_is_what_the_decoder_writes():
    """Rows whose answers were written by dmtd at one tau, and one of them changed by hand."""
    model = tiny_model("qwen3")
    for tau in (1, 3):
        made, rows = make_decoder(parse_panel(f"dmtd:tau={tau}")), []
        for start in range(6):
            prompt, text = [start, 5, 7], []
            for step in made.steps(model, prompt, Sampler()):
                text += [t.id for t in step.tokens]
                if len(text) >= 12:
                    break
            rows.append(Row(prompt + text[:12], [(3, 15)]))
        assert curves.exact_match_by_tau(model, rows, (tau,)) == {tau: 1.0}
        rows[0].ids[9] = (rows[0].ids[9] + 1) % 97
        assert curves.exact_match_by_tau(model, rows, (tau,)) == {tau: round(5 / 6, 4)}


def test_head_accuracy_is_the_plain_count():
    model = tiny_model("qwen3", addons=True)
    heads_, rows = (
        model.addons["mtp_heads"],
        [
            Row(
                torch.randint(0, 97, (12,), generator=torch.Generator().manual_seed(seed)).tolist(),
                [(4, 12)],
            )
            for seed in range(5)
        ],
    )
    counted = {i: [] for i in range(1, heads_.k + 1)}
    for row in rows:
        out = model.backbone.module.model(torch.tensor([row.ids])).last_hidden_state[0]
        own = model.backbone.module.lm_head(out).argmax(-1).tolist()
        for i in counted:
            for p in range(row.answer, len(row.ids) - 1 - i):
                counted[i].append(
                    model.backbone.logits(heads_(out[p : p + 1])[0, i - 1 : i]).argmax().item()
                    == own[p + i]
                )
    result = curves.head_accuracy(model, rows)["head"]
    assert result == [round(sum(c) / len(c), 4) for c in counted.values()]


def test_head_0_learns_the_next_token():
    """Its loss is that of the token after the position it reads: at weights of zero, the LM head's
    own.
    """
    model = tiny_model("qwen3")
    ids = torch.randint(0, 97, (2, 12))
    targets = torch.cat([ids[:, 1:], torch.full((2, 1), IGNORED)], 1)
    phase = torch.arange(12)[None].repeat(2, 1) - 3
    loss, _ = heads.head0_recipe(model.backbone, Split(4, 0, 1), "x").loss(
        Batch(ids, targets, phase, 24), Progress(0, 0, 0.0)
    )
    logits = model.backbone.module(ids).logits
    assert loss.item() == pytest.approx(
        torch.nn.functional.cross_entropy(
            logits[:, 2:-1].flatten(0, 1), ids[:, 3:].flatten()
        ).item(),
        abs=2e-2,
    )


def test_the_rate_warms_up_stays_and_falls():
    recipe = Recipe(
        "x", torch.nn.Linear(1, 1), lambda b, p: None, lambda o: None, warm_up=0.1, decay=0.4
    )
    factors = [rate_factor(recipe, s / 100) for s in range(101)]
    assert factors[0] < 0.01 and factors[20] == factors[60] == 1 and factors[100] == 0
    assert all(a >= b for a, b in zip(factors[60:], factors[61:]))


def test_a_run_that_ended_writes_the_result_that_it_was_killed_before(tmp_path):
    layer, batch = torch.nn.Linear(2, 1), Features(torch.ones(3, 2), torch.ones(3, 1))

    def loss(seen: Features, progress: Progress):
        return (layer(seen.h) - seen.labels).pow(2).mean(), {}

    def save(output):
        (output / "result").write_text(str(layer.weight.tolist()))

    recipe = Recipe("x", layer, loss, save)
    train(recipe, lambda position: itertools.repeat(batch), Run(tmp_path, steps=2))
    written = (tmp_path / "result").read_text()
    (tmp_path / "result").unlink()
    with torch.no_grad():
        layer.weight.zero_()
    train(recipe, lambda position: iter(()), Run(tmp_path, steps=2, resume=True))
    assert (tmp_path / "result").read_text() == written


def test_the_recipes_run_resume_and_make_a_model(tmp_path, monkeypatch):
    monkeypatch.setattr("dmtd_demo.training.run.TOKENIZER_CONVERSATIONS", 2000)
    monkeypatch.setattr("dmtd_demo.training.run.PROMPTS_PER_FAMILY", 1)
    monkeypatch.setattr("dmtd_demo.training.data.TOKENS_PER_BATCH", 512)
    facts = {"threshold": 0.8, "validation": {}}  # an untrained model answers nothing exactly
    monkeypatch.setattr("dmtd_demo.training.calibrate.spans", lambda *a: facts)
    monkeypatch.setattr("dmtd_demo.training.calibrate.PROMPTS", 2)
    monkeypatch.setattr("dmtd_demo.training.calibrate.DECODED_PROMPTS", 2)
    common = dict(seed=0, device="cpu", threads=1, checkpoint_seconds=1e9)
    train_recipe("classroom", Training(tmp_path, 600, resume=False, **common))
    train_recipe("classroom", Training(tmp_path, 1200, resume=True, **common))
    for name in ("heads", "clp", "gate", "head0", "adaptive", "mixed"):
        train_recipe(name, Training(tmp_path, 400, resume=False, **common))
    model = load(str(tmp_path / "model"))
    assert (
        model.split == Split(12, 0, 3, "replace")
        and model.tau == 4
        and model.context == 8192
        and model.trained_length == 512
    )
    assert (
        all(not DECODERS[name].missing(model) for name in ANYWHERE)
        and model.addon_facts["clp"]["threshold"] == 0.8
    )
    card = json.loads((tmp_path / "model" / "addons" / "addons.json").read_text())
    assert card["base_fingerprint"] == model.base.fingerprint and all(
        facts["data"] == WORLD_NAME for facts in card["addons"].values()
    )
    assert max(p.stat().st_size for p in (tmp_path / "model").rglob("*")) < 10_000_000
    log = (tmp_path / "log.jsonl").read_text().splitlines()
    assert len(log) == 2
    train_recipe(
        "classroom",
        Training(tmp_path / "more", 600, resume=False, start=str(tmp_path / "model"), **common),
    )
    assert load(str(tmp_path / "more" / "model")).has("mtp_heads")
    with pytest.raises(UserError, match="--start is for the recipe classroom"):
        train_recipe("heads", Training(tmp_path, 600, resume=False, start="x", **common))


@pytest.mark.parametrize("vanilla", [True, False])
def test_the_vanilla_twin_has_no_cycles(small_tokenizer, monkeypatch, vanilla):
    inner, seen = classroom.masked_hidden, []
    monkeypatch.setattr(
        classroom,
        "masked_hidden",
        lambda backbone, split, ids, at_head: (
            seen.append(bool(at_head.all())) or inner(backbone, split, ids, at_head)
        ),
    )
    joint = classroom.Joint(classroom.new_model(small_tokenizer, 0))
    rows = [encode(small_tokenizer, example) for _, example in held_out_examples(0, 4)]
    length = max(len(row.ids) for row in rows)
    recipe = classroom.recipe(joint, small_tokenizer, 0, vanilla=vanilla)
    loss, figures = recipe.loss(
        collate(rows, length, small_tokenizer.pad_token_id), Progress(1, 0, 0.9)
    )
    assert torch.isfinite(loss) and seen == [vanilla] and ("late_acc1" in figures) is not vanilla


def test_vanilla_is_for_the_recipe_classroom(tmp_path):
    with pytest.raises(UserError, match="--vanilla is for the recipe classroom"):
        train_recipe(
            "heads",
            Training(
                tmp_path,
                600,
                seed=0,
                resume=False,
                device="cpu",
                threads=1,
                checkpoint_seconds=1e9,
                vanilla=True,
            ),
        )


def test_an_addon_without_what_it_builds_on_is_an_error(model_folder, tmp_path):
    (tmp_path / "model").symlink_to(model_folder)
    for name, word in (("clp", "mtp_heads"), ("gate", "mtp_heads"), ("mixed", "adaptive")):
        with pytest.raises(UserError, match=f"training {name} needs {word}"):
            train_recipe(
                name,
                Training(
                    tmp_path,
                    400,
                    seed=0,
                    resume=False,
                    device="cpu",
                    threads=1,
                    checkpoint_seconds=1e9,
                ),
            )


def test_a_model_that_answers_nothing_exactly_has_no_threshold():
    model = tiny_model(addons=True)
    rows = [Row([5, 9, 2, 40, 40, 40, 40, 40], [(3, 8)])]
    acceptance = calibrate.Acceptance.of("clp", model.addons["clp"])
    with pytest.raises(calibrate.NothingExact, match="of 1 there were none"):
        calibrate.spans(model.backbone, Split(4, 0, 1), model.addons["mtp_heads"], rows, acceptance)


def test_a_threshold_needs_tokens_that_show_it():
    """Few tokens, or none that are right often enough: hardly anything is to be taken along."""
    sure, unsure = [0.02, 0.98], [0.9, 0.1]

    def found(texts: list[tuple[list[float], int]]) -> tuple[float, list[float]]:
        chances, right = zip(*texts)
        accept = lambda p, k, t: accepted_length(p, k, t, "cumulative")  # noqa: E731
        facts = calibrate.by_share(chances, right, 1, accept, 0.9)
        return facts["threshold"], facts["validation"]["by_threshold"]["0.5"]

    assert found([(sure, 1)] * 40 + [(unsure, 0)] * 60) == (0.3, [1.4, 1.0])
    assert found([(sure, 1)] * 10 + [(unsure, 0)] * 60) == (1.0, [1.1429, 1.0])
    assert found([(sure, 0)] * 40 + [(unsure, 0)] * 60) == (1.0, [1.4, 0.0])
