"""The training pass of `classroom-hybrid` against transformers' own Qwen3.5.

And its MTP module against a recomputation pair by pair.
"""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.models.qwen3_5.modeling_qwen3_5 import (
    Qwen3_5DecoderLayer,
    Qwen3_5RMSNorm,
    Qwen3_5TextRotaryEmbedding,
    torch_recurrent_gated_delta_rule,
)

from dmtd_demo.backbone.split import Split
from dmtd_demo.cli.command import main
from dmtd_demo.errors import TrainingError
from dmtd_demo.training.data import encode
from dmtd_demo.training.hybrid import data as hybrid_data
from dmtd_demo.training.hybrid.checkpoint import new_config, new_weights, save_model, stored
from dmtd_demo.training.hybrid.delta_rule import gated_delta_rule, unit_lower_inverse
from dmtd_demo.training.hybrid.judge import accepted_by_checking
from dmtd_demo.training.hybrid.model import Hybrid
from dmtd_demo.training.hybrid.run import Settings, start_weights, train
from dmtd_demo.training.hybrid.trainer import DEPTH, Trainer
from dmtd_demo.training.world import held_out
from dmtd_demo.training.world.mix import held_out_examples, training_examples

TOKENIZER = "assets/classroom"


def rule_inputs(n: int, same_keys: bool = False) -> list[torch.Tensor]:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, n, 3, width) for width in (16, 16, 24))
    if same_keys:
        k = k[:, :1].expand_as(k).contiguous()
    return [
        q,
        k,
        v,
        -torch.rand(2, n, 3) * (0.001 if same_keys else 1),
        torch.rand(2, n, 3) * (0.02 if same_keys else 1) + (0.97 if same_keys else 0),
    ]


@pytest.mark.parametrize(
    "chunk, n, same_keys", [(16, 64, False), (32, 96, False), (64, 256, False), (64, 128, True)]
)
def test_rule_and_its_gradients_equal_the_recurrent_form(chunk, n, same_keys):
    ours, theirs = (
        [t.clone().requires_grad_() for t in rule_inputs(n, same_keys)] for _ in range(2)
    )
    out = gated_delta_rule(*ours, chunk)
    wanted, _ = torch_recurrent_gated_delta_rule(*theirs, use_qk_l2norm_in_kernel=True)
    assert torch.allclose(out, wanted, atol=2e-5)
    pull = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1))
    for a, b in zip(
        torch.autograd.grad((out * pull).sum(), ours),
        torch.autograd.grad((wanted * pull).sum(), theirs),
    ):
        assert (a - b).norm() <= (1e-3 if same_keys else 1e-4) * b.norm()


def test_inverse():
    a = torch.rand(5, 3, 64, 64).tril(-1) / 4
    assert torch.allclose(
        unit_lower_inverse(a) @ (a + torch.eye(64)), torch.eye(64).expand_as(a), atol=1e-4
    )


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    config = new_config(2048, tokenizer.eos_token_id, tokenizer.pad_token_id)
    weights = new_weights(config, 0)
    generator = torch.Generator().manual_seed(5)
    # norms that are not zero
    weights = {
        name: t + 0.05 * torch.randn(t.shape, generator=generator) for name, t in weights.items()
    }
    folder = tmp_path_factory.mktemp("hybrid")
    save_model(config, weights, tokenizer, folder)
    return folder, Hybrid(config, {name: t.float() for name, t in stored(weights).items()})


def test_saved_model_is_an_ordinary_qwen(tiny):
    folder, ours = tiny
    model, facts = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert type(model).__name__ == "Qwen3_5ForCausalLM"
    assert not facts["missing_keys"] and all(
        key.startswith("mtp.") for key in facts["unexpected_keys"]
    )
    assert (
        max(file.stat().st_size for file in folder.glob("*.safetensors")) < 10_000_000
        and sum(file.stat().st_size for file in folder.iterdir()) < 20_500_000
    )
    assert (
        sum(
            name.startswith("mtp.")
            for name in json.loads((folder / "model.safetensors.index.json").read_text())[
                "weight_map"
            ]
        )
        == 15
    )
    # three texts packed into one row, each of them alone
    generator = torch.Generator().manual_seed(1)
    parts = [torch.randint(0, 2024, (n,), generator=generator) for n in (70, 41, 17)]
    ids = torch.cat(parts)[None]
    texts = torch.cat([torch.full_like(part, i) for i, part in enumerate(parts)])[None]
    h, _, _ = ours.hidden(ids, texts, torch.ones_like(ids, dtype=torch.bool), torch.float32)
    wanted = torch.cat([model(part[None]).logits for part in parts], 1)
    assert (ours.logits(h) - wanted).abs().max() < 2e-4 * wanted.abs().max()


