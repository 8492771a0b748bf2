"""The parser of `python -m dmtd_demo` and of its commands."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, NoReturn

from dmtd_demo.cli.streams import one_line


class CommandParser(argparse.ArgumentParser):
    """A parser that says a mistake in one line on standard error, with exit code 2."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {one_line(message)} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)


if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[CommandParser]
