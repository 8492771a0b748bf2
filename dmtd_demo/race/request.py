"""What a race is asked: a model and a prompt for every panel, and what is refused before it begins."""

from __future__ import annotations

from collections.abc import Sequence

from dmtd_demo.errors import UserError
from dmtd_demo.models.chat import Message, check_messages, encode_chat
from dmtd_demo.models.model import Model
from dmtd_demo.race.panels import PanelSpec
from dmtd_demo.race.remote_server import Remote


def one_each(model: Model | Sequence[Model], panels: Sequence[PanelSpec]) -> list[Model]:
    """The model of every panel."""
    models = [model] * len(panels) if isinstance(model, Model) else list(model)
    if len(models) != len(panels):
        raise ValueError(
            f"a race needs one model, or one per panel; got {len(models)} for {len(panels)}"
        )
    return models


def encoded(
    model: Model, panel: PanelSpec, conversation: Sequence[Message], thinking: bool
) -> list[int]:
    """The prompt's ids; none for a panel whose server encodes it itself."""
    if panel.decoder != Remote.name:
        return encode_chat(model.tokenizer, conversation, thinking)
    check_messages(conversation)
    return []


def check_system(model: Model, text: str, max_new_tokens: int) -> None:
    """Raises UserError where the system prompt alone leaves no room."""
    tokens = len(model.tokenizer(text, add_special_tokens=False).input_ids)
    if tokens + max_new_tokens > model.context:
        raise UserError(
            f"the system prompt and the new tokens need to fit the context of {model.context} tokens; got {tokens} and {max_new_tokens}"
        )


def check_prompt(model: Model, ids: Sequence[int], max_new_tokens: int) -> None:
    """Raises UserError where the prompt cannot be read: empty, over the context, or with ids outside the vocabulary."""
    if not ids:
        raise UserError("a prompt needs at least one token; got none")
    if len(ids) + max_new_tokens > model.context:
        raise UserError(
            f"prompt and new tokens need to fit the context of {model.context} tokens; got a prompt of {len(ids)} and {max_new_tokens} new tokens"
        )
    worst = max(ids, key=lambda i: i if i >= 0 else model.backbone.vocab_size - i)
    if not 0 <= worst < model.backbone.vocab_size:
        raise UserError(
            f"token ids need to be from 0 to {model.backbone.vocab_size - 1}; got {worst}"
        )
