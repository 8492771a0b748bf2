"""GGUF files against the modules they were written from, against transformers' own load of them,
and with everything wrong that a file can have."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from dmtd_demo.errors import UserError
from dmtd_demo.models import checkpoint, gguf, gguf_tokenizer, gguf_weights
from dmtd_demo.models.loading import load
from dmtd_demo.training.any_model import DMTDSettings, train_dmtd
from gguf_files import write
from tiny import SHAPE, tiny_module

IDS = [5, 17, 60, 42, 9, 5, 17, 60, 96, 0, 1]
WIDE = {"hidden_size": 64, "intermediate_size": 96, "initializer_range": 0.1}  # whole blocks of 32
TEXTS = [
    "The quick brown fox, it's 12345 years old.",
    "emoji: 👩‍👩‍👧 🏁 naïve café",
    "decomposed: cafe\u0301 and a\u030angstro\u0308m",
    "中文分词 テスト 한국어",
    "def f(x):\n\treturn  x ** 2   # twice\n\n\n",
    "<|im_start|>user\nHi<|im_end|>\n<|endoftext|> <|im_start",
    "<think>a</think><tool_call>",
    " leading  and   trailing   ",
    "I'LL we'Re\r\n\r\nnow",
]


def llama(tied: bool, **changes) -> LlamaForCausalLM:
    torch.manual_seed(1)
    config = LlamaConfig(
        **{**SHAPE, **WIDE, **changes}, num_hidden_layers=3, tie_word_embeddings=tied
    )
    return LlamaForCausalLM._from_config(config, attn_implementation="sdpa").eval()


def module_of(architecture: str, tied: bool = True, **changes):
    if architecture == "llama":
        return llama(tied, **changes)
    # transformers' own loader knows no head size of qwen3 but 128
    size = {"head_dim": 128} if architecture == "qwen3" else {}
    return tiny_module(architecture, tied, layers=3, **{**WIDE, **size, **changes})


@torch.no_grad()
def logits(module) -> torch.Tensor:
    return module(torch.tensor([IDS])).logits


def loaded(path, **settings):
    return load(str(path), **{"dtype": "float32", "trainable": True, **settings}).backbone.module


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", gguf.ARCHITECTURES)
def test_float32_is_the_module_it_was_written_from(architecture, tied, tmp_path):
    module = module_of(architecture, tied)
    path = write(tmp_path / "model.gguf", module, architecture)
    model = load(str(path), dtype="float32")
    assert model.name == "model" and model.folder == path and model.tokenizer is None
    assert torch.equal(logits(loaded(path)), logits(module))


@pytest.mark.parametrize(
    "kind",
    [Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q4_K,
     Kind.Q6_K],
)  # fmt: skip
@pytest.mark.parametrize("architecture", gguf.ARCHITECTURES)
def test_logits_are_those_of_transformers_own_load(
    architecture, kind, tmp_path, model_folder, small_tokenizer
):
    """Exactly, in float32. The K types' blocks are random: their package cannot write them."""
    size = {"hidden_size": 256, "intermediate_size": 256} if kind.name.endswith("K") else {}
    module = module_of(architecture, vocab_size=len(small_tokenizer), **size)
    path = write(
        tmp_path / "model.gguf",
        module,
        architecture,
        tokenizer=small_tokenizer,
        kinds=lambda name: kind,
    )
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="model.gguf", dtype=torch.float32
    )
    ours = loaded(path)
    assert torch.equal(logits(ours), logits(theirs))


@pytest.mark.parametrize(
    "metadata,rope",
    [
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
         {"rope_type": "linear", "factor": 4.0}),
        ({"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0,
          "rope.scaling.original_context_length": 64},
         {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}),
    ],
)  # fmt: skip
def test_rope_scaling_is_read(metadata, rope, tmp_path):
    module = module_of("qwen2", rope_parameters={**rope, "rope_theta": 1e6})
    metadata = {f"qwen2.{key}": value for key, value in metadata.items()}
    path = write(tmp_path / "model.gguf", module, "qwen2", metadata=metadata)
    plain = write(tmp_path / "plain.gguf", module, "qwen2")
    assert torch.equal(logits(loaded(path)), logits(module))
    assert not torch.equal(logits(loaded(plain)), logits(module))


