"""The families of the small world: valid, repeatable, and right where an answer can be worked out
again from the prompt alone.
"""

from __future__ import annotations

import random
import re

import pytest

from dmtd_demo.training.world import (
    Example,
    Family,
    arithmetic,
    facts,
    held_out,
    stories,
    talk,
    told,
    wordgames,
)
from dmtd_demo.training.world.words import PEOPLE

FAMILIES: list[Family] = [
    family for module in (arithmetic, wordgames, stories, facts, talk) for family in module.FAMILIES
]
SAMPLES = 200
VOCABULARY = set(wordgames.WORDS) | set(PEOPLE)


def draw(family: Family, seed: int = 0, count: int = SAMPLES) -> list[Example]:
    rng = random.Random(seed)
    return [family.sample(rng) for _ in range(count)]


def drawn(sample, count: int = SAMPLES) -> list[tuple[str, str]]:
    """(prompt, answer) pairs of a one-turn family."""
    rng = random.Random(1)
    return [
        (example.messages[0][1], example.answer) for example in (sample(rng) for _ in range(count))
    ]


def numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def listed(prompt: str) -> list[str]:
    """The words of the prompt that are words of the lists: the questions themselves use none of
    them.
    """
    return [word for word in re.findall(r"[A-Za-z]+", prompt) if word in VOCABULARY]


def result(answer: str) -> int:
    return int(re.fullmatch(r".* The answer is (\d+)\.", answer).group(1))


def test_names_are_unique_and_weights_positive():
    names = [family.name for family in FAMILIES]
    assert len(names) == len(set(names))
    assert all(family.weight > 0 for family in FAMILIES)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_samples_are_valid_and_repeatable(family: Family):
    examples = draw(family)
    assert examples == draw(family), "the same seed gives the same examples"
    assert len(set(examples)) > 1
    for example in examples:
        assert isinstance(example, Example)
        for _, text in example.messages:
            assert text and text.isascii() and text == text.strip()
        if family.compositional:
            assert example.content


@pytest.mark.parametrize(
    "family",
    [family for family in FAMILIES if family.compositional],
    ids=lambda family: family.name,
)
def test_some_contents_are_held_out_and_most_are_not(family: Family):
    contents = {example.content for example in draw(family, count=1000)}
    share = sum(map(held_out, contents)) / len(contents)
    assert len(contents) >= 300 and 0.03 < share < 0.2


@pytest.mark.parametrize(
    "family", arithmetic.FAMILIES + wordgames.FAMILIES, ids=lambda family: family.name
)
def test_arithmetic_and_word_games_are_short_and_named(family: Family):
    for example in draw(family):
        assert sum(len(text.split()) for _, text in example.messages) < 80
        assert example.content.startswith(family.name + ":")


def test_addition():
    for prompt, answer in drawn(arithmetic.addition):
        a, b = numbers(prompt)
        assert result(answer) == a + b
        check_steps(answer)
        assert answer.split(":")[0] in (f"{a} + {b}", f"{b} + {a}")


def test_subtraction():
    for prompt, answer in drawn(arithmetic.subtraction):
        low, high = sorted(numbers(prompt))
        assert result(answer) == high - low
        check_steps(answer)
        assert answer.split(":")[0] == f"{high} - {low}"


def check_steps(answer: str) -> None:
    """Every "x + y = z" and "x - y - w = z" of a worked answer holds."""
    steps = re.findall(r"(\d+(?: [+-] \d+)+) = (\d+)", answer)
    assert len(steps) == 2
    for left, right in steps:
        assert sum(
            int(term.replace(" ", "")) for term in re.findall(r"(?:[+-] )?\d+", left)
        ) == int(right)


def test_compare():
    for prompt, answer in drawn(arithmetic.compare):
        if has := re.fullmatch(
            r"Numbers: (\d+) (\w+), (\d+) (\w+)\. The (larger|smaller) is (\d+) (\w+)\. So (\w+) "
            r"has (more|fewer)\.",
            answer,
        ):
            first, one, second, other, which, wanted, who, again, how = has.groups()
            names = [word for word in listed(prompt) if word in PEOPLE]
            assert (
                numbers(prompt) == [int(first), int(second)]
                and names == [one, other]
                and how in prompt
                and who == again
            )
            assert (which == "larger") == (how == "more")
            assert (
                int(wanted) == (max if how == "more" else min)(numbers(prompt))
                and who == names[numbers(prompt).index(int(wanted))]
            )
        else:
            first, second = numbers(answer)
            assert sorted(numbers(prompt)) == sorted((first, second))
            assert (first > second) == ("larger" in answer)


def test_sort_numbers():
    for prompt, answer in drawn(arithmetic.sort_numbers):
        down = bool(re.search(r"from largest|from high|descending", prompt))
        assert numbers(answer) == sorted(numbers(prompt), reverse=down)


def test_sort_words():
    for prompt, answer in drawn(wordgames.sort_words):
        assert answer == "Sorted: " + ", ".join(sorted(listed(prompt)))


def test_reverse_words():
    for prompt, answer in drawn(wordgames.reverse_words):
        assert answer == "Reversed: " + ", ".join(listed(prompt)[::-1])


def test_repeat_words():
    for prompt, answer in drawn(wordgames.repeat_words):
        assert answer == "You said: " + ", ".join(listed(prompt))


def test_spell():
    for prompt, answer in drawn(wordgames.spell):
        assert answer == "Letters: " + ", ".join(
            f"{word} {'-'.join(word)}" for word in listed(prompt)
        )


