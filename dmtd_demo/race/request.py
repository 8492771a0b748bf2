"""The request of a race: a model and a prompt for every panel, and their checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dmtd_demo.decoders import Decoder
from dmtd_demo.errors import UserError
from dmtd_demo.models.chat import Message, check_messages, encode_chat
from dmtd_demo.models.model import Model
from dmtd_demo.race.panels import PanelSpec, make_writer
from dmtd_demo.race.remote_server import Remote
from dmtd_demo.race.settings import RaceSettings


@dataclass(frozen=True)
class Entry:
    """One panel of a race, ready to start.

    decoder: its options resolved against the model; or the server that writes the panel. prompt:
    token ids, used as they are; none for a server, which encodes `messages` itself.
    """

    panel: PanelSpec
    decoder: Decoder[Any] | Remote
    model: Model
    prompt: Sequence[int]
    messages: Sequence[Message] = ()


def chat_entries(
    model: Model | Sequence[Model],
    panels: Sequence[PanelSpec],
    conversations: Sequence[Sequence[Message]],
    settings: RaceSettings,
) -> list[Entry]:
    """Enter the panels with a conversation each, the user's turn last.

    model: one for all panels, or one for each. Raises UserError for anything that the user
    supplied.
    """
    models = _one_each(model, panels)
    asked = list(zip(models, panels, conversations))
    prompts = [_encoded(*each, settings.thinking) for each in asked]
    for (own, _, (first, *_rest)), ids in zip(asked, prompts):
        too_long = len(ids) + settings.max_new_tokens > own.context
        if ids and first["role"] == "system" and too_long:
            _check_system(own, first["content"], settings.max_new_tokens)
    return _entered(models, panels, prompts, conversations, settings)


def id_entries(
    model: Model | Sequence[Model],
    panels: Sequence[PanelSpec],
    prompts: Sequence[Sequence[int]],
    settings: RaceSettings,
) -> list[Entry]:
    """Enter the panels with a prompt of token ids each, used as they are.

    model: one for all panels, or one for each. Raises UserError for anything that the user
    supplied.
    """
    if len(prompts) != len(panels):
        raise ValueError(f"a race needs one prompt per panel; got {len(prompts)} for {len(panels)}")
    return _entered(_one_each(model, panels), panels, prompts, [()] * len(panels), settings)


def messages_of(prompt: str, system: str | None = None) -> list[Message]:
    """Build the conversation of one user's turn, under a system prompt where there is one."""
    messages = [{"role": "user", "content": prompt}]
    return messages if system is None else [{"role": "system", "content": system}, *messages]


def check_length(model: Model, tokens: int, max_new_tokens: int) -> None:
    """Raise UserError for a prompt of so many tokens that the new ones do not fit after."""
    if tokens + max_new_tokens > model.context:
        room = model.context - tokens
        raise UserError(
            f"the prompt and the new tokens need to fit the context of {model.context} tokens; got "
            f"a prompt of {tokens} and {max_new_tokens} new tokens"
            + (f", of which {room} fit" if room > 0 else "")
        )


def check_prompt(model: Model, ids: Sequence[int], max_new_tokens: int) -> None:
    """Raise UserError for a prompt that cannot be read.

    It is empty, over the context with the new tokens, or has ids outside the vocabulary.
    """
    if not ids:
        raise UserError("a prompt needs at least one token; got none")
    check_length(model, len(ids), max_new_tokens)
    worst = max(ids, key=lambda i: i if i >= 0 else model.backbone.vocab_size - i)
    if not 0 <= worst < model.backbone.vocab_size:
        raise UserError(
            f"token ids need to be from 0 to {model.backbone.vocab_size - 1}; got {worst}"
        )


def _entered(
    models: Sequence[Model],
    panels: Sequence[PanelSpec],
    prompts: Sequence[Sequence[int]],
    conversations: Sequence[Sequence[Message]],
    settings: RaceSettings,
) -> list[Entry]:
    if not panels:
        raise UserError("a race needs at least one panel; got none")
    entries = []
    for model, panel, ids, messages in zip(models, panels, prompts, conversations):
        writer = make_writer(panel)
        if isinstance(writer, Remote):
            if not messages:
                raise UserError("a remote panel needs a prompt in words; got token ids")
        else:
            check_prompt(model, ids, settings.max_new_tokens)
            writer.options = writer.resolve(writer.options, model)
        entries.append(Entry(panel, writer, model, ids, messages))
    return entries


def _one_each(model: Model | Sequence[Model], panels: Sequence[PanelSpec]) -> list[Model]:
    models = [model] * len(panels) if isinstance(model, Model) else list(model)
    if len(models) != len(panels):
        raise ValueError(
            f"a race needs one model, or one per panel; got {len(models)} for {len(panels)}"
        )
    return models


def _encoded(
    model: Model, panel: PanelSpec, conversation: Sequence[Message], thinking: bool
) -> list[int]:
    if panel.decoder != Remote.name:
        return encode_chat(model.tokenizer, conversation, thinking)
    check_messages(conversation)
    return []


def _check_system(model: Model, text: str, max_new_tokens: int) -> None:
    """Raise UserError where the system prompt alone leaves no room."""
    assert model.tokenizer is not None
    tokens = len(model.tokenizer(text, add_special_tokens=False).input_ids)
    if tokens + max_new_tokens > model.context:
        raise UserError(
            f"the system prompt and the new tokens need to fit the context of {model.context} "
            f"tokens; got {tokens} and {max_new_tokens}"
        )
