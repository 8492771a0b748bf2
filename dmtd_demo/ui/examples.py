"""Prompts to begin with: what the buttons under the prompt box put into it, and what stands there at the start."""
from __future__ import annotations

# (what the button says, the prompt). They fit the world that `classroom` was trained on; any chat model can answer them.
EXAMPLES: tuple[tuple[str, str], ...] = (
    ("A story", "Tell me a story about Iris, a fox and a red lantern in the forest."),
    ("A sum", "What is 47 + 38?"),
    ("Sorting", "Sort these words alphabetically: river, apple, lamp, candle, tiger"),
    ("Python", "Write a Python function called double that returns twice a number."),
    ("What is a KV cache?", "What is a KV cache?"),
    ("Why is decoding slow?", "Why is decoding slow?"),
    ("What is DMTD?", "What is DMTD?"),
)
FIRST_PROMPT = EXAMPLES[0][1]
