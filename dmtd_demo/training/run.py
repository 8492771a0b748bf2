"""What `python -m dmtd_demo train …` does: recipe, data and loop put together, and exact match by family while it runs."""
from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoTokenizer, Qwen3ForCausalLM

from dmtd_demo.training import classroom
from dmtd_demo.training.data import batches, encode
from dmtd_demo.training.loop import Position, train
from dmtd_demo.training.tokenizer import train_tokenizer
from dmtd_demo.training.world.mix import held_out_examples, training_examples

TOKENIZER_CONVERSATIONS = 40_000


def classroom_tokenizer(folder: Path, seed: int):
    """The tokenizer in the folder, or a new one trained on the world."""
    if not (folder / "tokenizer.json").exists():
        stream = training_examples(f"tokenizer:{seed}")
        texts = (text for _ in range(TOKENIZER_CONVERSATIONS) for _, text in next(stream)[1].messages)
        train_tokenizer(texts, classroom.VOCABULARY).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def train_classroom(output: Path, tokens: int, seed: int, resume: bool, device: torch.device, checkpoint_seconds: float = 300) -> None:
    """Train `classroom` from nothing; the model lies in `output`/model, a folder in Hugging Face format."""
    tokenizer = classroom_tokenizer(output / "tokenizer", seed)
    model = classroom.new_model(tokenizer, seed).to(device)

    def stream(position: Position):
        return batches(tokenizer, training_examples(f"{seed}:{position.progress.tokens}"), lambda: classroom.longest_row(position.progress.share), tokenizer.pad_token_id)

    train(classroom.recipe(model, tokenizer, seed), stream, tokens, output, resume=resume, device=device, checkpoint_seconds=checkpoint_seconds, log=output / "log.jsonl",
          on_checkpoint=lambda _: exact_match(model, tokenizer))


@torch.no_grad()
def exact_match(model: Qwen3ForCausalLM, tokenizer, per_family: int = 6) -> dict:
    """Teacher-forced exact match by family on held-out prompts, every position a head: whether every answer token is the argmax.
    For greedy `ar` the two are the same, and this is one pass a prompt."""
    from dmtd_demo.training.world.mix import COMPOSITIONAL
    right: dict[str, list[bool]] = {}
    for family, example in held_out_examples(0, per_family * len(COMPOSITIONAL)):
        ids, answer = encode(tokenizer, example)
        row = torch.tensor([ids], device=model.device)
        predicted = model(row).logits[0, answer - 1 : -1].argmax(-1)
        right.setdefault(family, []).append(bool((predicted == row[0, answer:]).all()))
    by_family = {family: round(sum(values) / len(values), 2) for family, values in right.items()}
    return {"exact_match": round(sum(by_family.values()) / len(by_family), 3), "by_family": by_family}
