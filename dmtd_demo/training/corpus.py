"""Texts to train any Qwen on.

They are a JSON-lines file of messages, plain text, a data set of the hub, or the model's own
answers to prompts that ship here.
"""

from __future__ import annotations

import json
import random
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, Iterable, Iterator, Sequence

import torch
from tqdm import tqdm

from dmtd_demo.decoders import DECODERS
from dmtd_demo.errors import UserError
from dmtd_demo.models.chat import Message, encode_chat
from dmtd_demo.models.model import Model
from dmtd_demo.progress import Progress, no_progress
from dmtd_demo.sampling import Sampler
from dmtd_demo.training.data import Row, encode
from dmtd_demo.training.world.mix import COMPOSITIONAL, draw

PROMPTS = Path(__file__).with_name("prompts.txt")
LONGEST = 1024  # tokens of a row; what is longer is cut
ANSWER = 256  # tokens of an answer that the model writes itself
ROWS = 20_000  # texts that are read at most
WORLD = "world"  # the data that `classroom` itself learned from, in place of a file
WORLD_NAME = "the conversations that classroom learns from"  # on cards
SHARED = {"human": "user", "gpt": "assistant"}  # roles under their other names


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
    `own`. Raises UserError.
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
    if data.startswith("hf:"):
        rows, unanswered = _messages(model, islice(_hub(data), most), distill)
    else:
        try:
            text = Path(data).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                "--data needs a readable file of JSON lines (.jsonl) or plain text, or "
                f"hf:OWNER/NAME; reading {data} gave: {error}"
            ) from None
        rows, unanswered = (
            _messages(model, islice(_lines(data, text), most), distill)
            if data.endswith(".jsonl")
            else (_plain(model, text)[:most], [])
        )
    if unanswered:
        rows += answered(model, unanswered, own, tell)
    if not rows:
        raise UserError(f"--data needs at least one conversation or text; {data} has none")
    return rows


def _lines(data: str, text: str) -> Iterator[tuple[str, Any]]:
    """Read JSON lines: where each stands, and its value, the text itself where it is no JSON."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield f"{data} line {number}", json.loads(line)
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
            turns = row.get("messages") or row.get("conversations")
            if turns is None:
                yield f"{data} row {number}", row.get("text", row)
            else:
                yield (
                    f"{data} row {number}",
                    {
                        "messages": [
                            {"role": _role(turn), "content": turn.get("content", turn.get("value"))}
                            for turn in turns
                        ]
                    },
                )
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        # what it raises where there is no such repository, split or network
        raise UserError(
            f"--data {data} cannot be read by datasets: {' '.join(str(error).split())[:300]}"
        ) from None


def _role(turn: dict[str, Any]) -> Any:
    """Return the role of a turn, by its name in chat templates."""
    name: Any = turn.get("role", turn.get("from"))
    return SHARED.get(name, name)


def _messages(
    model: Model, found: Iterable[tuple[str, Any]], distill: bool
) -> tuple[list[Row], list[list[Message]]]:
    """Return the rows of answered conversations and of texts, and the unanswered conversations.

    With `distill` all conversations are unanswered. found: where each stands, and itself. Raises
    UserError where one has another form.
    """
    rows, unanswered = [], []
    for where, value in found:
        if isinstance(value, str) and where.startswith("hf:"):
            rows += _plain(model, value)
            continue
        try:
            messages = [
                {"role": str(m["role"]), "content": str(m["content"])} for m in value["messages"]
            ]
            last = messages[-1]["role"]
        except (KeyError, TypeError, IndexError):
            raise UserError(
                f"{where} needs to be a JSON object with messages, each with role and "
                f"content{', or to have a text' if where.startswith('hf:') else ''}; got "
                f"{str(value)[:80]!r}"
            ) from None
        if last != "assistant" or distill and len(messages) > 1:
            unanswered.append(messages if last != "assistant" else messages[:-1])
            continue
        prompt = encode_chat(model.tokenizer, messages[:-1])
        assert model.tokenizer is not None  # else encode_chat would have said so
        answer = model.tokenizer(messages[-1]["content"], add_special_tokens=False).input_ids + [
            model.tokenizer.eos_token_id
        ]
        if answer and len(prompt) < _longest(model):
            rows.append(_row(prompt, answer, _longest(model)))
    return rows, unanswered


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


def _row(prompt: list[int], answer: list[int], longest: int) -> Row:
    """Return prompt and answer as one row, cut at `longest` tokens."""
    ids = (prompt + answer)[:longest]
    return Row(ids, [(len(prompt), len(ids))])


@torch.inference_mode()
def answered(
    model: Model, conversations: Sequence[list[Message]], own: Path, tell: Progress = no_progress
) -> list[Row]:
    """Return the conversations with the model's greedy answers by `ar`.

    They are written to the file `own` as they come: an interrupted run goes on where it was.
    """
    prompts = [encode_chat(model.tokenizer, conversation) for conversation in conversations]
    own.parent.mkdir(parents=True, exist_ok=True)
    known = {}
    if own.exists():
        text = own.read_text()
        whole = text[: text.rfind("\n") + 1]  # the last line may be cut short
        for line in whole.splitlines():
            entry = json.loads(line)
            known[tuple(entry["prompt"])] = entry["answer"]
        if whole != text:
            own.write_text(whole)
    rows = []
    with own.open("a") as file:
        for number, prompt in enumerate(
            tqdm(prompts, desc="answers", unit="prompt", dynamic_ncols=True)
        ):
            tell("The model's own answers", number, len(prompts))
            if len(prompt) + ANSWER >= model.context:
                continue
            if tuple(prompt) not in known:
                answer: list[int] = []
                for step in DECODERS["ar"]().steps(
                    model, prompt, Sampler(device=model.backbone.device)
                ):
                    answer += [token.id for token in step.tokens]
                    if len(answer) >= ANSWER or answer and answer[-1] in model.eos_ids:
                        break
                known[tuple(prompt)] = answer
                file.write(json.dumps({"prompt": prompt, "answer": answer}) + "\n")
                file.flush()
            rows.append(_row(prompt, known[tuple(prompt)], _longest(model) + ANSWER))
    return rows
