"""`train dmtd` for any Qwen: what it learns, where its result runs, and that neither processes,
pieces nor interruptions change it.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Callable

import pytest
import torch
from safetensors.torch import load_file
from tqdm import tqdm

from dmtd_demo.__main__ import main
from dmtd_demo.backbone import layouts
from dmtd_demo.backbone.split import Split
from dmtd_demo.errors import UserError
from dmtd_demo.models.loading import load
from dmtd_demo.models.model import Model
from dmtd_demo.race.panels import parse_panel
from dmtd_demo.race.race import race_ids
from dmtd_demo.race.settings import RaceSettings
from dmtd_demo.training.any_model import DMTDSettings, Settings, train_addon, train_dmtd
from dmtd_demo.training.corpus import read_rows
from dmtd_demo.training.data import Row
from dmtd_demo.training.dmtd import Cycles, draws, save_model
from dmtd_demo.training.loop import Position, Progress, Recipe, rate_factor
from dmtd_demo.training.masking import cyclical_heads, masked_hidden
from tiny import tiny_module

SETTINGS = dict(seed=0, resume=False, checkpoint_seconds=1e9, batch=4)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("data") / "data.jsonl"
    path.write_text(
        "".join(
            json.dumps(
                {
                    "messages": [
                        {"role": "user", "content": f"What is {i} + 1?"},
                        {"role": "assistant", "content": f"{i} + 1 is {i + 1}. " * 3},
                    ]
                }
            )
            + "\n"
            for i in range(24)
        )
    )
    return str(path)


def agreement(model: Model, rows: list[Row]) -> float:
    """The share of the late-layer-only tokens of dmtd at tau = 3 that ar would have written too."""
    records = [
        r
        for row in rows
        for batch in race_ids(
            model,
            [parse_panel("dmtd:tau=3")],
            [row.ids[: row.answer]],
            RaceSettings(max_new_tokens=15, ignore_eos=True),
        )
        for r in batch
    ]
    shares = [r["audit_agreement"] for r in records if r["type"] == "summary"]
    return sum(shares) / len(shares)


def correct(model: Model, split: Split, rows: list[Row]) -> float:
    """The share of the answers' tokens that the masked forward predicts at tau = 3."""
    right = []
    for row in rows:
        phase = torch.arange(len(row.ids))[None] - row.answer
        hidden = masked_hidden(
            model.backbone, split, torch.tensor([row.ids]), cyclical_heads(phase, 3)
        )
        right += (
            model.backbone.logits(hidden)[0, row.answer - 1 : -1].argmax(-1)
            == torch.tensor(row.ids[row.answer :])
        ).tolist()
    return sum(right) / len(right)


@pytest.mark.parametrize("worth", [1e9, 0.0], ids=["laid out", "plain"])
def test_a_bfloat16_model_is_saved_whatever_its_matrices_were_joined_to(
    small_tokenizer, tmp_path, data, worth, monkeypatch
):
    """Weights and biases of joined linears are parts of one tensor, which files do not take."""
    monkeypatch.setattr(layouts, "LARGE", 1)
    monkeypatch.setattr(layouts, "WORTH", worth)
    module = tiny_module("qwen2", vocab_size=len(small_tokenizer), max_position_embeddings=512)
    module.to(torch.bfloat16).save_pretrained(tmp_path / "plain")
    small_tokenizer.save_pretrained(tmp_path / "plain")
    model = load(str(tmp_path / "plain"), dtype="bfloat16", threads=1)
    assert model.backbone._fused
    settings = DMTDSettings(data=data, steps=1, split="E0D2", rate=1e-9, **SETTINGS)
    train_dmtd(model, tmp_path, settings)
    made = load(str(tmp_path / "model"), dtype="bfloat16", threads=1, trainable=True)
    state = made.backbone.module.state_dict()
    assert all(torch.equal(t, state[name]) for name, t in module.state_dict().items())


