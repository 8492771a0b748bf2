"""The command line: flags, output, exit codes."""

from __future__ import annotations

import ast
import gc
import json
import re
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import dmtd_demo
from dmtd_demo import compare as notebook
from dmtd_demo.__main__ import main
from dmtd_demo.cli.options import build_parser
from dmtd_demo.decoders import DECODERS, Decoder
from dmtd_demo.models.addons import CollocationLengthPredictor, MTPHeads, save_addon
from dmtd_demo.models.catalog import CATALOG
from dmtd_demo.models.loading import load
from dmtd_demo.race.race import _run as run_entries
from dmtd_demo.ui.stream import notes
from written import ANYWHERE

PACKAGE = Path(dmtd_demo.__file__).parent


@pytest.fixture
def run(capsys):
    def call(*arguments: str) -> tuple[int, str, str]:
        try:
            code = main(list(arguments))
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_generate_prints_the_text_and_the_record(run, model_folder):
    code, text, err = run(
        "generate",
        "--model",
        str(model_folder),
        "--decoder",
        "dmtd",
        "--set",
        "tau=3",
        "--prompt",
        "What is 3 + 4?",
        "--max-new-tokens",
        "12",
        "--ignore-eos",
    )
    assert code == 0 and not err
    code, lines, _ = run(
        "generate",
        "--model",
        str(model_folder),
        "--decoder",
        "dmtd",
        "--set",
        "tau=3",
        "--prompt",
        "What is 3 + 4?",
        "--max-new-tokens",
        "12",
        "--ignore-eos",
        "--json",
    )
    records = [json.loads(line) for line in lines.splitlines()]
    assert code == 0 and records[0]["type"] == "header" and records[-1]["type"] == "summary"
    assert records[-1]["text"] + "\n" == text and records[-1]["tokens"] == 12


def test_compare_races_its_panels(run, model_folder):
    code, lines, _ = run(
        "compare",
        "--model",
        str(model_folder),
        "--panel",
        "ar",
        "--panel",
        "dmtd:tau=2",
        "--prompt-ids",
        "1,2,3",
        "--max-new-tokens",
        "8",
        "--top",
        "2",
        "--json",
        "--seed",
        "3",
    )
    records = [json.loads(line) for line in lines.splitlines()]
    assert (
        code == 0
        and [p["spec"] for p in records[0]["panels"]] == ["ar", "dmtd:tau=2"]
        and records[0]["seed"] == 3
    )
    assert len([r for r in records if r["type"] == "summary"]) == 2


def test_no_panel_pays_for_a_full_collection(run, model_folder, monkeypatch):
    """Whole collections, of which the garbage collector itself makes none here, before the race
    begins.
    """
    collections: list[int] = []

    def counted(*entered):
        collections.append(gc.get_stats()[2]["collections"])
        return run_entries(*entered)

    monkeypatch.setattr("dmtd_demo.race.race._run", counted)
    model = load(str(model_folder))
    gc.disable()
    try:
        before = gc.get_stats()[2]["collections"]
        run(
            "compare",
            "--model",
            str(model_folder),
            "--panel",
            "ar",
            "--prompt-ids",
            "1,2,3",
            "--max-new-tokens",
            "2",
        )
        notebook("Hello", ["ar", "ar"], model, max_new_tokens=2)
    finally:
        gc.enable()
    assert collections == [before + 1, before + 2]


def test_bench_has_its_row(run, model_folder):
    code, out, _ = run(
        "bench",
        "--model",
        str(model_folder),
        "--context",
        "16",
        "--new",
        "12",
        "--rounds",
        "1",
        "--panel",
        "ar",
        "--panel",
        "dmtd:tau=3,split=E0D1",
        "--json",
    )
    result = json.loads(out)
    assert code == 0 and set(result) >= {"model", "machine", "rows"}
    ar, dmtd = result["rows"]
    assert ar["same_tokens_as_generate"] is True and ar["over_ar"] == 1.0 and ar["limit"] is None
    assert (
        dmtd["panel"] == "dmtd:tau=3,split=E0D1"
        and dmtd["options"] == {"tau": 3, "split": "E0D1"}
        and dmtd["limit"] > 0
        and dmtd["share_of_limit"] > 0
        and dmtd["over_generate"] > 0
    )
    assert all(dmtd[f"over_{way}"] > 0 for way in ("prompt_lookup", "early_exit"))
    layers, head = load(str(model_folder)).backbone.weight_bytes()
    assert ar["bytes_per_token"] == sum(layers) + head and ar["share_of_memory"] > 0
    # 11 tokens after the first: four full passes and seven late ones
    full, late = sum(layers) + head, layers[-1] + head
    assert dmtd["bytes_per_token"] == round((4 * full + 7 * late) / 11)