def factors(head_dim: int, theta: float, factor: float) -> np.ndarray:
    """As llama.cpp's converter computes them for Llama 3.1 and later."""
    out = []
    for i in range(0, head_dim, 2):
        wavelength = 2 * np.pi * theta ** (i / head_dim)
        if wavelength < 8192 / 4:
            out.append(1.0)
        elif wavelength > 8192 / 1:
            out.append(factor)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            out.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(out, np.float32)


def test_llama_3_scaling_is_read_from_its_factors(tmp_path):
    rope = {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_theta": 500_000.0,
    }
    module = llama(True, head_dim=64, rope_parameters=rope)
    held = factors(64, 500_000.0, 32.0)
    path = write(tmp_path / "model.gguf", module, "llama", tensors={"rope_freqs.weight": held})
    assert torch.equal(logits(loaded(path)), logits(module))
    path = write(tmp_path / "m.gguf", module, "llama", tensors={"rope_freqs.weight": held * 1.1})
    with pytest.raises(UserError, match="needs the RoPE factors of Llama 3"):
        load(str(path))


@pytest.mark.parametrize("kind", gguf_weights.EXACT)
def test_four_bits_keep_the_levels_of_the_file(kind, tmp_path):
    """Dequantized, they are the very values; the packed product is exact up to its dtype."""
    module = llama(False, hidden_size=256, intermediate_size=256, vocab_size=96)
    path = write(tmp_path / "model.gguf", module, "llama", kinds=lambda name: kind)
    file = gguf.read(path)
    checked = 0
    for name, stored, shape in gguf.parameters(file, gguf.config_of(file)):
        held = gguf_weights.levels(file, file.tensors[stored], name)
        assert (held is None) == (len(shape) == 1)
        if held is not None:
            assert held.levels.max() == 15 and held.levels.min() == 0
            groups = (held.levels.float().view(shape[0], -1, 32) - 8) * held.step.T[..., None]
            dense = gguf_weights.dense(file, file.tensors[stored], name, torch.float32)
            torch.testing.assert_close(
                (groups + held.middle.T[..., None]).view(shape), dense, rtol=1e-5, atol=1e-6
            )
            checked += 1
    assert checked == 3 * 7 + 2


def test_the_fingerprint_is_that_of_the_same_weights_in_safetensors(tmp_path):
    module = module_of("qwen3", False)
    module.save_pretrained(tmp_path / "folder")
    path = write(tmp_path / "model.gguf", module, "qwen3")
    assert gguf_weights.fingerprint(gguf.read(path)) == checkpoint.check_weights(
        tmp_path / "folder"
    )
    for architecture in ("llama", "qwen2"):
        module = module_of(architecture)
        path = write(tmp_path / "model.gguf", module, architecture)
        file = gguf.read(path)
        state = {name: each[...] for name, each in gguf_weights.state(file, torch.float32).items()}
        for name, tensor in module.state_dict().items():
            if name in state:
                assert torch.equal(state[name], tensor)
        before = gguf_weights.fingerprint(file)
        with torch.no_grad():
            module.model.layers[1].self_attn.k_proj.weight[0, 3] += 1
        write(path, module, architecture)
        assert gguf_weights.fingerprint(gguf.read(path)) != before


def test_the_tokenizer_is_the_one_it_was_written_from(tmp_path, small_tokenizer):
    module = module_of("qwen3", vocab_size=len(small_tokenizer) + 7)  # rows that are no tokens
    path = write(tmp_path / "model.gguf", module, "qwen3", tokenizer=small_tokenizer)
    file = gguf.read(path)
    tokenizer = gguf_tokenizer.tokenizer_of(file)
    assert tokenizer.get_vocab() == small_tokenizer.get_vocab()
    assert tokenizer.get_added_vocab() == small_tokenizer.get_added_vocab()
    for text in TEXTS:
        ids = small_tokenizer(text).input_ids
        assert tokenizer(text).input_ids == ids
        assert tokenizer.decode(ids) == small_tokenizer.decode(ids)
    chat = [{"role": "user", "content": "Héllo <|im_end|>"}]
    assert tokenizer.apply_chat_template(chat, add_generation_prompt=True) == (
        small_tokenizer.apply_chat_template(chat, add_generation_prompt=True)
    )
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    ends = {small_tokenizer.convert_tokens_to_ids(t) for t in ("<|im_end|>", "<|endoftext|>")}
    assert gguf_tokenizer.eos_ids(file) == ends


