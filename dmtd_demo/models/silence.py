"""What libraries say beside our own sentences kept back, where we check what they speak of."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import threading
from collections.abc import Iterator

from transformers.utils import logging

_descriptors = threading.Lock()


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Keep back what transformers warns of inside the block."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


@contextlib.contextmanager
def outputs_silenced() -> Iterator[None]:
    """Keep back what is written past Python to standard output and error inside the block.

    The tokenizers' Rust code prints there which fields it does not know, and where it panicked.
    """
    with _descriptors, contextlib.ExitStack() as after, tempfile.TemporaryFile() as sink:
        for descriptor, stream in ((1, sys.stdout), (2, sys.stderr)):
            # a window's process has none; what Python still holds belongs before the block
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
                kept = os.dup(descriptor)
                after.callback(os.close, kept)
                after.callback(os.dup2, kept, descriptor)
                os.dup2(sink.fileno(), descriptor)
        yield