@pytest.mark.parametrize(
    "more,word",
    [
        (("--quantization", "int8"), None),
        (("--quantization", "int8", "--dtype", "float16"), "int8 needs --dtype bfloat16 or"),
        (("--quantization", "fast-int4"), "in nf4, nf4-single or int8; got quantization fast-int4"),
    ],
)
def test_lora_beside_quantized_weights_trains_or_is_refused(
    model_folder, tmp_path, data, more, word, capsys
):
    pytest.importorskip("peft")
    arguments = ("train", "dmtd", "--model", str(model_folder), "--output", str(tmp_path))
    run = ("--data", data, "--lora", "2", "--max-steps", "1", "--threads", "1", "--batch", "2")
    code = main([*arguments, *run, *more])
    assert code == (2 if word else 0)
    assert word is None or word in capsys.readouterr().err


@pytest.mark.parametrize("lora", [None, 8], ids=["whole", "lora"])
def test_what_is_trained_agrees_with_ar_and_runs_from_its_folder(
    model_folder, tmp_path, data, lora
):
    if lora:
        pytest.importorskip("peft")
    plain, model = load(str(model_folder)), load(str(model_folder))
    rows, split = read_rows(plain, data, tmp_path / "own.jsonl")[:6], Split(4, 0, 2, "replace")
    assert agreement(plain, rows) < 0.3 and correct(plain, split, rows) < 0.1
    train_dmtd(
        model,
        tmp_path,
        DMTDSettings(
            data=data,
            steps=120,
            split="E0D2",
            tau="2,3",
            lora=lora,
            rate=1e-2,
            **{**SETTINGS, "batch": 8},
        ),
    )
    made = load(str(tmp_path / "model"))
    assert (
        made.split == split
        and made.tau == 3
        and made.quantization == "none"
        and made.tokenizer.encode("What is 3?") == plain.tokenizer.encode("What is 3?")
    )
    assert agreement(made, rows) > 0.5 and correct(made, split, rows) > 0.6
    # add-ons of the one are not for the other
    assert made.base.fingerprint != plain.base.fingerprint
    before, after = plain.backbone.module.state_dict(), made.backbone.module.state_dict()
    changed = {name for name, t in before.items() if not torch.equal(t, after[name])}
    assert (
        changed
        and all(
            name.startswith("model.layers." if lora else ("model.layers.", "model.norm."))
            for name in changed
        )
        and {name.split(".")[2] for name in changed} >= {"0", "1", "2", "3"}
    )
    ids = torch.tensor([rows[0].ids])
    heads = cyclical_heads(torch.arange(ids.shape[1])[None] - rows[0].answer, 2)
    assert torch.allclose(
        masked_hidden(made.backbone, split, ids, heads),
        masked_hidden(model.backbone.__class__(model.backbone.module), split, ids, heads),
        atol=1e-4,
    )


def test_qlora_is_merged_into_the_weights_as_they_were_read(model_folder, tmp_path, data):
    pytest.importorskip("peft")
    model = load(str(model_folder), quantization="nf4", dtype="float32")
    with pytest.raises(UserError, match="needs weights that are not quantized, or --lora RANK"):
        train_dmtd(model, tmp_path, DMTDSettings(data=data, steps=3, **SETTINGS))
    train_dmtd(model, tmp_path, DMTDSettings(data=data, steps=3, lora=4, rate=1e-2, **SETTINGS))
    ids = torch.tensor([[5, 17, 300, 42, 9]])
    with torch.no_grad():
        ours, merged = (
            m.backbone.module(ids).logits
            for m in (model, load(str(tmp_path / "model"), dtype="float32", quantization="none"))
        )
        plain = (
            load(str(model_folder), quantization="nf4", dtype="float32").backbone.module(ids).logits
        )
    assert torch.allclose(ours, merged, atol=1e-2) and not torch.allclose(ours, plain, atol=1e-1)


