"""`python -m dmtd_demo`: the commands, and the exit codes of their errors."""

from __future__ import annotations

import argparse
import sys

from dmtd_demo.cli.measures import (
    run_bench,
    run_curves,
    run_evaluate,
    run_project,
    run_report,
    run_results,
)
from dmtd_demo.cli.models import run_get, run_models, run_push
from dmtd_demo.cli.options import build_parser
from dmtd_demo.cli.races import run_compare, run_draw, run_generate
from dmtd_demo.cli.streams import alone, make_encodable, one_line
from dmtd_demo.cli.train import run_train

COMMANDS = {
    "generate": run_generate,
    "compare": run_compare,
    "eval": run_evaluate,
    "bench": run_bench,
    "curves": run_curves,
    "project": run_project,
    "draw": run_draw,
    "report": run_report,
    "results": run_results,
    "models": run_models,
    "get": run_get,
    "push": run_push,
    "train": run_train,
}


def main(arguments: list[str] | None = None) -> int:
    """Run a command; return its exit code (docs/design.md, "Command line")."""
    # before --help, which has more than ASCII in it
    make_encodable()
    options = build_parser().parse_args(arguments)
    if getattr(options, "json", False):
        make_encodable("json")
    elif options.command == "draw":
        make_encodable("xml")
    with alone():
        return _run(options)


def _run(options: argparse.Namespace) -> int:
    # after --help, which needs no PyTorch
    from dmtd_demo.errors import Interrupted, TrainingError, UserError

    try:
        COMMANDS[options.command](options)
    except UserError as error:
        print(f"dmtd_demo: {one_line(error)}", file=sys.stderr)
        return 2
    except TrainingError as error:
        print(f"dmtd_demo: {one_line(error)}", file=sys.stderr)
        return 1
    except Interrupted as stop:
        print(f"dmtd_demo: {stop}", file=sys.stderr)
        return 128 + stop.signal
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # the reader of our output has gone
        sys.stderr.close()
        return 1
    except Exception as error:
        print(f"dmtd_demo: {type(error).__name__}: {one_line(error)[:500]}", file=sys.stderr)
        return 1
    return 0
