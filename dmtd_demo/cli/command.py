"""`python -m dmtd_demo`: which command it is, and what its errors end with."""

from __future__ import annotations

import sys

from dmtd_demo.cli.measures import bench, curves, evaluate, project, report, results
from dmtd_demo.cli.models import get, models, push
from dmtd_demo.cli.options import build_parser
from dmtd_demo.cli.races import compare, draw, generate
from dmtd_demo.cli.train import train

COMMANDS = {
    "generate": generate,
    "compare": compare,
    "eval": evaluate,
    "bench": bench,
    "curves": curves,
    "project": project,
    "draw": draw,
    "report": report,
    "results": results,
    "models": models,
    "get": get,
    "push": push,
    "train": train,
}


def main(arguments: list[str] | None = None) -> int:
    options = build_parser().parse_args(arguments)
    # after --help, which needs no PyTorch
    from dmtd_demo.errors import Interrupted, TrainingError, UserError

    try:
        COMMANDS[options.command](options)
    except UserError as error:
        print(f"dmtd_demo: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except TrainingError as error:
        print(f"dmtd_demo: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except Interrupted as stop:
        print(f"dmtd_demo: {stop}", file=sys.stderr)
        return 128 + stop.signal
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output has gone
        sys.stderr.close()
        return 1
    except Exception as error:
        print(
            f"dmtd_demo: {type(error).__name__}: {' '.join(str(error).split())[:500]}",
            file=sys.stderr,
        )
        return 1
    return 0
