"""Folders in Hugging Face format, good and bad."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from dmtd_demo.backbone.split import Split
from dmtd_demo.errors import UserError
from dmtd_demo.models import threads
from dmtd_demo.models.loading import load, load_random
from tiny import tiny_module


@pytest.fixture
def folder(model_folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(model_folder, copy)
    return copy


def edit_config(folder, **changes):
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def test_a_folder_is_a_model(model_folder):
    model = load(str(model_folder))
    assert (
        model.layers == 4
        and model.context == 512
        and model.dtype == "float32"
        and model.device == "cpu"
        and model.split is None
    )
    assert model.tokenizer is not None and model.tokenizer.eos_token_id in model.eos_ids
    # of the device and the dtype: with one thread there is nothing to choose
    assert len(model.reasons) == 2


def test_a_qwen2_folder_too(tmp_path):
    tiny_module("qwen2", tied=False).save_pretrained(tmp_path / "q2")
    model = load(str(tmp_path / "q2"), dtype="bf16")
    assert model.dtype == "bfloat16" and model.tokenizer is None and model.eos_ids == frozenset()


def test_the_split_says_its_head_input(folder):
    edit_config(
        folder,
        num_encoding_layers=1,
        num_thinking_layers=1,
        num_decoding_layers=2,
        dmtd_head_input="replace",
    )
    assert load(str(folder)).split == Split(4, 1, 2, "replace")


def cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def drop(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("model.layers.2.mlp.up_proj.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def misshape(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = torch.ones(7)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def biased(folder):
    tensors = load_file(folder / "model.safetensors")
    rows = tensors["model.layers.1.mlp.up_proj.weight"].shape[0]
    tensors["model.layers.1.mlp.up_proj.bias"] = torch.ones(rows)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def not_finite(folder, name="model.norm.weight", value=float("nan")):
    tensors = load_file(folder / "model.safetensors")
    tensors[name].view(-1)[5] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def infinite(folder):
    not_finite(folder, "model.layers.1.self_attn.q_proj.weight", float("-inf"))


@pytest.mark.parametrize(
    "damage,word",
    [
        (lambda f: (f / "config.json").unlink(), "config.json, which is not there"),
        (lambda f: (f / "config.json").write_text("{"), "JSON"),
        (lambda f: (f / "config.json").write_text("[]"), "JSON object"),
        (lambda f: edit_config(f, model_type="llama"), "qwen2, qwen3.*'llama'"),
        (lambda f: edit_config(f, hidden_size="wide"), "does not describe"),
        (lambda f: (f / "model.safetensors").unlink(), "none are there"),
        (cut, "whole safetensors file"),
        (drop, "up_proj.weight is missing"),
        (misshape, "do not fit"),
        (biased, "biases that its layers do not add: model.layers.1.mlp.up_proj.bias"),
        (lambda f: edit_config(f, mlp_bias=True), "needs mlp_bias to be False"),
        (lambda f: edit_config(f, num_thinking_layers=3, num_decoding_layers=3), "add up to 4"),
        (lambda f: (f / "tokenizer.json").write_text("{"), "tokenizer in"),
        (
            lambda f: edit_config(
                f, rope_scaling={"rope_type": "dynamic", "factor": 2.0}, rope_parameters=None
            ),
            "RoPE",
        ),
        (lambda f: (f / "addons").mkdir(), "addons.json"),
        (
            lambda f: edit_config(f, model_type="qwen3_moe"),
            "'qwen3_moe', a mixture of experts: take another",
        ),
        (lambda f: edit_config(f, model_type="qwen2_5_vl"), "images and text"),
        (lambda f: edit_config(f, model_type="qwen3_5"), "needs an object text_config"),
        (lambda f: edit_config(f, model_type="qwen3_5_moe"), "a mixture of experts"),
        (lambda f: edit_config(f, model_type="qwen4_exp"), "not read here"),
        (lambda f: edit_config(f, model_type="qwen3_next"), "qwen3_5.*a mixture of experts"),
        (
            lambda f: edit_config(f, quantization_config={"quant_method": "awq"}),
            r"quantized already \(AWQ\): take the plain",
        ),
        (not_finite, "norm.weight.* holds NaN or infinity"),
        (infinite, "q_proj.* holds NaN"),
    ],
)
def test_a_folder_that_is_no_model_says_why(folder, damage, word):
    damage(folder)
    with pytest.raises(UserError, match=word):
        load(str(folder))


@pytest.mark.parametrize(
    "settings,word",
    [
        (dict(quantization="int3"), "none, nf4, nf4-single, int8"),
        (dict(dtype="int8"), "float32"),
        (dict(device="tpu"), "cpu"),
        (dict(threads=0), "1 to 1024"),
    ],
)
def test_a_setting_that_is_not_there(model_folder, settings, word):
    with pytest.raises(UserError, match=word):
        load(str(model_folder), **settings)


def test_a_tensor_that_nothing_reads_is_told(folder):
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {**tensors, "model.layers.4.mlp.up_proj.weight": torch.zeros(2, 2)},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    assert any(
        "1 of the tensors in the files are not read, model.layers.4.mlp.up_proj.weight" in reason
        for reason in load(str(folder)).reasons
    )


def test_an_unknown_name_lists_the_choices(tmp_path):
    with pytest.raises(
        UserError, match="classroom, classroom-hybrid, SmolLM2-135M-Instruct, Qwen2.5"
    ):
        load("no-such-model")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        load(str(tmp_path / "file"))


def test_random_weights_have_the_shape():
    model = load_random("classroom")
    assert model.parameters == 9_968_640 and model.tokenizer is None
    with pytest.raises(UserError, match="one of classroom"):
        load_random("nothing")


@pytest.mark.parametrize(
    "milliseconds,chosen",
    [
        ({1: 10, 2: 9, 4: 9.5}, 1),
        ({1: 10, 2: 6, 4: 5.5}, 2),
        ({1: 10, 2: 470, 4: 900}, 1),
        ({1: 40, 2: 21, 4: 11}, 4),
    ],
)
def test_more_threads_have_to_be_worth_it(model_folder, monkeypatch, milliseconds, chosen):
    monkeypatch.setattr(threads, "THREADS", 4)
    monkeypatch.setattr(
        threads,
        "step_seconds",
        lambda model, counts: {count: milliseconds[count] / 1000 for count in counts},
    )
    monkeypatch.setattr(threads.torch, "set_num_threads", lambda count: None)
    model = load(str(model_folder))
    assert (
        model.threads == chosen
        and f"{chosen} thread" in model.reasons[-1]
        and f"1 took {milliseconds[1]:.1f} ms" in model.reasons[-1]
    )
    assert load(str(model_folder), threads=3).threads == 3


def test_steps_are_timed_for_each_count(model_folder):
    model = load(str(model_folder))
    assert set(threads.step_seconds(model, [1])) == {1}