def alike(a: Path, b: Path, exact: bool = False) -> bool:
    one, other = (load_file(folder / "checkpoint" / "dmtd.safetensors") for folder in (a, b))
    return set(one) == set(other) and all(
        torch.equal(t, other[name]) if exact else torch.allclose(t, other[name], atol=1e-5)
        for name, t in one.items()
        if name.startswith("model.") or exact
    )


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


def start(work: Callable[[], int | None], errors: Path | None = None) -> multiprocessing.Process:
    """In a process of its own; forked, so that it need not import everything again."""

    def run() -> None:
        # what is forked shares the lock of the bars, and takes it along where it is killed
        tqdm.set_lock(threading.RLock())
        if errors:
            sys.stderr = errors.open("w", buffering=1)
        sys.exit(work())

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    return process


def of_two(rank: int, port: int, work: Callable[[], None]) -> None:
    """What `accelerate launch --cpu --num_processes 2` sets, then the work."""
    from accelerate.state import AcceleratorState

    # of the process that this one was forked from
    AcceleratorState._reset_state(reset_partial_state=True)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE="2",
        LOCAL_WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        ACCELERATE_USE_CPU="true",
    )
    work()
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("name", ["dmtd", "heads"])
def test_two_processes_make_the_update_of_one(model_folder, tmp_path, data, name, monkeypatch):
    """Two processes, and with them rows in pieces, and activations computed twice: the losses and
    the weights of one process that passes the whole batch.
    """
    # in float32 on every machine: in bfloat16 each piece rounds for itself
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)

    def work(folder: str, **more: object) -> None:
        model, common = (
            load(str(model_folder)),
            dict(data=data, steps=3, seed=0, resume=False, checkpoint_seconds=0.0, rate=1e-3),
        )
        if name == "dmtd":
            train_dmtd(model, tmp_path / folder, DMTDSettings(**common, batch=7, **more))
        else:
            train_addon(name, model, tmp_path / folder, Settings(**common))

    work("one")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for process in [
        start(lambda rank=rank: of_two(rank, port, lambda: work("two"))) for rank in range(2)
    ]:
        process.join()
        assert process.exitcode == 0
    assert len(losses(tmp_path / "one")) == 3 and losses(tmp_path / "one") == pytest.approx(
        losses(tmp_path / "two"), abs=2e-4
    )
    if name == "dmtd":
        work("pieces", pieces=3, checkpointing=True)
        assert alike(tmp_path / "one", tmp_path / "two") and alike(
            tmp_path / "one", tmp_path / "pieces"
        )
        assert losses(tmp_path / "one") == pytest.approx(losses(tmp_path / "pieces"), abs=2e-4)


def test_accelerates_mixed_precision_is_taken(model_folder, tmp_path, data, monkeypatch):
    def run(precision: str) -> list[float]:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", precision)
        folder = tmp_path / precision
        train_dmtd(
            load(str(model_folder)),
            folder,
            DMTDSettings(
                data=data, steps=2, seed=0, resume=False, checkpoint_seconds=0.0, rate=1e-3, batch=4
            ),
        )
        # the weights themselves are not rounded
        assert all(
            t.dtype == torch.float32
            for name, t in load_file(folder / "checkpoint" / "dmtd.safetensors").items()
            if name.startswith("model.")
        )
        return losses(folder)

    # the same everywhere
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    plain, mixed = run("no"), run("bf16")
    assert mixed != plain and mixed == pytest.approx(plain, rel=0.02)
    with pytest.raises(UserError, match="bf16, or no; got fp16"):
        run("fp16")


