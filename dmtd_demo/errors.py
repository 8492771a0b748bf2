"""Errors that the edge (command line, page) presents as one sentence."""


class UserError(ValueError):
    """Something the user supplied does not fit: the message says what was needed and what was got."""


class ModelError(RuntimeError):
    """A model failed while running."""


class Cancelled(Exception):
    """Whoever asked for a piece of work wants it no longer."""