def test_accents_are_composed_where_the_original_does_it(tmp_path, small_tokenizer):
    module = module_of("qwen3", vocab_size=len(small_tokenizer))
    found = {}
    for pre in gguf_tokenizer.PRE_TOKENIZERS:
        path = write(tmp_path / "m.gguf", module, "qwen3", tokenizer=small_tokenizer, pre=pre)
        tokenizer = gguf_tokenizer.tokenizer_of(gguf.read(path))
        found[pre] = tokenizer("e\u0301").input_ids == tokenizer("é").input_ids
    assert found == {"qwen2": True, "smollm": False, "llama-bpe": False}


def test_a_llama_3_tokenizer_takes_whole_words_and_begins_with_its_mark(tmp_path, small_tokenizer):
    """Words of its vocabulary before any merge, digits by threes."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(small_tokenizer.backend_tokenizer.to_str()),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )
    module = llama(True, vocab_size=len(tokenizer))
    begin = tokenizer.convert_tokens_to_ids("<|im_start|>")
    metadata = {"tokenizer.ggml.bos_token_id": begin, "tokenizer.ggml.add_bos_token": True}
    path = write(
        tmp_path / "m.gguf",
        module,
        "llama",
        tokenizer=tokenizer,
        pre="llama-bpe",
        metadata=metadata,
    )
    ours = gguf_tokenizer.tokenizer_of(gguf.read(path))
    assert ours("Hi").input_ids[0] == begin and ours.bos_token == "<|im_start|>"
    assert begin not in ours("Hi", add_special_tokens=False).input_ids
    model = json.loads(ours.backend_tokenizer.to_str())["model"]
    assert model["ignore_merges"] is True
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    for text in TEXTS:
        plain = ours(text, add_special_tokens=False).input_ids
        assert plain == theirs(text, add_special_tokens=False).input_ids


# --- what is wrong with a file is one sentence ---


@pytest.fixture(scope="module")
def good(tmp_path_factory, small_tokenizer):
    module = module_of("qwen2", vocab_size=len(small_tokenizer))
    return write(
        tmp_path_factory.mktemp("gguf") / "good.gguf", module, "qwen2", tokenizer=small_tokenizer
    )


def header_bytes(path) -> int:
    return min(tensor.offset for tensor in gguf.read(path).tensors.values())


@pytest.mark.parametrize(
    "damage,words",
    [
        (lambda data, h: data[:-1000], "bytes for its tensor .* it was cut off"),
        (lambda data, h: data[: h // 2], "of its header.* cut off"),
        (lambda data, h: b"", "it has 0 in all"),
        (lambda data, h: b"PK\3\4" + data[4:], "is a zip archive: unpack it first"),
        (lambda data, h: b"\x89HDF" + data[4:], "begins with GGUF; got b'.x89HDF'"),
        (lambda data, h: data[:4] + struct.pack(">I", 3) + data[8:], "big-endian machines"),
        (lambda data, h: data[:4] + struct.pack("<I", 1) + data[8:], "version 2 or 3; got 1"),
        (
            lambda data, h: data[:8] + struct.pack("<Q", 2**60) + data[16:],
            "can hold: it is damaged",
        ),
        (
            lambda data, h: data[:16] + struct.pack("<Q", 2**60) + data[24:],
            "can hold: it is damaged",
        ),
        (lambda data, h: data[:24] + struct.pack("<Q", 2**62) + data[32:], "of its header; it has"),
        (lambda data, h: data[:h] + b"\xff" * (len(data) - h), "NaN or infinity"),
    ],
)
def test_damaged_bytes_are_told(good, damage, words, tmp_path):
    path = tmp_path / "bad.gguf"
    path.write_bytes(damage(good.read_bytes(), header_bytes(good)))
    with pytest.raises(UserError, match=words) as told:
        load(str(path))
    assert "\n" not in str(told.value) and str(path) in str(told.value)


def moved(path, name: str, change) -> None:
    """Write another offset, type or dimension for this tensor: the header's own fields."""
    data = bytearray(path.read_bytes())
    at = data.index(struct.pack("<Q", len(name)) + name.encode()) + 8 + len(name)
    (rank,) = struct.unpack_from("<I", data, at)
    change(data, at + 4, at + 4 + 8 * rank)
    path.write_bytes(data)


