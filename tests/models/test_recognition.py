"""Broken configs, each with its whole cause, and what only looks like a checkpoint."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from dmtd_demo.errors import UserError
from dmtd_demo.models.finding import find
from dmtd_demo.models.loading import load


@pytest.fixture
def folder(model_folder, tmp_path):
    return shutil.copytree(model_folder, tmp_path / "copy")


def edit(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refusal(folder) -> str:
    with pytest.raises(UserError) as caught:
        load(str(folder), threads=1)
    words = str(caught.value)
    assert "\n" not in words and "report" not in words and not words.endswith(":"), words
    return words


@pytest.mark.parametrize(
    "changes,words",
    [
        (dict(vocab_size=602), "vocab_size says 602, the table has 600 rows"),
        (dict(hidden_size=64), "hidden_size says 64, the table has 32 columns"),
        (
            dict(intermediate_size=50),
            "intermediate_size says 50, layers.0.mlp.gate_proj.weight has 48",
        ),
        (
            dict(num_hidden_layers=6, layer_types=None),
            "num_hidden_layers says 6, the files hold 4 layers",
        ),
        (dict(head_dim=8), r"q_proj.weight needs the shape \[32, 32\]; the files have \[64, 32\]"),
        (
            dict(pad_token_id=151643),
            "pad_token_id needs to be a token id from 0 to 599.*got 151,643",
        ),
        (dict(hidden_size="wide"), "hidden_size needs a whole number from 1 .*got 'wide'"),
        (dict(hidden_size=10**9), "hidden_size needs a whole number from 1 to 131,072"),
        (dict(num_hidden_layers=10**12), "num_hidden_layers needs a whole number"),
        (dict(num_attention_heads=0), "num_attention_heads needs a whole number"),
        (dict(num_attention_heads=3), "multiple of num_key_value_heads, 2; got 3"),
        (dict(head_dim=15), "even rotary dimension, but got `head_dim`=15"),
        (dict(rms_norm_eps="a"), "rms_norm_eps needs a number above 0; got 'a'"),
        (dict(rope_theta=-1.0), "rope_theta needs a number above 0; got -1.0"),
        (dict(layer_types=["full_attention"]), "layer"),
        (dict(layer_types=["other"] * 4), "The `layer_types` entries must be in"),
        (dict(tie_word_embeddings="yes"), "'tie_word_embeddings' expected bool, got str"),
        (dict(num_encoding_layers="x", num_decoding_layers=1), "num_encoding_layers needs to be"),
        (dict(model_type=["qwen3"]), "qwen2, qwen3"),
        (dict(model_type=None), "is 'None'"),
        (dict(hidden_act="relu2x"), "nothing by the name 'relu2x'"),
    ],
)
def test_a_config_that_does_not_fit_says_the_whole_cause(folder, changes, words):
    import re

    edit(folder, **changes)
    assert re.search(words, refusal(folder)), refusal(folder)


def test_an_empty_quantization_is_none(folder):
    for empty in ({}, None, []):
        edit(folder, quantization_config=empty)
        assert load(str(folder), threads=1).quantization == "none"


def test_tables_of_a_classifier_and_names_of_methods_are_not_read(folder):
    edit(folder, num_labels=10**9, id2label=5, torch_dtype="zz", to_dict=3, dtype=7)
    assert load(str(folder), threads=1).layers == 4


@pytest.mark.parametrize(
    "changes,method",
    [
        ({"quantization_config": {"quant_method": "awq"}}, "AWQ"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "GPTQ"),
        ({"quantization_config": {"quant_method": "fp8"}}, "FP8"),
        ({"quantization_config": {"quant_method": "compressed-tensors"}}, "compressed-tensors"),
        ({"compression_config": {"format": "pack-quantized"}}, "compressed-tensors"),
        ({"quantization": {"group_size": 64, "bits": 4}}, "MLX"),
        ({"quantization_config": "odd"}, "unknown"),
    ],
)
def test_a_quantized_config_is_named(folder, changes, method):
    edit(folder, **changes)
    assert f"quantized already ({method}): take the plain" in refusal(folder)


@pytest.mark.parametrize(
    "end,tensor,method",
    [
        ("qweight", torch.zeros(2, 2, dtype=torch.int32), "AWQ or GPTQ"),
        ("weight_packed", torch.zeros(2, 2, dtype=torch.int32), "compressed-tensors"),
        ("weight_scale_inv", torch.zeros(2, 2), "FP8"),
        ("weight", torch.zeros(2, 2).to(torch.float8_e4m3fn), "FP8"),
    ],
)
def test_quantized_tensors_are_named_where_the_config_is_silent(folder, end, tensor, method):
    held = load_file(folder / "model.safetensors")
    held[f"model.layers.0.self_attn.q_proj.{end}"] = tensor
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
    assert f"quantized already ({method})" in refusal(folder)


def test_files_of_older_quantizers_are_named(folder):
    (folder / "quantize_config.json").write_text("{}")
    assert "quantized already (GPTQ)" in refusal(folder)


def test_an_adapter_is_no_model(folder):
    (folder / "adapter_config.json").write_text(
        '{"peft_type": "LORA", "base_model_name_or_path": "Qwen/Qwen3-0.6B"}'
    )
    assert "beside a whole model: move that file away" in refusal(folder)
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    said = "is a LORA adapter of Qwen/Qwen3-0.6B, not a model: merge it"
    assert said in refusal(folder)
    (folder / "config.json").unlink()
    assert said in refusal(folder)
    (folder / "adapter_config.json").write_text("[")
    assert "is an adapter, not a model" in refusal(folder)


def test_a_root_of_the_hubs_cache_is_its_snapshot(model_folder, tmp_path):
    root = tmp_path / "hub" / "models--some--model"
    for name in ("aa", "bb", "cc"):
        shutil.copytree(model_folder, root / "snapshots" / name)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("bb")
    found = find(str(root))
    assert found.folder.name == "bb" and found.name == "some/model" and found.source is None
    assert find(str(root / "snapshots")).folder.name == "bb"
    assert find(str(root / "snapshots" / "cc")).name == "some/model"
    assert "cache of 1 models: give one by its hub id, such as some/model" in refusal(root.parent)
    for name in ("aa", "bb", "cc"):
        (root / "snapshots" / name / "config.json").unlink()
    assert "the download was not finished" in refusal(root)


def test_what_is_no_folder_of_a_model_says_what_to_give(folder, tmp_path):
    assert "its folder copy has one: give that" in refusal(tmp_path)
    weights = folder / "model.safetensors"
    assert "is a file of weights: give its folder" in refusal(weights)
    assert "one file of a model: give its folder" in refusal(folder / "config.json")
    weights.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")
    assert "git lfs pull" in refusal(folder)
    weights.rename(folder / "pytorch_model.bin")
    assert "they are in pytorch_model.bin" in refusal(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "m-2.safetensors"}}')
    assert "m-2.safetensors is not there" in refusal(folder)
    for name in ("a.gguf", "b.gguf"):
        (folder / name).write_bytes(b"GGUF")
    (folder / "config.json").unlink()
    assert "holds 2 GGUF files: give one of them" in refusal(folder)
    (folder / "b.gguf").unlink()
    assert "of its header" in refusal(folder)
    (folder / "a.gguf").rename(folder / "sha256-00")  # as Ollama names them
    assert "of its header" in refusal(folder / "sha256-00")
    assert "is none of them" in refusal(tmp_path / ("x" * 5000))
    assert "is none of them" in refusal("a\0b")


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer_config.json", "model.safetensors.index.json"]
)
def test_a_byte_order_mark_where_libraries_read_is_named(folder, name):
    path = folder / name
    path.write_bytes(b"\xef\xbb\xbf" + (path.read_bytes() if path.exists() else b"{}"))
    assert f"{name} needs to be UTF-8 without a byte-order mark" in refusal(folder)


def test_a_byte_order_mark_where_we_read_is_none(folder):
    for name in ("config.json", "generation_config.json"):
        (folder / name).write_bytes(b"\xef\xbb\xbf" + (folder / name).read_bytes())
    assert load(str(folder), threads=1).eos_ids


def test_what_the_tokenizers_print_stays_inside(folder, capfd):
    """Fields that they do not know they name on standard output, panics on standard error."""
    path = folder / "tokenizer.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps({**fields, "model": {**fields["model"], "odd": 1}}))
    load(str(folder), threads=1)
    fields["model"]["continuing_subword_prefix"] = "x" * 40
    path.write_text(json.dumps(fields))
    assert "the tokenizer in" in refusal(folder)
    assert tuple(capfd.readouterr()) == ("", "")
