"""The token ids that end a text.

Tokenizer, config.json and generation_config.json each name some, and where they disagree a model
was tuned by one of them alone: every one of them ends a text, and so do the marks that chat models
end a turn with.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from dmtd_demo.errors import UserError
from dmtd_demo.models.json_file import read_json

MARKS = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>")


def of_folder(
    folder: Path, raw: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase | None, rows: int
) -> tuple[frozenset[int], str | None]:
    """Collect the ends of a folder's model, and a sentence where its files disagree.

    raw: the fields of config.json. rows: of the embedding table. Raises UserError for an
    eos_token_id that names no token.
    """
    named = {"config.json": ids_of(raw.get("eos_token_id"), folder / "config.json", rows)}
    path = folder / "generation_config.json"
    if path.exists():
        value = read_json(path, str(folder)).get("eos_token_id")
        named["generation_config.json"] = ids_of(value, path, rows)
    marks: frozenset[int] = frozenset()
    if tokenizer is not None:
        own = tokenizer.eos_token_id
        # a tokenizer may know more tokens than the model has rows: those never come
        named["the tokenizer"] = frozenset([own] if isinstance(own, int) and own < rows else [])
        vocabulary = tokenizer.get_vocab()
        marks = frozenset(
            vocabulary[mark] for mark in MARKS if mark in vocabulary and vocabulary[mark] < rows
        )
    ends = marks.union(*named.values())
    said = {ids for ids in named.values() if ids}
    return ends, disagreement(named, ends, tokenizer) if len(said) > 1 else None


def ids_of(value: object, path: Path, rows: int) -> frozenset[int]:
    """The ids that a file's eos_token_id names: one, a list of them, or none where it is null.

    Raises UserError.
    """
    ids = value if isinstance(value, list) else [] if value is None else [value]
    for id_ in ids:
        if type(id_) is not int or not 0 <= id_ < rows:
            got = f"{id_:,}" if type(id_) is int else repr(id_)[:80]
            raise UserError(
                f"eos_token_id in {path} needs to be a token id from 0 to {rows - 1:,}, or a list "
                f"of such; got {got}"
            )
    return frozenset(ids)


def named(ids: frozenset[int], tokenizer: PreTrainedTokenizerBase | None) -> list[str]:
    """Each id in words, in order: its text and its number."""
    words = []
    for id_ in sorted(ids):
        text = None if tokenizer is None else tokenizer.convert_ids_to_tokens(id_)
        words.append(f"{text} ({id_})" if isinstance(text, str) else str(id_))
    return words


def disagreement(
    sources: Mapping[str, frozenset[int]],
    ends: frozenset[int],
    tokenizer: PreTrainedTokenizerBase | None,
) -> str:
    """Say which ids end a text where the files name different ones."""
    parts = [
        f"{source} names {' and '.join(named(ids, tokenizer)) or 'none'}"
        for source, ids in sources.items()
    ]
    return f"a text ends at any of {', '.join(named(ends, tokenizer))}: {', '.join(parts)}"
