"""The command's own output: characters that the console lacks, and libraries that write there."""

from __future__ import annotations

import codecs
import contextlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator

ESCAPED = "dmtd_demo.escaped"


def make_encodable(form: str = "text") -> None:
    r"""Let standard output and error take any character: what they cannot encode is escaped.

    form: of standard output, "text", "json" or "xml". A character is written as \u2713, half of one
    beyond U+FFFF each, which is JSON's own form too; in XML as &#10003;. Where the output is not
    UTF-8, JSON and XML are all ASCII, so that they are what they are in any encoding.
    """
    codecs.register_error(ESCAPED, _escaped)
    if form != "text" and isinstance(sys.stdout, io.TextIOWrapper) and not _is_utf8(sys.stdout):
        sys.stdout.reconfigure(
            encoding="ascii", errors="xmlcharrefreplace" if form == "xml" else ESCAPED
        )
        return
    for stream in (sys.stdout, sys.stderr):
        # in a notebook, or without a console, it is another thing
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=ESCAPED)


def _is_utf8(stream: io.TextIOWrapper) -> bool:
    return codecs.lookup(stream.encoding).name == "utf-8"


def _escaped(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[i : i + 4]}" for i in range(0, len(units), 4)), error.end


def one_line(words: object) -> str:
    """Return a message as one line that a terminal shows as it is: no control characters in it."""
    return "".join(
        sign if sign.isprintable() else _visible(sign) for sign in " ".join(str(words).split())
    )


def _visible(sign: str) -> str:
    return f"\\u{ord(sign):04x}" if ord(sign) < 0x10000 else f"\\U{ord(sign):08x}"


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Keep the warnings of libraries from standard error, which is for the command's own sentence.

    Whoever asks for them by PYTHONWARNINGS, python -W or TRANSFORMERS_VERBOSITY has them all.
    """
    if sys.warnoptions or "TRANSFORMERS_VERBOSITY" in os.environ:
        yield
        return
    # of PyTorch's own log, which is no part of Python's; read as it is imported
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