def test_bench_has_what_transformers_drafts_itself(run, model_folder, tmp_path):
    code, out, _ = run(
        "bench",
        "--model",
        str(model_folder),
        "--context",
        "16",
        "--new",
        "8",
        "--rounds",
        "1",
        "--panel",
        "dmtd:tau=2,split=E0D1",
        "--assistant",
        str(model_folder),
    )
    assert (
        code == 0
        and "generate, tokens/s: dynamic" in out
        and "early_exit" in out
        and "assistant" in out
        and "refill(2) E0D1" in out
        and "GB/s" in out
    )
    assert (
        run("bench", "--model", str(model_folder), "--new", "8", "--assistant", "classroom")[
            2
        ].count("vocabulary")
        == 1
    )


def test_eval_has_its_row(run, model_folder, tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text(
        "".join(
            json.dumps({"prompt": f"What is {i} + 1?", "answer": "x", "family": "sum"}) + "\n"
            for i in range(3)
        )
    )
    code, out, _ = run(
        "eval",
        "--model",
        str(model_folder),
        "--data",
        str(data),
        "--panel",
        "dmtd:tau=2",
        "--max-new-tokens",
        "10",
        "--json",
    )
    result = json.loads(out)
    (row,) = result["rows"]
    assert (
        code == 0
        and result["prompts"] == 3
        and row["exact_match"] == 0
        and row["exact_match_by_family"] == {"sum": 0}
        and row["relative"] is None
    )
    assert {
        "repetition_ratio",
        "audit_agreement",
        "mean_span",
        "tokens_per_full_pass",
        "plt",
    } <= set(row)


def test_what_takes_nothing_along_by_default_says_so(run, model_folder, tmp_path):
    """Where too few texts were there to find a threshold: at the command line, and as the page's note."""
    model = load(str(model_folder))
    h, folder = model.backbone.hidden_size, tmp_path / "addons"
    save_addon(folder, "mtp_heads", MTPHeads(h, 2), model.base, h)
    save_addon(folder, "clp", CollocationLengthPredictor(h, 2), model.base, h, threshold=1.0)
    given = ("--model", str(model_folder), "--addons", str(folder), "--panel", "ar")
    short = ("--prompt-ids", "1,2,3", "--max-new-tokens", "8")
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"prompt": "What is 1 + 1?", "answer": "x"}) + "\n")
    words = "takes nothing along: its default threshold is 1"
    given += ("--panel", "clp", "--panel", "clp:threshold=0.5")
    for command in (
        ("compare", *given, *short),
        ("eval", *given, "--data", str(data), "--max-new-tokens", "8"),
    ):
        code, out, err = run(*command)
        assert code == 0 and out.count(words) == out.count(f"clp {words}") == 1, (out, err)
    header, *_ = run("compare", *given, *short, "--json")[1].splitlines()
    note = {"text": "note.takes_nothing", "values": {"panel": 2, "decoder": "clp"}}
    assert note in notes([model, model], json.loads(header))


def test_models_says_what_each_takes_and_can_do(run):
    code, out, _ = run("models", "--json")
    listed = {m["name"]: m for m in json.loads(out)["models"]}
    assert code == 0 and list(listed) == list(CATALOG)
    assert (
        set(listed["classroom"]["decoders"]) == set(ANYWHERE)
        and not listed["classroom"]["missing"]
        and listed["classroom"]["here"]
    )
    qwen = listed["Qwen2.5-7B-Instruct"]
    assert (
        qwen["parameters"] == 7_615_616_512
        and qwen["decoders"] == ["ar", "dmtd", "dmtd-spec", "prompt-lookup"]
        and qwen["missing"]["clp"] == ["clp", "mtp_heads"]
    )
    assert (
        qwen["memory"]["nf4"]
        < qwen["memory"]["nf4-single"]
        < qwen["memory"]["int8"]
        < qwen["memory"]["none"]
    )
    code, out, _ = run("models")
    assert (
        code == 0
        and "clp, gate, head0, mixed, mtp_heads published for this model yet" in out
        and "ships with the app" in out
    )
    assert (
        len(re.findall(r"about [1-9]\d* minutes on an NVIDIA A10G, by estimate", out))
        == len(CATALOG) - 2
    )
    commands = [shlex.split(line)[3:] for line in out.splitlines() if "dmtd_demo train" in line]
    trained = Counter(build_parser().parse_args(words).model for words in commands)
    # of two models all add-ons ship with the app
    whole = ("classroom", "SmolLM2-135M-Instruct")
    assert trained == {name: 6 for name in CATALOG if name not in whole}


