"""The options of `python -m dmtd_demo train`: its recipes, their data, and how long they run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dmtd_demo.cli.command_parser import CommandParser

if TYPE_CHECKING:
    from dmtd_demo.cli.command_parser import Commands


def add_train(commands: Commands) -> None:
    """Add `train`: its recipe, its data, and how long it runs."""
    train = commands.add_parser(
        "train",
        help="train the embedded model and its add-ons; with --model, heads, head0, clp, gate, "
        "adaptive and dmtd for any Qwen",
    )
    train.add_argument(
        "recipe",
        choices=(
            "classroom",
            "heads",
            "clp",
            "gate",
            "head0",
            "adaptive",
            "mixed",
            "dmtd",
            "data",
            "all",
            "classroom-hybrid",
        ),
        help="classroom: the model; then, on it, heads, and with them clp and gate; head0; "
        "adaptive, and with it mixed. dmtd: the layers of another model. data: conversations that "
        "--model writes itself, for --data. all: data, heads, clp, gate, adaptive and their "
        "figures for --model. classroom-hybrid: a small Qwen3.5 with its own MTP head",
    )
    train.add_argument(
        "--output",
        metavar="FOLDER",
        help="checkpoints, log and the model (default: runs/classroom, runs/data, "
        "runs/NAME of a model for all, or runs/classroom-hybrid)",
    )
    train.add_argument(
        "--tokens", type=float, help="how many tokens to see (default: the recipe's own)"
    )
    train.add_argument(
        "--model",
        help="train for this model: a catalog name, a folder or a hub id; the result lies in "
        "OUTPUT/addons, of dmtd in OUTPUT/model",
    )
    train.add_argument(
        "--heads",
        choices=("trained", "native"),
        default="trained",
        help="clp: of which heads; native: the MTP head that the model brings (default: trained)",
    )
    train.add_argument("--quantization", help="with --model: as in `generate`")
    train.add_argument("--dtype", help="with --model: as in `generate`")
    train.add_argument(
        "--data",
        metavar="FILE",
        help="with --model: JSON lines with messages (.jsonl), plain text, hf:OWNER/NAME[:SPLIT], "
        "a data set of the hub, or world, "
        "the conversations that classroom learns from (default: the model's own answers to "
        "shipped prompts)",
    )
    train.add_argument(
        "--max-rows",
        type=int,
        default=20_000,
        help="with --model: texts of the data that are read at most (default: 20,000)",
    )
    train.add_argument(
        "--own-answers",
        action="store_true",
        help="with --model: the model's own answers in place of the data's last ones "
        "(self-distillation)",
    )
    train.add_argument(
        "--max-steps",
        type=int,
        help="with --model, and of classroom-hybrid: updates (default: the recipe's own)",
    )
    train.add_argument(
        "--learning-rate", type=float, help="with --model: the highest (default: the recipe's own)"
    )
    _add_own_data(train)
    _add_layer_training(train)
    _add_run_of_training(train)


def _add_own_data(train: CommandParser) -> None:
    """Add the options of `train data`."""
    train.add_argument(
        "--conversations",
        type=int,
        default=2000,
        metavar="N",
        help="data and all: how many to keep; run again, both go on where they were "
        "(default: 2,000)",
    )
    train.add_argument(
        "--minutes",
        type=float,
        help="all only: how long it may take by an estimate, which cuts the data to fit",
    )
    train.add_argument(
        "--turns", type=int, default=1, help="data only: answers of a conversation (default: 1)"
    )
    train.add_argument(
        "--temperature",
        type=float,
        default=1.0,
        help="data only: of the user's messages, which are drawn (default: 1)",
    )
    train.add_argument(
        "--answer-temperature",
        type=float,
        default=0.0,
        help="data only: of the answers (default: 0, greedy: what heads have to predict)",
    )
    train.add_argument(
        "--openings",
        metavar="FILE",
        help="data only: a file whose lines are first words of requests, which the model goes on "
        "with; everyday for the list that ships (default: it begins itself)",
    )


def _add_layer_training(train: CommandParser) -> None:
    """Add the options of `train dmtd` alone."""
    train.add_argument(
        "--split",
        help="dmtd only: early and late layers, such as E0D8 (default: the checkpoint's, else two "
        "ninths of the layers are late)",
    )
    train.add_argument(
        "--tau",
        default="2,3,4",
        metavar="2,3,4",
        help="dmtd only: cycle lengths, one drawn for each update (default: 2,3,4)",
    )
    train.add_argument(
        "--lora",
        type=int,
        metavar="RANK",
        help="dmtd only: train LoRA adapters of this rank, by peft, in place of the layers; with "
        "--quantization nf4 this is QLoRA",
    )
    train.add_argument(
        "--batch",
        type=int,
        help="dmtd: rows of an update, over all processes (default: 16); data and all: texts "
        "that are written at once (default: 64)",
    )
    train.add_argument(
        "--gradient-accumulation",
        type=int,
        default=1,
        metavar="N",
        help="dmtd only: pass each update's rows in N parts: the same update in less memory "
        "(default: 1)",
    )
    train.add_argument(
        "--gradient-checkpointing",
        action="store_true",
        help="dmtd only: compute activations twice instead of keeping them: less memory, a third "
        "more time",
    )


def _add_run_of_training(train: CommandParser) -> None:
    """Add what a run of training is: device, checkpoints, length."""
    train.add_argument("--seed", type=int, default=0, help="(default: 0)")
    train.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    train.add_argument(
        "--start",
        metavar="FOLDER",
        help="classroom and classroom-hybrid: begin from the weights in this folder, in the "
        "schedule's later part",
    )
    train.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    train.add_argument("--threads", type=int, help="CPU threads (default: PyTorch's own)")
    train.add_argument(
        "--compile",
        action="store_true",
        help="classroom and classroom-hybrid: compile its layers, a third faster; needs a C++ "
        "compiler",
    )
    train.add_argument(
        "--vanilla",
        action="store_true",
        help="classroom only: no cycles, every token from a full pass: the twin to compare with",
    )
    train.add_argument(
        "--keep",
        action="store_true",
        help="classroom only: keep the model of every checkpoint, in OUTPUT/kept",
    )
    train.add_argument(
        "--checkpoint-seconds", type=float, default=300, help="between checkpoints (default: 300)"
    )
    train.add_argument(
        "--seconds",
        type=float,
        default=240,
        help="classroom-hybrid only: how long to train; the learning rate has fallen to zero by "
        "then (default: 240, which is for a large GPU)",
    )
    train.add_argument(
        "--rows",
        type=int,
        default=32,
        help="classroom-hybrid only: rows of 512 tokens in an update (default: 32)",
    )