def test_drafts_equal_the_module_pair_by_pair(tiny):
    _, ours = tiny
    config, n = ours.config, 64
    config._attn_implementation = "eager"
    layer, rope = (
        Qwen3_5DecoderLayer(config, config.layer_types.index("full_attention")),
        Qwen3_5TextRotaryEmbedding(config),
    )
    layer.load_state_dict(
        {
            k.removeprefix("mtp.layers.0."): v
            for k, v in ours.weights.items()
            if k.startswith("mtp.layers.0.")
        }
    )

    def normed(x, name):
        module = Qwen3_5RMSNorm(config.hidden_size)
        module.load_state_dict({"weight": ours.weights[f"mtp.{name}.weight"]})
        return module(x)

    def apply(pairs):  # [(m, embedded)]: the module over the whole list, its last state
        m, embedded = (torch.stack([pair[i] for pair in pairs])[None] for i in (0, 1))
        u = F.linear(
            torch.cat(
                [normed(embedded, "pre_fc_norm_embedding"), normed(m, "pre_fc_norm_hidden")], -1
            ),
            ours.weights["mtp.fc.weight"],
        )
        size = u.shape[1]
        mask = torch.full((1, 1, size, size), float("-inf")).triu(1)
        return normed(
            layer(u, position_embeddings=rope(u, torch.arange(size)[None]), attention_mask=mask),
            "norm",
        )[0, -1]

    ids = torch.randint(0, 2024, (1, n), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        h, embedded, mask = ours.hidden(
            ids, torch.zeros_like(ids), torch.ones_like(ids, dtype=torch.bool), torch.float32
        )
        drafts = ours.drafts(h, embedded, mask, 3)
        for t in (0, 20, 50):
            pairs = [(h[0, i], embedded[0, i + 1]) for i in range(t + 1)]
            for depth in range(3):
                m = apply(pairs)
                assert (drafts[depth][0, t] - m).abs().max() < 1e-4 * m.abs().max()
                pairs = [*pairs, (m, embedded[0, t + 2 + depth])]


def some_rows(count: int = 60):
    tokenizer = Tokenizer.from_file(f"{TOKENIZER}/tokenizer.json")
    source = training_examples("test")
    examples = [next(source)[1] for _ in range(count)]
    return examples, [hybrid_data.encoded(tokenizer, example, 2026) for example in examples]


def test_texts_are_encoded_as_everywhere():
    examples, rows = some_rows()
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    assert rows == [encode(tokenizer, example) for example in examples]


def test_packing_keeps_every_text_and_its_targets():
    _, rows = some_rows()
    rows = [row for row in rows if len(row.ids) <= hybrid_data.LENGTH]
    rng = random.Random(0)
    heads = [hybrid_data.drawn_heads(rng, row) for row in rows]
    assert all(mask[: row.answer + 1].all() for mask, row in zip(heads, rows)) and not all(
        mask.all() for mask in heads
    )
    found = set()
    for batch, where in hybrid_data.packed_rows(rows, heads, 4, 2, 2024):
        read = {
            (i // hybrid_data.LENGTH, i % hybrid_data.LENGTH): t
            for i, t in zip(batch.read.tolist(), batch.targets.tolist())
        }
        for number, row, at in where:
            found.add(number)
            ids = rows[number].ids
            assert (
                batch.ids[row, at : at + len(ids)].tolist() == ids
                and batch.heads[row, at : at + len(ids)].tolist() == heads[number].tolist()
            )
            assert len(set(batch.texts[row, at : at + len(ids)])) == 1
            for start, stop in rows[number].answers:
                for position in range(start - 1, stop - 1):
                    wanted = [
                        ids[position + 1 + i] if position + 1 + i < stop else -100 for i in range(3)
                    ]
                    assert read.pop((row, at + position)) == wanted
        assert not read
    assert found == set(range(len(rows)))


def test_updates_reach_every_weight_and_lower_the_loss():
    _, rows = some_rows(8)
    rows = [row for row in rows if len(row.ids) <= 300][:4]
    heads = [np.arange(len(row.ids)) % 2 == 0 for row in rows]
    room = hybrid_data.room(1)
    batch = hybrid_data.collate([list(zip(rows, heads))[:1]], DEPTH, hybrid_data.LENGTH, 2024, room)
    config = new_config(2048, 2026, 2024, layers=8)
    trainer = Trainer(config, new_weights(config, 0), 1, torch.device("cpu"))
    trainer.model.split = Split(8, 0, 4)
    before = trainer.optimizer.exact()
    losses = []
    for _ in range(4):
        trainer.step(batch, 1.0, everywhere=False)
        losses.append(trainer.figures.tolist())
    after = trainer.optimizer.exact()
    assert [name for name in after if torch.equal(before[name], after[name])] == []
    assert all(last < first for first, last in zip(losses[0][: 1 + DEPTH], losses[-1]))


def test_accepted_by_checking():
    text = [1, 2, 3, 4, 5, 6]
    # drafts[t] follow text[t], which is text[t + 1] on
    drafts = [[3, 4, 9], [3, 4, 9], [9, 9, 9], [5, 6, 0], [6, 0, 0], [0, 0, 0]]
    # 2 3, the checking pass gives 4, then 5 6
    assert accepted_by_checking(text, [[2, 3, 9], *drafts[1:]], 3) == (4, 2)
    # 2 and 3; 4 alone; 5 and 6
    assert accepted_by_checking(text, [[2, 3, 9], *drafts[1:]], 1) == (2, 3)


def test_what_is_asked_was_never_trained_on():
    asked = held_out_examples(7, 1000)
    contents = {example.content for _, example in asked}
    prompts = {example.messages[:-1] for _, example in asked}
    assert all(held_out(example.content) for _, example in asked) and len(prompts) == 1000
    source = training_examples("hybrid:0::0")  # what one of the processes turns into batches
    seen = 0
    for _ in range(4000):
        messages = next(source)[1].messages
        # a prompt is a whole task: alone, or after unrelated exchanges
        assert not any(
            messages[start:stop] in prompts
            for stop in range(1, len(messages), 2)
            for start in range(0, stop, 2)
        )
        seen += 1
    contents_seen = {next(source)[1].content for _ in range(4000)} - {None}
    assert seen == 4000 and len(contents_seen) > 1000
    assert not contents & contents_seen and not any(map(held_out, contents_seen))


def test_a_run_from_nothing_to_a_folder(tmp_path):
    settings = Settings(
        tmp_path,
        seconds=600,
        rows=1,
        updates=1,
        threads=1,
        device="cpu",
        save_seconds=0.0,
        prompts=4,
        validation=4,
        texts=4,
        lessons=2,
    )
    train(settings)
    results = json.loads((tmp_path / "training.json").read_text())
    assert results["steps"] == 1 and results["prompts"] == 4 and results["ar"] == 0.0
    card = json.loads((tmp_path / "model" / "addons" / "addons.json").read_text())
    assert card["addons"]["native_clp"]["k"] == DEPTH and card["base_fingerprint"]
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines if "stage" in line] == [
        "start",
        "ready",
        "saved",
        "trained",
        "done",
    ]
    AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    # what a run may go on from
    config = new_config(2048, 2026, 2024)
    again = start_weights(config, 0, tmp_path / "model")
    assert again.keys() == new_weights(config, 0).keys()


def test_what_is_not_finite_is_not_saved(tmp_path, monkeypatch):
    step = Trainer.step

    def broken(self, *given, **more):
        step(self, *given, **more)
        self.figures.fill_(float("nan"))

    monkeypatch.setattr(Trainer, "step", broken)
    settings = Settings(tmp_path, rows=1, updates=1, threads=1, device="cpu", prompts=4)
    with pytest.raises(TrainingError, match="not finite at step 1"):
        train(settings)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    "given, message",
    [
        (["--seconds", "0"], "--seconds needs a number above 0; got 0"),
        (["--rows", "0"], "--rows needs a number from 1 to 4,096; got 0"),
        (["--rows", str(10**9)], "--rows needs a number from 1 to 4,096; got 1000000000"),
        (["--max-steps", "0"], "--max-steps needs a whole number, 1 or more; got 0"),
        (["--resume"], "it takes no --resume"),
        (["--start", "assets/classroom"], "--start needs a folder with the 176 tensors"),
    ],
)
def test_what_a_run_cannot_do_is_said(tmp_path, capsys, given, message):
    output = ["--output", str(tmp_path)]
    assert main(["train", "classroom-hybrid", "--device", "cpu", *output, *given]) == 2
    assert message in capsys.readouterr().err
