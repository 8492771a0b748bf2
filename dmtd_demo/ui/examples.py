"""Prompts and comparisons to begin with.

The buttons under the prompt box put them on the page; one stands there at the start.

The prompts are in the language of the models.
"""

from __future__ import annotations

# (the key of what the button says, the prompt). They fit the world that `classroom` was trained on;
# any chat model can answer them.
EXAMPLES: tuple[tuple[str, str], ...] = (
    ("example.story", "Tell me a story about Iris, a fox and a red lantern in the forest."),
    ("example.sum", "What is 47 + 38?"),
    ("example.sorting", "Sort these words alphabetically: river, apple, lamp, candle, tiger"),
    ("example.python", "Write a Python function called double that returns twice a number."),
    ("example.cache", "What is a KV cache?"),
    ("example.dmtd", "What is DMTD?"),
)

# (the key of what the button says, the panels, the prompt): comparisons for a class. One that the
# model cannot run is not offered.
PRESETS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("preset.cycle", ("ar", "dmtd:tau=2", "dmtd:tau=4", "dmtd:tau=6"), "What is DMTD?"),
    ("preset.heads", ("ar", "mtp-heads", "mtp-gate", "clp"), EXAMPLES[0][1]),
    (
        "preset.checked",
        ("ar", "dmtd-spec", "mtp-verified", "prompt-lookup"),
        "Why is decoding slow?",
    ),
    ("preset.native", ("ar", "mtp-native-verified", "mtp-native"), "Why is decoding slow?"),
    ("preset.predicted", ("ar", "dmtd:tau=4", "dmtd-adaptive", "mixed"), "What is a KV cache?"),
)
FIRST_PROMPT = EXAMPLES[0][1]
