"""Texts to train add-ons for any Qwen on: a JSON-lines file of messages, plain text, or the model's own answers to prompts that ship here."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Sequence

import torch
from tqdm import tqdm

from dmtd_demo.chat import Message, encode_chat
from dmtd_demo.decoders import DECODERS
from dmtd_demo.errors import UserError
from dmtd_demo.loading import Model
from dmtd_demo.sampling import Sampler
from dmtd_demo.training.data import Row

PROMPTS = Path(__file__).with_name("prompts.txt")
LONGEST = 1024       # tokens of a row; what is longer is cut
ANSWER = 256         # tokens of an answer that the model writes itself


def read_rows(model: Model, data: str | None, own: Path) -> list[Row]:
    """The rows of the file `data`. Where it has none for a conversation (the last message is the user's), and for the shipped prompts without a
    file, the answer is the model's own greedy text (self-distillation; methods.md section 3), kept in the file `own`."""
    if data is None:
        conversations = [[{"role": "user", "content": line}] for line in PROMPTS.read_text(encoding="utf-8").splitlines()]
        return answered(model, conversations, own)
    try:
        text = Path(data).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--data needs a readable file of JSON lines (.jsonl) or plain text; reading {data} gave: {error}") from None
    rows, unanswered = _messages(model, data, text) if data.endswith(".jsonl") else (_plain(model, text), [])
    if unanswered:
        rows += answered(model, unanswered, own)
    if not rows:
        raise UserError(f"--data needs at least one conversation or text; {data} has none")
    return rows


def _messages(model: Model, data: str, text: str) -> tuple[list[Row], list[list[Message]]]:
    rows, unanswered = [], []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            messages = [{"role": str(m["role"]), "content": str(m["content"])} for m in json.loads(line)["messages"]]
            last = messages[-1]["role"]
        except (ValueError, KeyError, TypeError, IndexError):
            raise UserError(f"{data} line {number} needs to be a JSON object with messages, each with role and content; got {line[:80]!r}") from None
        if last != "assistant":
            unanswered.append(messages)
            continue
        prompt = encode_chat(model.tokenizer, messages[:-1])
        answer = model.tokenizer(messages[-1]["content"], add_special_tokens=False).input_ids + [model.tokenizer.eos_token_id]
        if answer and len(prompt) < _longest(model):
            rows.append(_row(prompt, answer, _longest(model)))
    return rows, unanswered


def _plain(model: Model, text: str) -> list[Row]:
    if model.tokenizer is None:
        raise UserError("training on text needs a model with a tokenizer; this one has none")
    ids, longest = model.tokenizer(text, add_special_tokens=False).input_ids, _longest(model)
    return [Row(piece, [(1, len(piece))]) for piece in (ids[i:i + longest] for i in range(0, len(ids), longest)) if len(piece) > 1]


def _longest(model: Model) -> int:
    return min(LONGEST, model.context)


def _row(prompt: list[int], answer: list[int], longest: int) -> Row:
    ids = (prompt + answer)[:longest]
    return Row(ids, [(len(prompt), len(ids))])


@torch.inference_mode()
def answered(model: Model, conversations: Sequence[list[Message]], own: Path) -> list[Row]:
    """The model's greedy answers by `ar`, written to the file as they come: an interrupted run goes on where it was."""
    prompts = [encode_chat(model.tokenizer, conversation) for conversation in conversations]
    own.parent.mkdir(parents=True, exist_ok=True)
    known = {}
    if own.exists():
        for line in own.read_text().splitlines(keepends=True):
            if line.endswith("\n"):   # the last one may be cut short
                entry = json.loads(line)
                known[tuple(entry["prompt"])] = entry["answer"]
    own.write_text("".join(json.dumps({"prompt": prompt, "answer": answer}) + "\n" for prompt, answer in known.items()))
    rows = []
    with own.open("a") as file:
        for prompt in tqdm(prompts, desc="answers", unit="prompt", dynamic_ncols=True):
            if len(prompt) + ANSWER >= model.context:
                continue
            if tuple(prompt) not in known:
                answer: list[int] = []
                for step in DECODERS["ar"]().steps(model, prompt, Sampler(device=model.backbone.device)):
                    answer += [token.id for token in step.tokens]
                    if len(answer) >= ANSWER or answer and answer[-1] in model.eos_ids:
                        break
                known[tuple(prompt)] = answer
                file.write(json.dumps({"prompt": prompt, "answer": answer}) + "\n")
                file.flush()
            rows.append(_row(prompt, known[tuple(prompt)], _longest(model) + ANSWER))
    return rows
