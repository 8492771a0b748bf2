"""The mix of families: what training draws from, and the held-out prompts that `eval` asks."""

from __future__ import annotations

import random
from typing import Iterator

from dmtd_demo.training.world import (
    Example,
    Family,
    arithmetic,
    facts,
    held_out,
    stories,
    talk,
    wordgames,
)

FAMILIES: dict[str, Family] = {
    family.name: family
    for module in (stories, facts, talk, arithmetic, wordgames)
    for family in module.FAMILIES
}
COMPOSITIONAL = [family for family in FAMILIES.values() if family.compositional]

EARLIER_TURNS = (0, 0, 0, 0, 0, 0, 1, 1, 2, 3)  # how many unrelated exchanges come first


def draw(family: Family, rng: random.Random, wanted: bool) -> Example:
    """One example of the family whose content is held out (wanted) or for training; examples
    without content count as for training.
    """
    while True:
        example = family.sample(rng)
        if example.content is None or held_out(example.content) == wanted:
            return example


def training_examples(seed: str) -> Iterator[tuple[str, Example]]:
    """Family names and conversations for training, without end: an example with up to three
    unrelated exchanges before it.
    """
    rng = random.Random(seed)
    families = list(FAMILIES.values())
    weights = [family.weight for family in families]
    while True:
        chosen = rng.choices(families, weights, k=1 + rng.choice(EARLIER_TURNS))
        examples = [draw(family, rng, wanted=False) for family in chosen]
        yield (
            chosen[-1].name,
            Example(
                tuple(message for example in examples for message in example.messages),
                examples[-1].content,
            ),
        )


def held_out_examples(seed: int, count: int) -> list[tuple[str, Example]]:
    """`count` prompts of the compositional families in turn, their content never trained on and no
    two the same.
    """
    rng = random.Random(f"held out:{seed}")
    seen: set[tuple] = set()
    chosen: list[tuple[str, Example]] = []
    while len(chosen) < count:
        family = COMPOSITIONAL[len(chosen) % len(COMPOSITIONAL)]
        example = draw(family, rng, wanted=True)
        if example.messages not in seen:
            seen.add(example.messages)
            chosen.append((family.name, example))
    return chosen
