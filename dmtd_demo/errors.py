"""Errors that the edge (command line, page) presents as one sentence."""

from __future__ import annotations

import errno

# as PyTorch's CPU allocator, the system and CUDA say it
NO_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "Cannot allocate memory",
    "out of memory",
)


class UserError(ValueError):
    """Something that the user supplied does not fit.

    The message says what was needed and what was got.
    """


class ModelError(RuntimeError):
    """A model failed while running."""


class Cancelled(Exception):
    """A piece of work is no longer wanted."""


class TrainingError(RuntimeError):
    """A training run cannot go on; the message says why, and what of it remains."""


class Interrupted(KeyboardInterrupt):
    """A training run ended early because it was asked to by this signal, and is saved."""

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether memory ran out, of the machine or of a CUDA device.

    CUDA's error is known by its name: this file is read before PyTorch is loaded.
    """
    if (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or isinstance(error, OSError)
        and error.errno == errno.ENOMEM
    ):
        return True
    return not isinstance(error, UserError) and any(words in str(error) for words in NO_MEMORY)