def test_no_interruption_changes_the_result(model_folder, tmp_path, data):
    """Killed, out of disk, with a rate that makes NaN, asked to stop: each a clear end with a whole
    checkpoint; then it ends as the run that nothing befell.
    """
    whole, cut, errors = tmp_path / "whole", tmp_path / "cut", tmp_path / "errors"
    checkpoint = cut / "checkpoint" / "dmtd.safetensors"

    def command(folder: Path, *more: str) -> int:
        return main(
            [
                "train",
                "dmtd",
                "--model",
                str(model_folder),
                "--data",
                data,
                "--max-steps",
                "60",
                "--batch",
                "4",
                "--output",
                str(folder),
                *more,
            ]
        )

    def small_files() -> int:
        # as a full disk: writing fails
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        return command(cut, "--resume", "--checkpoint-seconds", "0")

    def until_saved(process: multiprocessing.Process, lines: int) -> None:
        while not (cut / "log.jsonl").exists() or len(losses(cut)) < lines:
            assert process.is_alive()
            time.sleep(0.01)

    def ended(process: multiprocessing.Process) -> tuple[int, str]:
        process.join()
        return process.exitcode, errors.read_text().rpartition("\r")[2].strip().splitlines()[-1]

    killed = start(lambda: command(cut, "--checkpoint-seconds", "0"), errors)
    until_saved(killed, 2)
    os.kill(killed.pid, signal.SIGKILL)
    assert ended(killed)[0] == -signal.SIGKILL
    for work, word in (
        (small_files, "could not be written at step .* free some space"),
        (
            lambda: command(cut, "--resume", "--learning-rate", "1e30"),
            "(loss|gradient) is (nan|inf) at step .* a lower rate",
        ),
    ):
        kept = checkpoint.read_bytes(), sorted((cut / "model").iterdir())
        code, line = ended(start(work, errors))
        assert (
            code == 1
            and line.startswith("dmtd_demo: training dmtd: ")
            and "of step" in line
            and "is whole: go on with --resume" in line
        )
        assert re.search(word, line), line
        assert kept == (checkpoint.read_bytes(), sorted((cut / "model").iterdir())) and not list(
            cut.rglob("*.part")
        )
    for number in (signal.SIGTERM, signal.SIGINT):
        reached = len(losses(cut))
        stopped = start(lambda: command(cut, "--resume", "--checkpoint-seconds", "0"), errors)
        until_saved(stopped, reached + 1)
        os.kill(stopped.pid, number)
        code, line = ended(stopped)
        assert (
            code == 128 + number
            and "was stopped after step" in line
            and "go on with --resume" in line
        )
    assert json.loads((cut / "log.jsonl").read_text().splitlines()[-1])["step"] < 60
    assert ended(start(lambda: command(cut, "--resume"), errors))[0] == 0
    assert ended(start(lambda: command(whole), errors))[0] == 0
    assert alike(whole, cut, exact=True)
    assert (cut / "model" / "model.safetensors").read_bytes() == (
        whole / "model" / "model.safetensors"
    ).read_bytes()


