"""Texts to train any Qwen on.

They are a JSON-lines file of messages, plain text, a data set of the hub, or the model's own
answers to prompts that ship here.
"""

from __future__ import annotations

import json
import random
import re
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, Iterable, Iterator, Sequence

import torch
from tqdm import tqdm

from dmtd_demo.decoders.batched import batched_ar
from dmtd_demo.errors import UserError
from dmtd_demo.models.chat import Message, encode_chat
from dmtd_demo.models.model import Model
from dmtd_demo.models.template import RefusedByTemplate
from dmtd_demo.progress import Progress, no_progress
from dmtd_demo.text_files import lines_of, parsed, read_text
from dmtd_demo.training.conversations import LeftOut, Reasons, messages_in
from dmtd_demo.training.data import Row, encode
from dmtd_demo.training.resuming import kept_lines
from dmtd_demo.training.world.mix import COMPOSITIONAL, draw

PROMPTS = Path(__file__).with_name("prompts.txt")
LONGEST = 1024  # tokens of a row; what is longer is cut
ANSWER = 256  # tokens of an answer that the model writes itself
ROWS = 20_000  # texts that are read at most
WORLD = "world"  # the data that `classroom` itself learned from, in place of a file
WORLD_NAME = "the conversations that classroom learns from"  # on cards
JSON = (".jsonl", ".ndjson", ".json")  # ends of names; any other file is plain text


def read_rows(
    model: Model,
    data: str | None,
    own: Path,
    most: int = ROWS,
    distill: bool = False,
    tell: Progress = no_progress,
) -> list[Row]:
    """Read the rows of `data`, at most `most` of its texts.

    data: a file, hf:NAME[:SPLIT] for a data set, `world` for the conversations that `classroom`
    learns from, None for the shipped prompts. Where it has no answer for a conversation (the last
    message is the user's), for every one with `distill`, and for the shipped prompts, the answer is
    the model's own greedy text (self-distillation; docs/methods.md, section 3), kept in the file
    `own`. Texts of which nothing can be learned are left out, and counted by their reasons on
    standard output. Raises UserError, also where nothing is left.
    """
    if most < 1:
        raise UserError(f"--max-rows needs a whole number, 1 or more; got {most}")
    if data is None:
        conversations = [
            [{"role": "user", "content": line}]
            for line in PROMPTS.read_text(encoding="utf-8").splitlines()
        ]
        return answered(model, conversations[:most], own, tell)
    if data == WORLD:
        rng = random.Random("add-ons")
        return [
            encode(model.tokenizer, draw(COMPOSITIONAL[i % len(COMPOSITIONAL)], rng, wanted=False))
            for i in range(most)
        ]
    reasons = Reasons()
    if data.startswith("hf:"):
        rows, unanswered = _messages(model, islice(_hub(data), most), distill, reasons)
    else:
        try:
            text = read_text(data)
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                "--data needs a readable file of JSON lines (.jsonl) or plain text, or "
                f"hf:OWNER/NAME; reading {data} gave: {error}"
            ) from None
        rows, unanswered = (
            _messages(model, islice(_lines(data, text), most), distill, reasons)
            if data.lower().endswith(JSON)
            else (_plain(model, text)[:most], [])
        )
    if unanswered:
        rows += answered(model, unanswered, own, tell, reasons)
    left_out = f"left out of {data}: {reasons}"
    if not rows:
        raise UserError(
            "--data needs at least one conversation or text that can be learned; "
            + (left_out if reasons.total else f"{data} has none")
        )
    if reasons.total:
        print(left_out)
    return rows


def _lines(data: str, text: str) -> Iterator[tuple[str, Any]]:
    """Read JSON lines, or one list: where each stands, and its value; text where it is no JSON."""
    if text.lstrip().startswith("["):
        try:
            for number, value in enumerate(parsed(text), 1):
                yield f"{data} entry {number}", value
            return
        except ValueError:
            # then its lines say what is wrong
            pass
    for number, line in lines_of(text):
        try:
            yield f"{data} line {number}", parsed(line)
        except ValueError:
            yield f"{data} line {number}", line


def _hub(data: str) -> Iterator[tuple[str, Any]]:
    """Read the rows of a data set as they come, without fetching all of it.

    It is a repository of the hub, or a folder of files that `datasets` reads. Raises UserError.
    """
    if not find_spec("datasets"):
        raise UserError(
            f"--data {data} needs the package datasets, which is not installed: pip install "
            "datasets"
        )
    import datasets

    name, _, part = data.removeprefix("hf:").partition(":")
    try:
        for number, row in enumerate(
            datasets.load_dataset(name, split=part or "train", streaming=True), 1
        ):
            yield f"{data} row {number}", row
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        # what it raises where there is no such repository, split or network
        raise UserError(
            f"--data {data} cannot be read by datasets: {' '.join(str(error).split())[:300]}"
        ) from None