@pytest.mark.parametrize(
    "change,words",
    [
        (lambda d, dims, kind: struct.pack_into("<Q", d, kind + 4, 2**40), "was cut off"),
        (lambda d, dims, kind: struct.pack_into("<Q", d, kind + 4, 8), "multiple of 32"),
        (lambda d, dims, kind: struct.pack_into("<Q", d, kind + 4, 32), "do not overlap"),
        (lambda d, dims, kind: struct.pack_into("<I", d, kind, 77), "known types; .* type 77"),
        (lambda d, dims, kind: struct.pack_into("<Q", d, dims, 32), "to be .32, 64.|overlap"),
        (lambda d, dims, kind: struct.pack_into("<Q", d, dims, 0), "rows of whole blocks"),
        (lambda d, dims, kind: struct.pack_into("<Q", d, dims, 2**63), "overlap|cut off"),
        (lambda d, dims, kind: struct.pack_into("<I", d, dims - 4, 9), "1 to 4 dimensions"),
        (lambda d, dims, kind: struct.pack_into("<I", d, kind, Kind.F64), "F64|cut off|overlap"),
    ],
)
def test_a_wrong_tensor_entry_is_told(good, change, words, tmp_path):
    path = tmp_path / "bad.gguf"
    path.write_bytes(good.read_bytes())
    moved(path, "blk.1.attn_k.weight", change)
    with pytest.raises(UserError, match=words):
        load(str(path))


@pytest.mark.parametrize(
    "changes,words",
    [
        ({"tensors": {"blk.1.attn_k.weight": None}}, "the tensor blk.1.attn_k.weight .* not there"),
        ({"tensors": {"blk.1.attn_k.bias": None}}, "the tensor blk.1.attn_k.bias .* not there"),
        ({"tensors": {"token_embd.weight": None}}, "the tensor token_embd.weight"),
        ({"tensors": {"blk.3.attn_k.weight": np.ones((4, 4), np.float32)}}, "that nothing reads"),
        ({"tensors": {"output_norm.weight": np.ones(7, np.float32)}}, "to be .64.; got .7."),
        ({"tensors": {"output_norm.weight": np.full(64, np.nan, np.float32)}}, "holds NaN"),
        ({"metadata": {"qwen2.block_count": 2}}, "that nothing reads, blk.2"),
        ({"metadata": {"qwen2.block_count": 2**31 - 1}}, "blk.3.attn_norm.weight .* not there"),
        ({"metadata": {"qwen2.block_count": None}}, "1 or more, for block_count; got none"),
        ({"metadata": {"qwen2.block_count": "three"}}, "for block_count; got three"),
        ({"metadata": {"qwen2.embedding_length": 32}}, "needs the tensor token_embd.weight to be"),
        ({"metadata": {"qwen2.attention.head_count_kv": 3}}, "that the 3 key heads divide"),
        ({"metadata": {"qwen2.attention.value_length": 8}}, "to be the head size, 16; got 8"),
        ({"metadata": {"qwen2.rope.dimension_count": 8}}, "to be the head size, 16; got 8"),
        ({"metadata": {"qwen2.rope.scaling.type": "longrope"}}, "none, linear or yarn"),
        ({"metadata": {"qwen2.attention.layer_norm_rms_epsilon": float("nan")}}, "above 0"),
        ({"metadata": {"qwen2.logit_scale": 2.0}}, "qwen2.logit_scale.* not known here"),
        ({"metadata": {"qwen2.expert_count": 8}}, "mixture of experts"),
        ({"metadata": {"general.type": "adapter"}}, "hold a model; got 'adapter'"),
        ({"metadata": {"split.count": 3}}, "one part of several"),
        ({"metadata": {"tokenizer.ggml.pre": "gpt-4o"}}, "qwen2, smollm, llama-bpe; .* 'gpt-4o'"),
        ({"metadata": {"tokenizer.ggml.pre": None}}, "pre-tokenizers"),
        ({"metadata": {"tokenizer.ggml.pre": ["qwen2"]}}, "pre-tokenizers"),
        ({"metadata": {"tokenizer.ggml.tokens": 7}}, "tokens to be a list of str"),
        ({"metadata": {"tokenizer.ggml.tokens": [1] * 600}}, "tokens to be a list of str"),
        ({"metadata": {"tokenizer.chat_template": 7}}, "text for its chat template; got 7"),
        ({"metadata": {"general.alignment": "wide"}}, "alignment of 1 to"),
        ({"metadata": {"tokenizer.ggml.model": "llama"}}, "byte-level tokenizer"),
        ({"metadata": {"tokenizer.ggml.tokens": ["a", "b"]}}, "a token for each of"),
        ({"metadata": {"tokenizer.ggml.token_type": [1, 1]}}, "a type for each of"),
        ({"metadata": {"tokenizer.ggml.merges": ["a b c"]}}, "merges of two of its tokens"),
        ({"metadata": {"tokenizer.ggml.merges": ["qq zz"]}}, "merges of two of its tokens"),
        ({"metadata": {"tokenizer.ggml.eos_token_id": 10**6}}, "eos_token_id to be one of"),
    ],
)
def test_what_a_file_says_wrongly_is_told(small_tokenizer, changes, words, tmp_path):
    module = module_of("qwen2", vocab_size=len(small_tokenizer))
    path = write(tmp_path / "m.gguf", module, "qwen2", tokenizer=small_tokenizer, **changes)
    with pytest.raises(UserError, match=words):
        load(str(path))


