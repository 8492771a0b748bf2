"""A released DMTD checkpoint (docs/methods.md, section 2): a folder as its authors' code would save
it loads unmodified, and decodes by the formula.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import naive
from dmtd_demo.backbone.packed import parameters
from dmtd_demo.backbone.split import Split
from dmtd_demo.models.loading import load
from dmtd_demo.race.panels import parse_panel
from dmtd_demo.race.race import race, race_ids
from dmtd_demo.race.settings import RaceSettings
from tiny import tiny_module

# As transformers 4 wrote a Qwen3's config.json: the RoPE base beside the sizes, the dtype under its
# old name.
PUBLISHED = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 3,
    "hidden_act": "silu",
    "head_dim": 16,
    "hidden_size": 32,
    "initializer_range": 0.02,
    "intermediate_size": 48,
    "max_position_embeddings": 256,
    "max_window_layers": 4,
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "torch_dtype": "float32",
    "transformers_version": "4.51.3",
    "use_cache": True,
    "use_sliding_window": False,
}
REMOTE = {
    "AutoConfig": "modeling.Config",
    "AutoModelForCausalLM": "modeling.Theirs",
    "AutoTokenizer": ["modeling.Tokenizer", None],
}


def published(
    folder: Path, tokenizer, model_type: str, auto_map: bool, sharded: bool, tied: bool, late: int
):
    """Such a folder, with random weights; returns the module that it was saved from."""
    module = tiny_module(
        "qwen3",
        tied=tied,
        vocab_size=len(tokenizer),
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )
    module.save_pretrained(folder, max_shard_size="40KB" if sharded else "1GB")
    tokenizer.save_pretrained(folder)
    (folder / "modeling.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")
    config = {
        **PUBLISHED,
        "architectures": ["Theirs"],
        "model_type": model_type,
        "vocab_size": len(tokenizer),
        "tie_word_embeddings": tied,
        "num_encoding_layers": 0,
        "num_thinking_layers": 4 - late,
        "num_decoding_layers": late,
        "mtp_horizon": 3,
    }
    if auto_map:
        config["auto_map"] = REMOTE
        path = folder / "tokenizer_config.json"
        path.write_text(
            json.dumps(
                {
                    **json.loads(path.read_text()),
                    "auto_map": REMOTE,
                    "tokenizer_class": "TheirTokenizer",
                }
            )
        )
    (folder / "config.json").write_text(json.dumps(config))
    return module


def unasked(*_: object) -> str:
    raise AssertionError("someone was asked whether to run the folder's code")


@pytest.mark.parametrize("model_type", ["dmtd_qwen3", "qwen3_dmtd", "dmtd", "qwen3"])
@pytest.mark.parametrize("auto_map", [True, False], ids=["auto_map", "plain"])
@pytest.mark.parametrize(
    "sharded,tied,late", [(True, True, 1), (False, False, 2)], ids=["sharded", "whole"]
)
def test_it_loads_unmodified_and_decodes_by_the_formula(
    tmp_path, small_tokenizer, monkeypatch, model_type, auto_map, sharded, tied, late
):
    monkeypatch.setattr("builtins.input", unasked)
    module = published(tmp_path, small_tokenizer, model_type, auto_map, sharded, tied, late)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == sharded
    model = load(str(tmp_path), dtype="float32")
    assert (
        model.split == Split(4, 0, late, "sum")
        and model.tau == 3
        and 3 in model.eos_ids
        and model.parameters == parameters(module)
    )
    assert model.tokenizer.encode("What is 47 + 38?") == small_tokenizer.encode("What is 47 + 38?")
    prompt = [5, 17, 300, 42, 9]
    for panel, tau in (
        ("dmtd", 3),
        ("dmtd:tau=2", 2),
        ("dmtd:tau=4", 4),
        ("ar", 1),
        ("dmtd-spec", 1),
    ):
        records = [
            r
            for batch in race_ids(
                model,
                [parse_panel(panel)],
                [prompt],
                RaceSettings(max_new_tokens=24, ignore_eos=True, audit=False),
            )
            for r in batch
        ]
        ids = [token["id"] for r in records if r["type"] == "step" for token in r["tokens"]]
        assert ids == naive.dmtd(module, prompt, tau, 0, late, "sum", 24), panel
    assert list(
        race(
            model,
            [parse_panel("dmtd")],
            [[{"role": "user", "content": "hi"}]],
            RaceSettings(max_new_tokens=3),
        )
    )
    assert not (tmp_path / "ran").exists()


def test_pickled_weights_are_not_read(tmp_path, small_tokenizer):
    published(tmp_path, small_tokenizer, "dmtd", False, False, True, 1)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(
        ValueError, match="needs its weights in safetensors files; they are in pytorch_model.bin"
    ):
        load(str(tmp_path))
