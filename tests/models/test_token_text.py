"""The text of tokenizers that are not byte-level, one token at a time, and each one's own rules."""

import json
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, trainers
from tokenizers import pre_tokenizers as pre
from transformers import PreTrainedTokenizerFast

from dmtd_demo.errors import UserError
from dmtd_demo.models.loading import load
from dmtd_demo.models.token_text import TokenText, is_byte_level
from tiny import tiny_module

TEXTS = ["the cat sat on the mat, and the dog ran to the cat.\nhello  world"] * 9
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}<|im_end|>"


def sentencepiece(by_metaspace: bool) -> PreTrainedTokenizerFast:
    """As Llama 2's and Gemma's are written: a mark for each space, and bytes as a way out."""
    made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    if by_metaspace:
        made.pre_tokenizer = pre.Metaspace()
        made.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    else:
        replaced = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        made.normalizer = normalizers.Sequence(replaced)
        made.decoder = decoders.Sequence(
            [
                decoders.Replace("▁", " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                decoders.Strip(" ", 1, 0),
            ]
        )
    special = ["<unk>", "<|im_start|>", "<|im_end|>", *(f"<0x{i:02X}>" for i in range(256))]
    made.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=340, special_tokens=special, show_progress=False)
    )
    state = json.loads(made.to_str())
    state["added_tokens"] = state["added_tokens"][:3]  # bytes are no special tokens
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        unk_token="<unk>",
        eos_token="<|im_end|>",
        chat_template=TEMPLATE,
    )


KINDS = {by_metaspace: sentencepiece(by_metaspace) for by_metaspace in (True, False)}


@given(st.booleans(), st.text("the cat 你好𝄞.\n <>é", max_size=30))
@settings(max_examples=150, deadline=None)
def test_streamed_text_is_what_the_tokenizer_decodes(by_metaspace, text):
    tokenizer = KINDS[by_metaspace]
    ids = tokenizer(text, add_special_tokens=False).input_ids
    stream = TokenText(tokenizer).stream()
    pieces = [stream.push(i) for i in ids]
    assert "".join(pieces) == tokenizer.decode(ids)
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_token_alone_has_its_space_and_a_byte_its_number():
    tokenizer = KINDS[False]
    texts = TokenText(tokenizer)
    space, byte = tokenizer.convert_tokens_to_ids(["▁", "<0xE4>"])
    assert texts.piece(space) == " " and texts.piece(byte) == "\\xe4"
    assert texts.piece(10**6) == "" and texts.stream().push(10**6) == ""
    assert not is_byte_level(tokenizer)


@pytest.mark.parametrize("named", ["PreTrainedTokenizerFast", "Qwen2Tokenizer", "LlamaTokenizer"])
def test_a_qwen2_folder_keeps_the_rules_of_its_tokenizer(tmp_path, named):
    tokenizer = KINDS[False]
    tiny_module("qwen2", vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tokenizer_class": named}))
    model = load(str(tmp_path), threads=1)
    for text in TEXTS[0], "你 the cat":
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert model.tokenizer(text, add_special_tokens=False).input_ids == ids
        assert model.tokenizer.decode(ids) == text
        stream = TokenText(model.tokenizer).stream()
        assert "".join(map(stream.push, ids)) == text


def test_digits_are_cut_as_the_file_says(model_folder, tmp_path, small_tokenizer):
    """SmolLM2's rules, or Llama 3's, in a folder whose model type is Qwen's."""
    folder = shutil.copytree(model_folder, tmp_path / "copy")
    path = folder / "tokenizer.json"
    state = json.loads(path.read_text())
    state["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Digits", "individual_digits": False},
            {
                "type": "ByteLevel",
                "add_prefix_space": False,
                "trim_offsets": True,
                "use_regex": True,
            },
        ],
    }
    path.write_text(json.dumps(state))
    wanted = Tokenizer.from_str(json.dumps(state)).encode("12345 and the 67890!").ids
    got = load(str(folder), threads=1).tokenizer
    assert got("12345 and the 67890!", add_special_tokens=False).input_ids == wanted
    path.unlink()
    (folder / "vocab.json").unlink(missing_ok=True)
    (folder / "tokenizer.model").write_bytes(b"x")
    with pytest.raises(UserError, match="tokenizer.model alone"):
        load(str(folder))
