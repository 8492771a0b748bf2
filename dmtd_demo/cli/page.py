"""`python app.py`, installed `dmtd-demo`: parse options, build the page, serve it."""

from __future__ import annotations

import argparse
import gc
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from dmtd_demo.cli.streams import alone, make_encodable, one_line

if TYPE_CHECKING:
    from dmtd_demo.server.waiting import Waiting


class PageParser(argparse.ArgumentParser):
    """A parser that says a mistake in one line on standard error, with exit code 2."""

    def error(self, message: str) -> NoReturn:
        # --help has the rest
        self.exit(2, f"{self.prog}: {one_line(message)}\n")


def port(text: str) -> int:
    """Parse a port; raises ArgumentTypeError."""
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"needs a whole number from 1 to 65535; got {text!r}")
    return int(text)


def options() -> argparse.Namespace:
    """Parse the command line of the page, with the environment's DMTD_MODELS."""
    parser = PageParser(description="Race multi-token decoders side by side, in the browser.")
    parser.add_argument(
        "--model",
        action="append",
        help="a model of the catalog (python -m dmtd_demo models), a folder in Hugging Face "
        "format, a GGUF file, or a hub id; again for more of them; "
        "default: DMTD_MODELS, names with commas between them, else classroom",
    )
    parser.add_argument(
        "--quantization",
        default=None,
        help="none, nf4, nf4-single, int8, fast-int8 or fast-int4; default: what suits the device "
        "and the model's size",
    )
    parser.add_argument(
        "--addons",
        metavar="FOLDER",
        help="add-ons of the first model to use instead of its own: a folder, or a hub id",
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=None,
        help="CPU threads for the model; default: what a decode step is fastest with, measured as "
        "it is loaded",
    )
    parser.add_argument(
        "--panel",
        action="append",
        default=[],
        metavar="DECODER[:NAME=VALUE,…]",
        help="a panel to begin with, such as dmtd:tau=4; again for more of them. "
        "remote:url=http://127.0.0.1:8000,name=MODEL is an OpenAI-compatible server, its key in "
        "DMTD_REMOTE_KEY",
    )
    parser.add_argument(
        "--host",
        default=None,
        help="address to listen on, 0.0.0.0 for everybody in your network; default: "
        "GRADIO_SERVER_NAME, else this machine only",
    )
    parser.add_argument(
        "--port",
        type=port,
        default=None,
        help="port to listen on; default: GRADIO_SERVER_PORT, else the first free one from 7860 on",
    )
    place = parser.add_mutually_exclusive_group()
    place.add_argument(
        "--no-browser", action="store_true", help="do not open the page in a browser"
    )
    place.add_argument(
        "--window",
        action="store_true",
        help="open the page in a window of its own; closing it ends the server",
    )
    parser.add_argument(
        "--share", action="store_true", help="make a public link through Gradio's servers"
    )
    parser.add_argument(
        "--class",
        action="store_true",
        dest="lecture",
        help="for a lecture: your races are mirrored live to everybody in the network, who may "
        "also race in turns; what it opens is said, and asked for",
    )
    parser.add_argument(
        "--class-files",
        metavar="FOLDER",
        help="with --class: saved races (.html, .jsonl) that everybody may play again",
    )
    parser.add_argument("--yes", action="store_true", help="with --class: do not ask")
    args = parser.parse_args()
    if (args.class_files or args.yes) and not args.lecture:
        parser.error("--class-files and --yes need --class")
    if args.lecture and args.share:
        parser.error("--class is for a local network: give no --share with it")
    args.model = (
        args.model
        or [name.strip() for name in os.environ.get("DMTD_MODELS", "").split(",") if name.strip()]
        or ["classroom"]
    )
    return args