def test_count_words():
    for prompt, answer in drawn(wordgames.count_words):
        words = listed(prompt)
        assert numbers(answer) == [*range(1, len(words) + 1), len(words)]
        assert listed(answer) == words


def test_first_letters():
    for prompt, answer in drawn(wordgames.first_letters):
        assert answer == "First letters: " + ", ".join(
            f"{word} {word[0]}" for word in listed(prompt)
        )


def test_pick():
    for prompt, answer in drawn(wordgames.pick):
        words = listed(prompt)
        steps, wanted, conclusion = re.fullmatch(
            r"List: (.*?)\.(?: Wanted: (.*)\.)? So (.*)\.", answer
        ).groups()
        if in_list := re.fullmatch(r"(\w+) is (not )?in the list", conclusion):
            one, compared = in_list[1], [part.split() for part in steps.split(", ")]
            assert " ".join(word for word, _, _ in compared) in " ".join(words), (
                "the list from its start on"
            )
            assert all(
                of == one and found == ("yes" if word == one else "no")
                for word, of, found in compared
            )
            assert any(word == one for word, _, _ in compared) != bool(in_list[2]) and words.count(
                one
            ) == 2 - bool(in_list[2])
        elif after := re.fullmatch(r"(\w+) comes after (\w+)", conclusion):
            assert steps in " ".join(words), "the list from its start on"
            assert (
                re.search(rf"\b{after[2]}\W+(?:and\W+)?{after[1]}\b", prompt)
                and wanted == f"{after[2]} {after[1]}"
                and wanted in steps
            )
        else:
            word, kind = re.fullmatch(r"(\w+) is the (\w+) word", conclusion).groups()
            named = [part.split() for part in steps.split(", ")]
            gone_through = [each for _, each in named]
            assert " ".join(gone_through) in " ".join(words), "the list from its start on"
            assert [place for place, _ in named] == ["first", "second", "third", "fourth"][
                : len(named) - 1
            ] + ["last"]
            assert (
                kind in prompt
                and wanted == f"{kind} {word}"
                and gone_through[{"first": 0, "second": 1, "third": 2, "last": -1}[kind]] == word
            )


def test_look_up():
    for prompt, answer in drawn(wordgames.look_up):
        found = [tuple(pair.split()) for pair in answer.removeprefix("Pairs: ").split(", ")]
        for key, value in found:
            assert re.search(rf"\b{key} {value}\b", prompt)
        asked = [key for key, _ in found]
        assert asked in (
            [w for w in listed(prompt)[: len(asked)]],
            [w for w in listed(prompt)[-len(asked) :]],
        )


def test_sort_by_kind():
    for prompt, answer in drawn(wordgames.sort_by_kind):
        kind = next(kind for kind in wordgames.KINDS if re.search(rf"\b{kind}\b", prompt))
        assert answer == f"{kind.capitalize()}: " + ", ".join(
            f"{word} {'yes' if word in wordgames.KINDS[kind] else 'no'}" for word in listed(prompt)
        )


def test_kinds_do_not_overlap():
    words = [word for kind in wordgames.KINDS.values() for word in kind]
    assert len(words) == len(set(words))


def test_plural():
    right = {
        "box": "boxes",
        "city": "cities",
        "key": "keys",
        "brush": "brushes",
        "church": "churches",
        "valley": "valleys",
        "library": "libraries",
        "fox": "foxes",
        "shoe": "shoes",
        "bee": "bees",
        "umbrella": "umbrellas",
        "peach": "peaches",
    }
    assert {noun: wordgames.PLURALS[noun] for noun in right} == right
    assert not {"sheep", "mouse", "wolf", "fish", "deer", "rice"} & set(wordgames.PLURALS)
    for prompt, answer in drawn(wordgames.plural_list):
        assert answer == "Plural: " + ", ".join(wordgames.PLURALS[word] for word in listed(prompt))


def test_who_has():
    for example in draw(Family("who_has", told.who_has)):
        facts = re.findall(
            r"\b([A-Z]\w+) (?:has|owns|got) the (\w+) (\w+)\.", example.messages[0][1]
        )
        steps, wanted, who, what = re.fullmatch(
            r"Facts: (.*)\. Wanted: (.*)\. So ([A-Z][a-z]+)(.*)\.", example.answer
        ).groups()
        gone_through, (key, *rest) = [fact.split() for fact in steps.split(", ")], wanted.split()
        assert [key, *rest] in gone_through and key in re.findall(r"\w+", example.messages[-2][1])
        step = 1 if key == who else -1
        assert gone_through == [list(fact[::step]) for fact in facts]
        person, colour, thing = [key, *rest][::step]
        assert who == person and what in (
            f" has the {thing}",
            f" has the {colour} {thing}",
            f"'s {thing} is {colour}",
        )


def test_where():
    for example in draw(Family("where", told.where)):
        moves = re.findall(
            r"\b([A-Z]\w+) (?:went|walked|ran|moved) to the (\w+)\.", example.messages[0][1]
        )
        order, steps, wanted, person, place, first = re.fullmatch(
            r"From the (start|end): (.*)\. Wanted: (.*)\. So (\w+) (?:is|went) \w+ the (\w+)( "
            r"first)?\.",
            example.answer,
        ).groups()
        gone_through = [tuple(move.split()) for move in steps.split(", ")]
        assert gone_through == (moves[::-1] if first else moves) and order == (
            "end" if first else "start"
        )
        own = [to for mover, to in moves if mover == person]
        assert (
            wanted == f"{person} {place}"
            and place == own[0 if first else -1]
            and person in example.messages[-2][1]
        )
