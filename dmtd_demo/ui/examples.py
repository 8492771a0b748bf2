"""Prompts and comparisons to begin with: what the buttons under the prompt box put on the page, and what stands there at the start."""
from __future__ import annotations

# (what the button says, the prompt). They fit the world that `classroom` was trained on; any chat model can answer them.
EXAMPLES: tuple[tuple[str, str], ...] = (
    ("A story", "Tell me a story about Iris, a fox and a red lantern in the forest."),
    ("A sum", "What is 47 + 38?"),
    ("Sorting", "Sort these words alphabetically: river, apple, lamp, candle, tiger"),
    ("Python", "Write a Python function called double that returns twice a number."),
    ("What is a KV cache?", "What is a KV cache?"),
    ("What is DMTD?", "What is DMTD?"),
)

# (what the button says, the panels, the prompt): comparisons for a class. One that the model cannot run is not offered.
PRESETS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("How long may a cycle be?", ("ar", "dmtd:tau=2", "dmtd:tau=4", "dmtd:tau=6"), "What is DMTD?"),
    ("MTP heads: alone, gated, with CLP", ("ar", "mtp-heads", "mtp-gate", "clp"), EXAMPLES[0][1]),
    ("Checked drafts: the same text as ar", ("ar", "dmtd-spec", "mtp-verified", "prompt-lookup"), "Why is decoding slow?"),
    ("Cycles of one length, or as predicted", ("ar", "dmtd:tau=4", "dmtd-adaptive", "mixed"), "What is a KV cache?"),
)
FIRST_PROMPT = EXAMPLES[0][1]
