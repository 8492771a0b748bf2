"""Prompts and comparisons to begin with.

The buttons under the prompt box put them on the page; one stands there at the start.

The prompts are in the language of the models.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dmtd_demo.models.model import Model

# (the key of what the button says, the prompt). They fit the world that `classroom` was trained on.
EXAMPLES: tuple[tuple[str, str], ...] = (
    ("example.story", "Tell me a story about Iris, a fox and a red lantern in the forest."),
    ("example.sum", "What is 47 + 38?"),
    ("example.sorting", "Sort these words alphabetically: river, apple, lamp, candle, tiger"),
    ("example.python", "Write a Python function called double that returns twice a number."),
    ("example.cache", "What is a KV cache?"),
    ("example.dmtd", "What is DMTD?"),
)

# Open questions, for language models that were trained on everything and on none of these.
OPEN_EXAMPLES: tuple[tuple[str, str], ...] = (
    ("example.sky", "Why is the sky blue? Answer in three sentences."),
    ("example.lighthouse", "Write a short story about a lighthouse keeper and a storm."),
    ("example.child", "Explain to a child how a computer works."),
    ("example.recipe", "How do I make pancakes? List the steps."),
    ("example.letter", "Write a short letter that asks a friend to come for dinner."),
    (
        "example.copy",
        "Repeat this text word for word: The quick brown fox jumps over the lazy dog. The lazy dog "
        "sleeps in the sun, and the quick brown fox runs home.",
    ),
)
SKY, LIGHTHOUSE, CHILD = (prompt for _, prompt in OPEN_EXAMPLES[:3])

# (the key of what the button says, the panels, the prompt for `classroom`, the one for other
# models): comparisons for a class. One that the model cannot run is not offered.
PRESETS: tuple[tuple[str, tuple[str, ...], str, str], ...] = (
    ("preset.cycle", ("ar", "dmtd:tau=2", "dmtd:tau=4", "dmtd:tau=6"), "What is DMTD?", CHILD),
    ("preset.heads", ("ar", "mtp-heads", "mtp-gate", "clp"), EXAMPLES[0][1], LIGHTHOUSE),
    (
        "preset.checked",
        ("ar", "dmtd-spec", "mtp-verified", "prompt-lookup"),
        "Why is decoding slow?",
        OPEN_EXAMPLES[-1][1],
    ),
    ("preset.tree", ("ar", "mtp-verified", "mtp-verified:tree=7"), "What is DMTD?", LIGHTHOUSE),
    ("preset.native", ("ar", "mtp-native-verified", "mtp-native"), "Why is decoding slow?", SKY),
    (
        "preset.predicted",
        ("ar", "dmtd:tau=4", "dmtd-adaptive", "mixed"),
        "What is a KV cache?",
        CHILD,
    ),
)


def of_the_world(model: Model) -> bool:
    """Whether a model knows the small world of `classroom`, and little else."""
    return model.base.name.startswith("classroom")


def first_prompt(model: Model) -> str:
    return (EXAMPLES if of_the_world(model) else OPEN_EXAMPLES)[0][1]
