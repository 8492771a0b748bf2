"""The shipped conversations: held out or trained on, as rows of this project, and as JSON lines.

    python scripts/smollm2/held_out.py > held_out.jsonl
    python scripts/smollm2/held_out.py --all > conversations.jsonl
    python scripts/smollm2/held_out.py --tasks 20 > tasks.jsonl

Every recipe takes the conversations by `--data`, and `eval` the tasks, which end with the question.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from dmtd_demo.training.data import Row

CONVERSATIONS = ROOT / "assets" / "smollm2-135m" / "conversations.npz"
TURN = re.compile(r"<\|im_start\|>(system|user|assistant)\n(.*?)<\|im_end\|>", re.DOTALL)


def rows(held: bool, path: Path = CONVERSATIONS) -> list[Row]:
    """Token ids of whole conversations, and where the last answer lies; the held-out tenth, or the
    others."""
    kept = np.load(path)
    # once: the archive is decompressed at every look
    tokens, lengths = kept["tokens"], kept["lengths"].astype(np.int64)
    starts = np.cumsum(lengths) - lengths
    return [
        Row(tokens[start : start + n].tolist(), [(int(prompt), int(n))])
        for start, n, prompt, out in zip(starts, lengths, kept["prompts"], kept["held"])
        if out == held
    ]


# kinds of request, by what is asked; the first that fits
KINDS = {
    "code": r"\bcode\b|\bfunctions?\b|python|javascript|\bsql\b|\bprogram\b|\balgorithm\b",
    "rewriting": r"rewrite|rephrase|paraphrase|summari[sz]e|translate|\bedit\b|shorten|\bcorrect\b",
    "lists and plans": r"\blist\b|\bsteps\b|\bideas\b|\btips\b|\bplan\b|\bexamples\b|\brecipe\b",
    "writing": r"\bwrite\b|\bstory\b|\bpoem\b|\bessay\b|\bemail\b|\bletter\b|\bdescribe\b",
    "questions": r"\?|\bexplain\b|\bwhat\b|\bhow\b|\bwhy\b",
}


def kind(asked: str) -> str:
    """The kind of a request, by its words."""
    return next((k for k, words in KINDS.items() if re.search(words, asked.lower())), "other")


def messages(text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": said} for role, said in TURN.findall(text)]


def main() -> None:
    from dmtd_demo.models import gguf, gguf_tokenizer
    from dmtd_demo.models.catalog import CATALOG
    from dmtd_demo.models.fetch import at_hand

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--all", action="store_true", help="those trained on too")
    parser.add_argument("--tasks", type=int, help="so many held-out questions of up to 80 tokens")
    options = parser.parse_args()
    entry = CATALOG["SmolLM2-135M-Instruct"]
    path = at_hand(entry.source, entry.archive)
    if path is None:
        sys.exit(f"run `python -m dmtd_demo get {entry.name}` first")
    tokenizer = gguf_tokenizer.tokenizer_of(gguf.read(path))
    if options.tasks:
        short = [row for row in rows(True) if row.answer <= 80]
        for row in random.Random(1).sample(short, options.tasks):
            *asked, answer = messages(tokenizer.decode(row.ids))
            family = kind(asked[-1]["content"])
            print(json.dumps({"messages": asked, "answer": answer["content"], "family": family}))
        return
    for held in (True, False) if options.all else (True,):
        for row in rows(held):
            print(json.dumps({"messages": messages(tokenizer.decode(row.ids))}))


if __name__ == "__main__":
    main()
