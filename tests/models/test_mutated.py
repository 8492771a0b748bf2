"""Files with faults drawn by chance: each is read, or refused by one sentence."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import mutated
import pytest

import gguf_files
from tiny import tiny_module

CASES = 40


@pytest.fixture(scope="module")
def bases(tmp_path_factory, small_tokenizer, model_folder) -> list[Path]:
    return mutated_bases(tmp_path_factory.mktemp("bases"), small_tokenizer, model_folder)


def mutated_bases(folder: Path, tokenizer, qwen3: Path) -> list[Path]:
    """Small models of each kind."""
    shutil.copytree(qwen3, folder / "qwen3")
    config = json.loads((folder / "qwen3" / "config.json").read_text())
    config |= {"num_encoding_layers": 1, "num_thinking_layers": 2, "num_decoding_layers": 1}
    (folder / "qwen3" / "config.json").write_text(json.dumps(config))
    rows = len(tokenizer)
    tiny_module("qwen2", tied=False, layers=2, vocab_size=rows).save_pretrained(folder / "qwen2")
    tiny_module("qwen3_5_text", vocab_size=rows).save_pretrained(folder / "hybrid")
    for name in ("qwen2", "hybrid"):
        tokenizer.save_pretrained(folder / name)
    module = tiny_module("qwen2", layers=2, vocab_size=rows)
    file = gguf_files.write(folder / "tiny.gguf", module, "qwen2", tokenizer=tokenizer)
    return [folder / "qwen3", folder / "qwen2", folder / "hybrid", file]


def test_any_fault_is_read_or_refused_by_a_sentence(bases, tmp_path):
    rng = random.Random(0)
    said = []
    for number in range(CASES):
        base = rng.choice(bases)
        case = mutated.Case(base, rng.choice(mutated.files_of(base)), number)
        try:
            said.append(mutated.outcome(mutated.write(case, tmp_path / "case")))
        except BaseException as error:
            raise AssertionError(f"{case}: {type(error).__name__}: {error}") from error
    assert 1 < said.count("read") < CASES - 1
