"""A model's chat template: a program of somebody else's, which may fail, and may never end."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from dmtd_demo.errors import UserError
from dmtd_demo.models.causes import in_one_line

# of one conversation, which takes milliseconds
SECONDS = 5.0
# a template adds some to each turn; what is beyond the longest conversations is a loop's
MOST_CHARACTERS = 20_000_000


class RefusedByTemplate(UserError):
    """A conversation whose roles, or their order, a model's chat template was not written for."""


def render(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]], **settings: Any
) -> str:
    """Return a conversation as the model's template writes it, the generation prompt included.

    settings: that templates read, such as enable_thinking. Raises UserError where the template
    refuses the conversation, fails, or does not end within SECONDS.
    """
    ended: list[str | BaseException] = []

    def whole() -> None:
        try:
            text = tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=True, **settings
            )
            ended.append(str(text))
        except BaseException as error:  # raised below, by whoever waits
            ended.append(error)

    thread = threading.Thread(target=whole, daemon=True)
    thread.start()
    thread.join(SECONDS)
    if thread.is_alive():
        # ends it at its next step, as nothing of the template's own can
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit)
        )
        raise UserError(
            f"this model's chat template needs to end within {SECONDS:.0f} s; it did not"
        )
    (text,) = ended
    if isinstance(text, BaseException):
        words = in_one_line(text)
        # templates refuse roles and orders that they were not written for, by this error itself;
        # else a template is a program, and fails as one
        if type(text) is TemplateError:
            raise RefusedByTemplate(
                f"this model's chat template refuses this order of turns: {words}"
            ) from None
        raise UserError(f"this model's chat template fails: {words}") from None
    if len(text) > MOST_CHARACTERS:
        raise UserError(
            f"this model's chat template needs to write at most {MOST_CHARACTERS:,} characters; "
            f"got {len(text):,}"
        )
    return text