FOLDER = "<folder>"


@pytest.mark.parametrize(
    "arguments,word",
    [
        (["generate", "--model", "nix", "--prompt", "hi"], "catalog|one of classroom"),
        (["generate", "--model", FOLDER], "required"),
        (["generate", "--model", FOLDER, "--prompt", ""], "empty"),
        (["generate", "--model", FOLDER, "--prompt", "a\x01"], r"U\+0001"),
        (["generate", "--model", FOLDER, "--prompt", "a " * 50_000], "context of 512"),
        (["generate", "--model", FOLDER, "--prompt", "a" * 300_000], "200,000"),
        (["generate", "--model", FOLDER, "--prompt-ids", "1,x"], "whole numbers"),
        (["generate", "--model", FOLDER, "--prompt-ids", "1,999999"], "from 0 to"),
        (
            ["generate", "--model", FOLDER, "--prompt", "a", "--decoder", "foo"],
            "ar, dmtd, dmtd-spec, dmtd-adaptive, clp",
        ),
        (
            ["generate", "--model", FOLDER, "--prompt", "a", "--decoder", "dmtd", "--set", "tau"],
            "name=value",
        ),
        (
            [
                "generate",
                "--model",
                FOLDER,
                "--prompt",
                "a",
                "--decoder",
                "dmtd",
                "--set",
                "tau=17",
            ],
            "from 1 to 16",
        ),
        (["generate", "--model", FOLDER, "--prompt", "a", "--decoder", "clp"], "MTP heads"),
        (["generate", "--model", FOLDER, "--prompt", "a", "--temperature", "-1"], "temperature"),
        (["generate", "--model", FOLDER, "--prompt", "a", "--max-new-tokens", "0"], "1 or more"),
        (
            ["generate", "--model", FOLDER, "--prompt", "a", "--max-new-tokens", "many"],
            "invalid int",
        ),
        (["generate", "--model", FOLDER, "--prompt", "a", "--addons", "nowhere"], "addons.json"),
        (["compare", "--model", FOLDER, "--prompt", "a", "--panel", "dmtd:tau=x"], "whole number"),
        (["eval", "--model", FOLDER, "--data", "nowhere.jsonl"], "nowhere.jsonl"),
        (["eval", "--prompts", "0"], "from 1 to 100,000"),
        (["curves", "--prompts", str(10**9)], "from 1 to 100,000"),
        (["eval", "--random-weights", "classroom"], "no tokenizer"),
        (["bench", "--model", FOLDER, "--new", "1"], "2 or more"),
        (["bench", "--model", FOLDER, "--context", str(10**20)], "need to fit the context of"),
        (["nothing"], "invalid choice"),
        ([], "COMMAND"),
        (["train", "clp", "--output", "nowhere"], "no folder"),
        (["train", "classroom", "--tokens", "0.5"], "1 or more"),
        (["train", "classroom", "--tokens", "0"], "1 or more"),
        (["train", "classroom", "--tokens", "nan"], "--tokens needs a finite number"),
        (
            ["train", "classroom", "--checkpoint-seconds", "-1"],
            "--checkpoint-seconds needs a number",
        ),
        (["train", "data", "--model", FOLDER, "--batch", str(10**9)], "from 1 to 4,096"),
        (["train", "dmtd", "--model", FOLDER, "--batch", str(10**9)], "at most 65,536 rows"),
        (["train", "classroom", "--device", "gpu"], "--device needs to be cpu, or cuda"),
        (["train", "classroom", "--threads", "-3"], "from 1 to 1024"),
        (["train", "classroom", "--seed", "-1"], "seed needs"),
        (["train", "classroom-hybrid", "--device", "gpu"], "--device needs to be cpu, or cuda"),
        (["train", "all", "--model", FOLDER, "--minutes", "inf"], "--minutes needs a finite"),
        (["generate", "--random-weights", "foo", "--prompt-ids", "1"], "one of classroom"),
        (["generate", "--model", "someone/some-qwen", "--prompt", "a"], "cannot be reached"),
        (["push", "nowhere", "--to", "me/x"], "addons.json"),
    ],
)
def test_bad_input_is_one_line_and_code_2(run, model_folder, arguments, word):
    import re

    code, out, err = run(*(str(model_folder) if a is FOLDER else a for a in arguments))
    assert code == 2 and not out
    assert len(err.splitlines()) == 1 and re.search(word, err), err


