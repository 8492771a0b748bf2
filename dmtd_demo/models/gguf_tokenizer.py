"""The tokenizer and the chat template of a GGUF file, rebuilt as the original model had them."""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, processors
from tokenizers import pre_tokenizers as pre
from transformers import PreTrainedTokenizerFast

from dmtd_demo.errors import UserError
from dmtd_demo.models.ends import MARKS
from dmtd_demo.models.gguf_header import File

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5

QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")


def _split(pattern: str) -> pre.PreTokenizer:
    return pre.Sequence([pre.Split(Regex(pattern), "isolated"), pre.ByteLevel(False, False, False)])


# By `tokenizer.ggml.pre`, how the original splits text before its merges, and whether it composes
# accents first (NFC), which no file says. What is not here would be split wrongly without a word.
PRE_TOKENIZERS = {
    "qwen2": (_split(QWEN2), normalizers.NFC()),
    "smollm": (pre.Sequence([pre.Digits(True), pre.ByteLevel(False, True, True)]), None),
    "llama-bpe": (_split(LLAMA3), None),
}


def tokenizer_of(file: File) -> PreTrainedTokenizerFast | None:
    """The file's tokenizer; None where it has none. Raises UserError."""
    tokens, types = _tokens(file)
    if not tokens:
        return None
    kind, split = (str(file.metadata.get(f"tokenizer.ggml.{key}")) for key in ("model", "pre"))
    if kind != "gpt2" or split not in PRE_TOKENIZERS:
        raise file.refuse(
            "needs a byte-level tokenizer (gpt2) with one of the pre-tokenizers "
            f"{', '.join(PRE_TOKENIZERS)}; got {kind[:80]!r} with {split[:80]!r}"
        )
    bpe = Tokenizer(_bpe(file, tokens, types, ignore_merges=split == "llama-bpe"))
    bpe.pre_tokenizer, normalizer = PRE_TOKENIZERS[split]
    if normalizer is not None:
        bpe.normalizer = normalizer
    bpe.decoder = decoders.ByteLevel()
    for token, type_ in zip(tokens, types):
        if type_ == CONTROL:
            bpe.add_special_tokens([AddedToken(token, normalized=False, special=True)])
        elif type_ == USER_DEFINED:
            bpe.add_tokens([AddedToken(token, normalized=False)])
    for id_, (token, type_) in enumerate(zip(tokens, types)):
        if type_ in (CONTROL, USER_DEFINED) and bpe.encode(token).ids != [id_]:
            raise file.refuse(f"needs its token {token[:80]!r} to be the one id {id_}; it is not")
    special = {}
    for name in ("bos", "eos", "unknown", "padding"):
        named = _id(file, name, tokens)
        if named is not None:
            special[f"{name[:3]}_token"] = tokens[named]
    if file.metadata.get("tokenizer.ggml.add_bos_token") and "bos_token" in special:
        bos = special["bos_token"]
        bpe.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokens.index(bos))]
        )
    template = file.metadata.get("tokenizer.chat_template")
    if not isinstance(template, (str, type(None))):
        raise file.refuse(f"needs text for its chat template; got {str(template)[:80]}")
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        chat_template=template,
        clean_up_tokenization_spaces=False,
        **special,
    )


def eos_ids(file: File) -> frozenset[int]:
    """Every id that ends a text: the file names one or two, and chat models know more."""
    tokens, types = _tokens(file)
    ends = {i for i, (t, kind) in enumerate(zip(tokens, types)) if kind == CONTROL and t in MARKS}
    named = (_id(file, key, tokens) for key in ("eos", "eot", "eom"))
    return frozenset(ends | {id_ for id_ in named if id_ is not None})


def _bpe(file: File, tokens: list[str], types: list[int], ignore_merges: bool) -> models.BPE:
    vocabulary = {t: id_ for id_, (t, kind) in enumerate(zip(tokens, types)) if kind != UNUSED}
    if len(vocabulary) < sum(kind != UNUSED for kind in types):
        raise file.refuse("needs every token once; it has one twice")
    merges = _list(file, "merges", str)
    pairs = [tuple(merge.split(" ")) for merge in merges]
    try:
        return models.BPE(vocabulary, pairs, ignore_merges=ignore_merges)  # type: ignore[arg-type]
    except Exception as error:  # tokenizers raises its own, for pairs and tokens that do not fit
        reason = " ".join(str(error).split())[:200]
        raise file.refuse(f"needs merges of two of its tokens each; got: {reason}") from None


def _tokens(file: File) -> tuple[list[str], list[int]]:
    tokens = _list(file, "tokens", str)
    types = _list(file, "token_type", int) or [NORMAL] * len(tokens)
    if len(types) != len(tokens):
        raise file.refuse(f"needs a type for each of {len(tokens):,} tokens; got {len(types):,}")
    return tokens, types


def _list(file: File, key: str, kind: type) -> list[Any]:
    value = file.metadata.get(f"tokenizer.ggml.{key}", [])
    if not isinstance(value, list) or value and type(value[0]) is not kind:
        raise file.refuse(f"needs tokenizer.ggml.{key} to be a list of {kind.__name__}")
    return value


def _id(file: File, key: str, tokens: list[str]) -> int | None:
    value = file.metadata.get(f"tokenizer.ggml.{key}_token_id")
    if value is not None and (type(value) is not int or not 0 <= value < max(len(tokens), 1)):
        raise UserError(f"{file.name} needs {key}_token_id to be one of its tokens; got {value}")
    return value if tokens else None
