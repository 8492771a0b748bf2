"""The ends of a text where tokenizer, config.json and generation_config.json disagree."""

import json
import shutil

import pytest

from dmtd_demo.errors import UserError
from dmtd_demo.models.loading import load
from dmtd_demo.race.panels import parse_panel
from dmtd_demo.race.race import race_ids
from dmtd_demo.race.settings import RaceSettings


@pytest.fixture
def folder(model_folder, tmp_path):
    return shutil.copytree(model_folder, tmp_path / "copy")


def write(path, **changes):
    held = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**held, **changes}))


def test_every_id_that_a_file_names_ends_a_text(folder, small_tokenizer):
    im_end, endoftext = small_tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    write(folder / "config.json", eos_token_id=5)
    write(folder / "generation_config.json", eos_token_id=[7, 9])
    model = load(str(folder), threads=1)
    assert model.eos_ids == {5, 7, 9, im_end, endoftext}
    [said] = [reason for reason in model.reasons if "a text ends at" in reason]
    assert "config.json names" in said and f"the tokenizer names <|im_end|> ({im_end})" in said
    # the race ends at any of them, and its header says which
    free = RaceSettings(max_new_tokens=1, ignore_eos=True)
    [_, step, *_] = [r for batch in race_ids(model, PANEL, [[11]], free) for r in batch]
    first = step["tokens"][0]["id"]
    model.eos_ids = model.eos_ids | {first}
    records = [r for b in race_ids(model, PANEL, [[11]], RaceSettings(max_new_tokens=8)) for r in b]
    assert f"<|im_end|> ({im_end})" in records[0]["panels"][0]["ends"]
    assert records[-1]["stop"] == "eos" and records[-1]["tokens"] == 1 and records[-1]["text"] == ""


PANEL = [parse_panel("ar")]


def test_files_that_agree_say_nothing(model_folder):
    assert not any("ends at" in reason for reason in load(str(model_folder), threads=1).reasons)


@pytest.mark.parametrize(
    "file,value,got",
    [
        ("config.json", "x", "'x'"),
        ("config.json", 151643, "151,643"),
        ("generation_config.json", -1, "-1"),
        ("generation_config.json", [0, True], "True"),
        ("generation_config.json", [[0]], r"\[0\]"),
        ("generation_config.json", {"a": 1}, "{'a': 1}"),
        ("generation_config.json", 2.0, "2.0"),
    ],
)
def test_an_end_that_is_no_token_is_named(folder, file, value, got):
    write(folder / file, eos_token_id=value)
    with pytest.raises(UserError, match=f"eos_token_id in .*{file} needs to be a token id.*{got}$"):
        load(str(folder))