@pytest.mark.parametrize("architecture", ["gemma3", "qwen2moe", "mamba"])
def test_another_architecture_is_told(architecture, tmp_path):
    path = write(tmp_path / "m.gguf", module_of("qwen2"), architecture)
    with pytest.raises(UserError, match=f"qwen2, qwen3, llama; got '{architecture}'"):
        load(str(path))


def test_a_folder_and_a_missing_file_are_told(tmp_path):
    (tmp_path / "d.gguf").mkdir()
    with pytest.raises(UserError, match="config.json|a file that can be read"):
        load(str(tmp_path / "d.gguf"))
    with pytest.raises(UserError, match="nothing.gguf"):
        load(str(tmp_path / "nothing.gguf"))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_mutated_header_is_read_or_refused(good, tmp_path_factory, data):
    """Whatever its bytes say: no other error, and no memory or time that it asks for."""
    path = tmp_path_factory.mktemp("fuzz") / "m.gguf"
    content = bytearray(good.read_bytes())
    end = header_bytes(good)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(4, end - 9))
        new = data.draw(
            st.one_of(
                st.binary(min_size=1, max_size=8),
                st.sampled_from([0, 1, 2**31, 2**32, 2**62, 2**63, 2**64 - 1]).map(
                    lambda n: struct.pack("<Q", n)
                ),
            )
        )
        content[at : at + len(new)] = new
    path.write_bytes(content[: data.draw(st.sampled_from([len(content), end, end // 3]))])
    try:
        file = gguf.read(path)
        gguf_tokenizer.tokenizer_of(file)
        gguf_tokenizer.eos_ids(file)
        for each in gguf_weights.state(file, torch.bfloat16).values():
            each[...]
        gguf_weights.fingerprint(file)
    except UserError as error:
        assert "\n" not in str(error)


def test_trained_for_dmtd_it_becomes_a_folder(tmp_path, small_tokenizer):
    module = tiny_module("qwen2", vocab_size=len(small_tokenizer), max_position_embeddings=512)
    path = write(tmp_path / "tiny.gguf", module, "qwen2", tokenizer=small_tokenizer)
    model = load(str(path), dtype="float32", threads=1)
    (tmp_path / "data.txt").write_text("Once upon a time. " * 20)
    settings = DMTDSettings(data=str(tmp_path / "data.txt"), steps=1, split="E0D2", batch=1)
    train_dmtd(model, tmp_path, settings)
    made = load(str(tmp_path / "model"), threads=1)
    assert str(made.split) == "E0D2" and made.eos_ids == model.eos_ids
    assert made.tokenizer.encode("What is 3?") == model.tokenizer.encode("What is 3?")