def _messages(
    model: Model, found: Iterable[tuple[str, Any]], distill: bool, reasons: Reasons
) -> tuple[list[Row], list[list[Message]]]:
    """Return the rows of answered conversations and of texts, and the unanswered conversations.

    With `distill` all conversations are unanswered. found: where each stands, and itself. reasons
    counts what is left out. Raises UserError where one has another form.
    """
    rows: list[Row] = []
    unanswered: list[list[Message]] = []
    for where, value in found:
        try:
            turns = value.get("messages")
            turns = value.get("conversations") if turns is None else turns
            if turns is None:
                rows += _text_rows(model, value["text"])
                continue
            messages = messages_in(turns)
            if distill or messages[-1]["role"] != "assistant":
                while messages[-1]["role"] != "user":
                    messages.pop()
                # said here, before hours of answers, where the template refuses it
                encode_chat(model.tokenizer, messages)
                unanswered.append(messages)
            else:
                rows.append(_answered_row(model, messages))
        except LeftOut as reason:
            reasons.add(str(reason))
        except RefusedByTemplate:
            reasons.add("with an order of turns that the model's chat template refuses")
        except (AttributeError, KeyError, TypeError):
            raise UserError(
                f"{where} needs to be a JSON object with messages, each with role and content, or "
                f"to have a text; got {str(value)[:80]!r}"
            ) from None
    return rows, unanswered


def _answered_row(model: Model, messages: list[Message]) -> Row:
    """Return a conversation as a row, its last answer to be learned. Raises LeftOut, UserError."""
    prompt = encode_chat(model.tokenizer, messages[:-1])
    # else encode_chat would have said so
    assert model.tokenizer is not None
    if len(prompt) >= _longest(model):
        raise LeftOut(_too_long(model))
    answer = model.tokenizer(messages[-1]["content"], add_special_tokens=False).input_ids
    end = [] if model.end is None else [model.end]
    return _row(prompt, [*answer, *end], _longest(model))


def _text_rows(model: Model, text: Any) -> list[Row]:
    """Return a text as rows. Raises LeftOut, TypeError where it is none."""
    if not isinstance(text, str):
        raise TypeError
    if re.search("[\ud800-\udfff]", text):
        raise LeftOut("with half a character")
    rows = _plain(model, text)
    if not rows:
        raise LeftOut("of less than two tokens")
    return rows


def _plain(model: Model, text: str) -> list[Row]:
    """Cut a text into rows, every token of them to be learned. Raises UserError."""
    if model.tokenizer is None:
        raise UserError("training on text needs a model with a tokenizer; this one has none")
    ids, longest = model.tokenizer(text, add_special_tokens=False).input_ids, _longest(model)
    return [
        Row(piece, [(1, len(piece))])
        for piece in (ids[i : i + longest] for i in range(0, len(ids), longest))
        if len(piece) > 1
    ]


def _longest(model: Model) -> int:
    """Return how many tokens a row may have."""
    return min(LONGEST, model.context)


def _too_long(model: Model) -> str:
    return f"with a prompt of {_longest(model):,} tokens or more"


def _row(prompt: list[int], answer: list[int], longest: int) -> Row:
    """Return prompt and answer as one row, cut at `longest` tokens."""
    ids = (prompt + answer)[:longest]
    return Row(ids, [(len(prompt), len(ids))])


@torch.inference_mode()
def answered(
    model: Model,
    conversations: Sequence[list[Message]],
    own: Path,
    tell: Progress = no_progress,
    reasons: Reasons | None = None,
) -> list[Row]:
    """Return the conversations with the model's greedy answers by `ar`, many at once.

    They are written to the file `own` as they come: an interrupted run goes on where it was.
    reasons counts those that are too long to be answered.
    """
    prompts = [encode_chat(model.tokenizer, conversation) for conversation in conversations]
    own.parent.mkdir(parents=True, exist_ok=True)
    known, mine = {}, model.base.fingerprint or model.name
    for entry in kept_lines(own, {"prompt": [int], "answer": [int]}):
        # another model's tokens may have the same numbers
        if entry.get("model", mine) == mine:
            known[tuple(entry["prompt"])] = entry["answer"]
    short = [prompt for prompt in prompts if len(prompt) < _longest(model)]
    fit = [prompt for prompt in short if len(prompt) + ANSWER < model.context]
    if reasons:
        for _ in range(len(prompts) - len(short)):
            reasons.add(_too_long(model))
        for _ in range(len(short) - len(fit)):
            reasons.add("too long to be answered within the context")
    open_ = [prompt for prompt in fit if tuple(prompt) not in known]
    done = len(fit) - len(open_)
    bar = tqdm(total=len(fit), initial=done, desc="answers", unit="prompt", dynamic_ncols=True)
    with bar, own.open("a", encoding="utf-8") as file:
        for written in batched_ar(
            model,
            open_,
            ANSWER,
            tell=lambda tokens: tell("The model's own answers", bar.n, len(fit)),
        ):
            prompt = open_[written.index]
            known[tuple(prompt)] = written.ids
            answer = {"prompt": prompt, "answer": written.ids, "model": mine}
            file.write(json.dumps(answer) + "\n")
            file.flush()
            bar.update()
    return [_row(prompt, known[tuple(prompt)], _longest(model) + ANSWER) for prompt in fit]