def agreed() -> bool:
    """Ask whoever started this for a yes; without a terminal nobody can say it."""
    try:
        return sys.stdin.isatty() and input("Open it? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def start() -> NoReturn:
    """Run `main` as this process's whole work, and end with its exit code."""
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # without waiting for the thread of a race that still runs: torn down under PyTorch it would
    # abort
    os._exit(code)


def main() -> int:
    """Serve the page until it ends; return the exit code."""
    # before --help, which has more than ASCII in it
    make_encodable()
    args = options()
    # neither these nor --help and a mistyped option wait for torch
    from dmtd_demo.errors import UserError
    from dmtd_demo.server.address import check_address, is_loopback, shared

    try:
        args.host = (
            args.host
            or os.environ.get("GRADIO_SERVER_NAME")
            or ("0.0.0.0" if args.lecture else None)
        )
        check_address(args.host, args.port)
        args.share = args.share or shared()
        own = is_loopback(args.host) and not args.share
        waiting = None
        if own and not (args.no_browser or args.window or args.lecture):
            from dmtd_demo.server.waiting import Waiting

            waiting = Waiting(args.host, args.port, args.model[0])
            waiting.open()
        return run_page(args, own, waiting)
    except UserError as error:
        print(f"{_called()}: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        # before the page is served, which ends by itself
        return 130
    except Exception as error:
        said = f"{type(error).__name__}: {one_line(error)[:500]}"
        print(f"{_called()}: {said}", file=sys.stderr)
        return 1


def _called() -> str:
    """The name that the page was started by: app.py, or dmtd-demo where it is installed."""
    return Path(sys.argv[0]).name


def run_page(args: argparse.Namespace, own: bool, waiting: Waiting | None) -> int:
    """Load the models, build the page and serve it until it ends.

    own: only this machine can reach it. waiting: the page that the browser shows until then.
    Returns the exit code; raises UserError.
    """
    # a million objects, all of which stay: collected again and again they take a second
    gc.disable()
    from dmtd_demo.models.loading import load
    from dmtd_demo.models.residents import Residents
    from dmtd_demo.proxies import straight_to_loopback
    from dmtd_demo.race.panels import parse_panel
    from dmtd_demo.race.remote_server import Remote
    from dmtd_demo.server.allowance import Rules
    from dmtd_demo.server.headers import frames
    from dmtd_demo.server.lecture import Lecture
    from dmtd_demo.server.trust import Trust

    # Gradio asks for the proxies of the environment as it is imported, and fails where one of them
    # is a SOCKS proxy; it is to ask nobody
    with straight_to_loopback():
        from dmtd_demo.ui.page import build
        from dmtd_demo.ui.serve import Place, opened, serve

    # nor is a race to pay for them: a full collection took a quarter of a second of whichever panel
    # it fell on
    gc.freeze()
    gc.enable()
    panels = [parse_panel(text) for text in args.panel]
    lecture = Lecture(args.class_files) if args.lecture else None
    trust = Trust.of(args.host, args.share, lecture.address if lecture else None)
    # what is wrong with a setting is said before anything is loaded
    frames()
    rules = Rules.read(owned=trust.loopback or trust.token is not None)
    if not own:
        print(
            opened(
                args.host,
                args.share,
                rules.stranger.allowance,
                rules.stranger.train and not lecture,
                [str(spec.options["url"]) for spec in panels if spec.decoder == Remote.name],
                lecture,
            )
        )
    if lecture and not own and not args.yes and not agreed():
        print(f"{_called()}: nothing was opened", file=sys.stderr)
        return 2
    if waiting:
        waiting.model()
    first, *more = args.model
    with alone():
        models = Residents(
            load(
                first,
                quantization=args.quantization,
                threads=args.threads,
                addons=args.addons,
            ),
            first,
            args.threads,
            args.addons,
        )
        for name in more:
            models.load(name, args.quantization)
        page = build(models, rules, own and trust.loopback, panels, lecture)
    if waiting:
        waiting.close()
    serve(
        page,
        Place(
            host=args.host,
            port=waiting.port if waiting else args.port,
            browser=not (args.no_browser or waiting),
            share=args.share,
            own_window=args.window,
        ),
        trust,
        lecture,
    )
    return 0