def test_what_a_killed_run_did_not_take_away_is_in_no_ones_way(model_folder, tmp_path):
    model = load(str(model_folder), dtype="float32", trainable=True)
    for name in ("model", "model.before"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").touch()
    save_model(model, Cycles(Split.default(model.layers), (2, 3), 1e-4, 8), tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert load(str(tmp_path / "model")).tau == 3


def test_rows_come_in_the_same_order_whenever_a_run_begins():
    rows = [Row(list(range(n)), [(1, n)]) for n in range(2, 13)]
    stream = draws(rows, 4, 0, position := Position(Progress(0, 0, 0.0)))
    seen = []
    for step in range(40):
        position.progress = Progress(step, 0, 0.0)
        seen.append(next(stream).ids)
        assert torch.equal(seen[-1], next(draws(rows, 4, 0, Position(Progress(step, 0, 0.0)))).ids)
    lengths = [int((row != 0).sum()) + 1 for ids in seen[:11] for row in ids]
    assert all(len(ids) == 4 for ids in seen) and set(lengths) <= set(range(2, 13))
    everyone = [int((row != 0).sum()) + 1 for ids in seen[:16] for row in ids]
    assert all(5 <= everyone.count(n) <= 6 for n in range(2, 13))  # 64 rows of 11


def test_the_cosine_warms_up_for_a_tenth():
    recipe = Recipe(
        "x", torch.nn.Linear(1, 1), lambda b, p: None, lambda o: None, warm_up=0.1, cosine=True
    )
    factors = [rate_factor(recipe, s / 100) for s in range(101)]
    assert (
        factors[0] < 0.01
        and factors[5] == pytest.approx(0.5, abs=0.01)
        and factors[10] == 1
        and factors[55] == pytest.approx(0.5)
        and factors[100] == pytest.approx(0, abs=1e-9)
    )


def test_a_sum_checkpoint_stays_one(model_folder, tmp_path, data):
    folder = tmp_path / "sum"
    folder.mkdir()
    for path in model_folder.iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "config.json").unlink()
    config = {
        **json.loads((model_folder / "config.json").read_text()),
        "model_type": "dmtd_qwen3",
        "num_thinking_layers": 3,
        "num_decoding_layers": 1,
        "auto_map": {"AutoConfig": "theirs.Config"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    train_dmtd(load(str(folder)), tmp_path, DMTDSettings(data=data, steps=1, tau="4", **SETTINGS))
    made = load(str(tmp_path / "model"))
    assert (
        made.split == Split(4, 0, 1, "sum")
        and made.tau == 4
        and "auto_map" not in json.loads((tmp_path / "model" / "config.json").read_text())
    )


@pytest.mark.parametrize(
    "more,word",
    [
        (dict(tau="2,x"), "--tau needs cycle lengths from 1 to 16"),
        (dict(tau="0"), "--tau needs"),
        (dict(split="D8"), "needs the form E0D8"),
        (dict(split="E2D2"), "middle >= 1"),
        (dict(lora=0), "--lora needs a rank"),
        (dict(pieces=5), "got 4 rows for 5 pieces"),
        (dict(rate=-1.0), "--learning-rate needs a number over 0"),
        (dict(steps=0), "--max-steps"),
        (dict(rows=0), "--max-rows"),
    ],
)
def test_bad_settings_are_a_sentence(model_folder, tmp_path, data, more, word):
    with pytest.raises(UserError, match=word):
        train_dmtd(
            load(str(model_folder)),
            tmp_path,
            DMTDSettings(**{**dict(data=data, steps=1), **SETTINGS, **more}),
        )


def test_packages_that_are_not_there_are_named(model_folder, tmp_path, data, monkeypatch):
    for part in ("dmtd", "corpus"):
        monkeypatch.setattr(f"dmtd_demo.training.{part}.find_spec", lambda name: None)
    model = load(str(model_folder))
    with pytest.raises(
        UserError, match="--lora needs the package peft, which is not installed: pip install peft"
    ):
        train_dmtd(model, tmp_path, DMTDSettings(data=data, steps=1, lora=4, **SETTINGS))
    with pytest.raises(
        UserError,
        match=(
            "hf:someone/texts needs the package datasets, which is not installed: pip install "
            "datasets"
        ),
    ):
        train_dmtd(model, tmp_path, DMTDSettings(data="hf:someone/texts", steps=1, **SETTINGS))


def test_another_runs_checkpoint_is_refused(model_folder, tmp_path, data):
    train_dmtd(load(str(model_folder)), tmp_path, DMTDSettings(data=data, steps=1, **SETTINGS))
    with pytest.raises(
        UserError,
        match="needs the settings that the run began with: split E0D1, tau 2,3,4, .*; got split E0D2",
    ):
        train_dmtd(
            load(str(model_folder)),
            tmp_path,
            DMTDSettings(data=data, steps=2, split="E0D2", **{**SETTINGS, "resume": True}),
        )
    path = tmp_path / "checkpoint" / "dmtd.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="--resume needs a whole checkpoint"):
        train_dmtd(
            load(str(model_folder)),
            tmp_path,
            DMTDSettings(data=data, steps=2, **{**SETTINGS, "resume": True}),
        )


def test_it_needs_a_model(capsys):
    assert main(["train", "dmtd"]) == 2 and "train dmtd needs --model" in capsys.readouterr().err


def test_a_data_set_of_the_hub_is_read_by_datasets(model_folder, tmp_path, data, monkeypatch):
    """A folder in that library's format, which reads it as it reads a repository: chats in both
    common forms, plain texts, and what is neither.
    """
    datasets = pytest.importorskip("datasets")
    import pyarrow.parquet

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    lines = [json.loads(line) for line in Path(data).read_text().splitlines()]
    shared = [
        {
            "conversations": [
                {"from": "human" if turn["role"] == "user" else "gpt", "value": turn["content"]}
                for turn in line["messages"]
            ]
        }
        for line in lines
    ]
    for name, part, rows in (
        ("chats", "train", lines),
        ("chats", "test", lines[:3]),
        ("shared", "train", shared),
        ("texts", "train", [{"text": "Once upon a time."}] * 5),
        ("other", "train", [{"number": 1}]),
    ):
        (tmp_path / name).mkdir(exist_ok=True)
        pyarrow.parquet.write_table(
            pyarrow.Table.from_pylist(rows), tmp_path / name / f"{part}-00000-of-00001.parquet"
        )
    model, own = load(str(model_folder)), tmp_path / "own.jsonl"
    wanted = read_rows(model, data, own)
    assert (
        read_rows(model, f"hf:{tmp_path / 'chats'}", own)
        == read_rows(model, f"hf:{tmp_path / 'shared'}", own)
        == wanted
    )
    assert (
        read_rows(model, f"hf:{tmp_path / 'chats'}:test", own) == wanted[:3]
        and read_rows(model, f"hf:{tmp_path / 'chats'}", own, most=2) == wanted[:2]
    )
    texts = read_rows(model, f"hf:{tmp_path / 'texts'}", own)
    assert (
        len(texts) == 5
        and model.tokenizer.decode(texts[0].ids) == "Once upon a time."
        and not own.exists()
    )
    for name, word in (
        (
            "other",
            "hf:.*other row 1 needs to be a JSON object with messages, .*, or to have a text; got",
        ),
        ("chats:nothing", "cannot be read by datasets"),
        ("nowhere", "cannot be read by datasets"),
    ):
        with pytest.raises(UserError, match=word):
            read_rows(model, f"hf:{tmp_path / name}", own)
    train_dmtd(model, tmp_path, DMTDSettings(data=f"hf:{tmp_path / 'chats'}", steps=1, **SETTINGS))
    assert load(str(tmp_path / "model")).split == Split(4, 0, 1, "replace")


def test_the_script_goes_from_a_model_to_addons(model_folder, tmp_path, data):
    """On a tiny model; without a token nothing is published."""
    root = Path(__file__).resolve().parents[2]
    given = {
        "MODEL": model_folder,
        "DATA": data,
        "MINUTES": 0.02,
        "OUT": tmp_path / "out",
        "INSTALL": "no",
        "TO": "someone/addons",
        "HF_HOME": tmp_path / "hub",
        "OMP_NUM_THREADS": 1,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("HF_TOKEN", "HUGGING_FACE"))
    } | {name: str(value) for name, value in given.items()}
    done = subprocess.run(
        ["bash", str(root / "scripts" / "train_addons.sh")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert "minutes by a measurement" in done.stderr + done.stdout
    assert "there is no token" in done.stdout and "--- clp: " in done.stdout
    model = load(str(model_folder), addons=str(tmp_path / "out" / "addons"))
    assert all(model.has(name) for name in ("mtp_heads", "clp", "gate", "adaptive"))
    learned_from = model.addon_facts["mtp_heads"]["data"]
    assert learned_from == "self-distillation on the prompts of data.jsonl"
    # as many as fit into the minutes
    assert 8 <= len((tmp_path / "out" / "answers.jsonl").read_text().splitlines()) <= 24