# where an error is raised, and which commands can come there; elsewhere all that load a model
RAISED = {
    "cli/page.py": (),
    "cli/train.py": ("train",),
    "training/": ("train",),
    "server/": (),
    "measure/bench.py": ("bench",),
    "measure/evaluation.py": ("eval",),
    "measure/curves.py": ("curves",),
    "models/publishing.py": ("push",),
}
LOADING = ("generate", "compare", "draw", "eval", "curves", "bench")


def test_errors_name_options_that_their_commands_have():
    """A text that names commands itself, as in `eval --json`, needs one of those to have it."""
    (commands,) = build_parser()._subparsers._group_actions
    options = {
        name: {option for action in parser._actions for option in action.option_strings}
        for name, parser in commands.choices.items()
    }
    page = re.findall(r'"(--[a-z-]+)"', (PACKAGE / "cli/page.py").read_text())
    found = 0
    for path in sorted(PACKAGE.rglob("*.py")):
        at = next((at for at in RAISED if path.is_relative_to(PACKAGE / at)), None)
        for call in ast.walk(ast.parse(path.read_text())):
            if not isinstance(call, ast.Call) or getattr(call.func, "id", "") != "UserError":
                continue
            text = " ".join(
                part.value
                for part in ast.walk(call)
                if isinstance(part, ast.Constant) and isinstance(part.value, str)
            )
            named = [name for name in options if re.search(rf"\b{name}\b", text)]
            # one function for each command
            named += ["generate", "draw"] if path == PACKAGE / "cli/races.py" else []
            for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]", text):
                found += 1
                able = [name for name in options if option in options[name]]
                wanted = RAISED[at] if at else LOADING
                assert (
                    set(named) & set(able)
                    or (wanted and set(wanted) <= set(able))
                    or (not wanted and option in page)
                ), f"{path.name}: {option} of {wanted or 'the page'} in {text!r}"
    assert found > 40


def test_commands_that_users_are_told_have_the_options_that_they_are_told_with():
    (commands,) = build_parser()._subparsers._group_actions
    options = {
        f"-m dmtd_demo {name}": {o for action in parser._actions for o in action.option_strings}
        for name, parser in commands.choices.items()
    }
    page = (PACKAGE / "cli/page.py").read_text(encoding="utf-8")
    options["app.py"] = set(re.findall(r'"(--[a-z-]+)"', page))
    found = 0
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            text = "".join(
                str(part.value) if isinstance(part, ast.Constant) else "…" for part in parts
            )
            told = re.match(r"python (app\.py|-m dmtd_demo [a-z]+)", text)
            for option in re.findall(r" (--[a-z-]+)", text) if told else ():
                found += 1
                assert option in options[told[1]], f"{path.name}: {text}"
    assert found > 5


def test_a_failure_while_running_is_code_1(run, model_folder, monkeypatch):
    class Broken(Decoder):
        name = label = "broken"

        def steps(self, model, prompt_ids, sampler):
            raise ValueError("out of luck")

    monkeypatch.setitem(DECODERS, "broken", Broken)
    code, _, err = run(
        "generate", "--model", str(model_folder), "--prompt", "a", "--decoder", "broken"
    )
    assert code == 1 and len(err.splitlines()) == 1 and "out of luck" in err


def test_a_fresh_process_prints_only_the_record(model_folder):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "dmtd_demo",
            "generate",
            "--model",
            str(model_folder),
            "--prompt",
            "hi",
            "--max-new-tokens",
            "4",
            "--json",
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0 and not done.stderr
    assert all(json.loads(line)["type"] for line in done.stdout.splitlines())


def test_the_defaults_are_the_designs():
    options = build_parser().parse_args(["generate", "--prompt", "x"])
    assert (
        options.model,
        options.temperature,
        options.top_k,
        options.top_p,
        options.seed,
        options.max_new_tokens,
        options.top,
        options.ignore_eos,
    ) == ("classroom", 0, 0, 1, 0, 256, 0, False)
