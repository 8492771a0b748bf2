"""transformers' warnings kept back, where what they say is checked here."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from transformers.utils import logging


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Keep back what transformers warns of inside the block."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
