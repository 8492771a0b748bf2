"""Games with lists of words: sorting, reversing, spelling, counting, picking.

The content of a task is its set of words.
"""

from __future__ import annotations

import random
from typing import Sequence

from dmtd_demo.training.world import Example, Family
from dmtd_demo.training.world.words import (
    ADJECTIVES,
    ANIMALS,
    COLOURS,
    FOODS,
    PEOPLE,
    PLACES,
    THINGS,
    VERBS,
)

ASKING = {"letter", "write", "read"}  # words that the questions themselves use: never in a list
WORDS = [
    word
    for word in dict.fromkeys(ANIMALS + THINGS + PLACES + COLOURS + FOODS + ADJECTIVES + VERBS)
    if word not in ASKING
]

IRREGULAR = {
    "sheep",
    "mouse",
    "wolf",
    "fish",
    "deer",
    "potato",
    "beans",
    "bread",
    "cheese",
    "soup",
    "rice",
    "honey",
    "milk",
    "tea",
    "jam",
    "corn",
}  # no regular plural, or none in common use
# of two kinds
AMBIGUOUS = {
    "orange",
    "apple",
    "fish",
    "peach",
    "plum",
    "lemon",
    "duck",
    "brown",
    "June",
    "Will",
    "Lily",
    "Otto",
}
KINDS = {
    kind: [word for word in words if word not in AMBIGUOUS]
    for kind, words in (
        ("animals", ANIMALS),
        ("colours", COLOURS),
        ("foods", FOODS),
        ("places", PLACES),
        ("names", PEOPLE),
    )
}


def plural(noun: str) -> str:
    """The plural of a regular noun."""
    if noun.endswith(("ch", "sh", "s", "x", "z")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


PLURALS = {
    noun: plural(noun)
    for noun in ANIMALS + THINGS + PLACES + FOODS
    if noun not in IRREGULAR | ASKING
}


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def ask(rng: random.Random, templates: Sequence[str], **slots: object) -> str:
    """A user's message from one of the templates.

    One that begins in lower case is a request, and is put politely or not; the others are said as
    they are. A list of words in the slots is written with separators of all sorts.
    """
    template = rng.choice(templates)
    filled = {
        name: listed(rng, value, ":" in template) if isinstance(value, list) else value
        for name, value in slots.items()
    }
    text = template.format(**filled)
    if not template[0].islower():
        return capital(text)
    ends_in_list = template.endswith("}")
    forms = [
        "{}",
        "{}",
        "please {}",
        "can you {}?",
        "could you {}?",
        "could you please {}?",
        "I want you to {}",
        "now {}",
        "would you {}?",
    ]
    text = rng.choice(
        forms if ends_in_list else forms + ["{}, please", "{} for me", "{}, thanks"]
    ).format(text)
    return capital(text) + (
        "" if text.endswith("?") or rng.random() < (0.6 if ends_in_list else 0.25) else "."
    )


def listed(rng: random.Random, words: list[str], set_off: bool) -> str:
    """The words as a list in a sentence; only where a colon sets it off may they stand without
    commas. Every word has a space before it, here and in the answers, so that it is one and the
    same token wherever it stands: copying is learned many times faster.
    """
    style = rng.choice(
        ["comma", "comma", "and", "and", "oxford"] + ["space", "semicolon"] * set_off
    )
    if style == "and":
        return ", ".join(words[:-1]) + " and " + words[-1]
    if style == "oxford":
        return ", ".join(words[:-1]) + (", and " if len(words) > 2 else " and ") + words[-1]
    return {"comma": ", ", "space": " ", "semicolon": "; "}[style].join(words)


def some_words(rng: random.Random, low: int, high: int, names: bool = False) -> list[str]:
    """Different words, low to high of them; where names are allowed, sometimes all of them are
    names.
    """
    return rng.sample(PEOPLE if names and rng.random() < 0.15 else WORDS, rng.randint(low, high))


def example(prompt: str, answer: str, family: str, words: Sequence[str]) -> Example:
    return Example((("user", prompt), ("assistant", answer)), f"{family}:{' '.join(sorted(words))}")


def sort_words(rng: random.Random) -> Example:
    """Alphabetical order of words whose first letters differ."""
    count = rng.randint(3, 4)
    words: list[str] = []
    while len({word[0] for word in words}) < count:
        words = rng.sample(WORDS, count)
    prompt = ask(
        rng,
        [
            "sort these words: {w}",
            "sort these words alphabetically: {w}",
            "put these words in alphabetical order: {w}",
            "sort {w} alphabetically",
            "put {w} in alphabetical order",
            "order these words from a to z: {w}",
            "arrange {w} from a to z",
            "What is the alphabetical order of {w}?",
            "I have these words: {w}. Sort them from a to z.",
            "Alphabetical order: {w}",
            "How would a dictionary order {w}?",
        ],
        w=words,
    )
    return example(prompt, "Sorted: " + ", ".join(sorted(words)), "sort_words", words)


def reverse_words(rng: random.Random) -> Example:
    """The list from its end to its start."""
    words = some_words(rng, 3, 5, names=True)
    prompt = ask(
        rng,
        [
            "reverse this list: {w}",
            "reverse these words: {w}",
            "say these words backwards: {w}",
            "put {w} in reverse order",
            "list {w} in reverse",
            "turn this list around: {w}",
            "write {w} from last to first",
            "What is the reverse of {w}?",
            "Here is a list: {w}. Reverse it.",
            "Reverse order: {w}",
            "start from the end and list {w}",
        ],
        w=words,
    )
    return example(prompt, "Reversed: " + ", ".join(reversed(words)), "reverse_words", words)


def repeat_words(rng: random.Random) -> Example:
    """The list again, as it is: the plainest copying, and the first to be learned."""
    words = some_words(rng, 3, 6, names=True)
    prompt = ask(
        rng,
        [
            "repeat these words: {w}",
            "repeat after me: {w}",
            "say {w}",
            "copy this list: {w}",
            "write {w} again",
            "repeat {w}",
            "say these words again: {w}",
            "What did I just say: {w}?",
            "Here is a list: {w}. Say it back to me.",
        ],
        w=words,
    )
    return example(prompt, "You said: " + ", ".join(words), "repeat_words", words)


def spell(rng: random.Random) -> Example:
    """Two words letter by letter."""
    words = some_words(rng, 2, 2)
    prompt = ask(
        rng,
        [
            "spell these words: {w}",
            "spell {w}",
            "spell the words {w}",
            "spell out {w} letter by letter",
            "write {w} letter by letter",
            "How do you spell {w}?",
            "How are {w} spelled?",
            "What are the letters of {w}?",
            "I need the spelling of {w}.",
            "tell me how to spell {w}",
            "Spelling test: {w}",
        ],
        w=words,
    )
    return example(
        prompt,
        "Letters: " + ", ".join(f"{word} {'-'.join(word)}" for word in words),
        "spell",
        words,
    )


def count_words(rng: random.Random) -> Example:
    """How many words a list has, counted one by one."""
    words = some_words(rng, 3, 7, names=True)
    prompt = ask(
        rng,
        [
            "count these words: {w}",
            "count the words in this list: {w}",
            "count {w}",
            "tell me how many words these are: {w}",
            "How many words are in this list: {w}?",
            "How many words are there: {w}?",
            "Here is a list: {w}. How many words does it have?",
            "How long is this list: {w}?",
            "number these words and say how many there are: {w}",
        ],
        w=words,
    )
    counted = ", ".join(f"{number} {word}" for number, word in enumerate(words, 1))
    return example(prompt, f"Count: {counted}. There are {len(words)} words.", "count_words", words)


def pick(rng: random.Random) -> Example:
    """A word by its place in the list, the word after another one, or whether a word is in the
    list: the answer goes through the list so that what is wanted stands right after what was
    asked, and says both again. (Asked for the word alone, the model guessed one of the list for
    millions of tokens; told to stop at the right one, it never learned when.)
    """
    words = some_words(rng, 3, 5, names=True)
    kind = rng.choice(["first", "second", "third", "last", "after", "after", "in", "in"])
    if kind == "in":
        pool = [word for word in (PEOPLE if words[0] in PEOPLE else WORDS) if word not in words]
        present = rng.random() < 0.5
        one = rng.choice(words if present else pool)
        prompt = ask(
            rng,
            [
                "Is {x} in this list: {w}?",
                "Is the word {x} in the list {w}?",
                "Here is a list: {w}. Does it have {x}?",
                "tell me if {x} is in this list: {w}",
                "Can you find {x} in {w}?",
                "look for {x} in this list: {w}",
            ],
            w=words,
            x=one,
        )
        compared = ", ".join(f"{word} {one} {'yes' if word == one else 'no'}" for word in words)
        return example(
            prompt,
            f"List: {compared}. So {one} is {'' if present else 'not '}in the list.",
            f"pick:in {one}",
            words,
        )
    if kind == "after":
        place = rng.randrange(len(words) - 1)
        one = words[place]
        prompt = ask(
            rng,
            [
                "Which word comes after {x} in this list: {w}?",
                "What comes after {x} in {w}?",
                "Here is a list: {w}. What is the word after {x}?",
                "name the word after {x}: {w}",
                "find the word that follows {x} in {w}",
                "In the list {w}, which word is next after {x}?",
            ],
            w=words,
            x=one,
        )
        return example(
            prompt,
            f"List: {' '.join(words)}. Wanted: {one} {words[place + 1]}. So {words[place + 1]} "
            f"comes after {one}.",
            f"pick:after {one}",
            words,
        )
    places = ["first", "second", "third", "fourth"][: len(words) - 1] + ["last"]
    kind = kind if kind in places else "last"  # the third of three
    prompt = ask(
        rng,
        [
            "What is the {x} word in this list: {w}?",
            "Which word is {x}: {w}?",
            "Here is a list: {w}. What is its {x} word?",
            "name the {x} word of this list: {w}",
            "give me the {x} word of {w}",
            "Of {w}, which comes {x}?",
            "pick the {x} word: {w}",
        ],
        w=words,
        x=kind,
    )
    named = dict(zip(places, words))
    return example(
        prompt,
        f"List: {', '.join(map(' '.join, named.items()))}. Wanted: {kind} {named[kind]}. So "
        f"{named[kind]} is the {kind} word.",
        f"pick:{kind}",
        words,
    )


def look_up(rng: random.Random) -> Example:
    """What goes with each of several words, asked in another order: many lookups in one answer, so
    that looking up is learned soon.
    """
    count = rng.randint(3, 6)
    keys = rng.sample(PEOPLE if rng.random() < 0.4 else WORDS, count)
    values = rng.sample([word for word in WORDS if word not in keys], count)
    pairs = dict(zip(keys, values))
    asked = rng.sample(keys, rng.randint(2, count))
    prompt = ask(
        rng,
        [
            "Here are some pairs: {p}. What goes with {w}?",
            "Pairs: {p}. Look up {w}.",
            "What goes with {w} in these pairs: {p}?",
            "look up {w} in these pairs: {p}",
            "Remember these pairs: {p}. Now tell me what goes with {w}.",
            "find the word that goes with each of {w} in this list of pairs: {p}",
        ],
        p=rng.choice([", ", ", ", "; "]).join(map(" ".join, pairs.items())),
        w=asked,
    )
    return example(
        prompt,
        "Pairs: " + ", ".join(f"{key} {pairs[key]}" for key in asked),
        "look_up",
        [*keys, *values],
    )


def first_letters(rng: random.Random) -> Example:
    """The first letter of each word."""
    words = some_words(rng, 3, 4)
    prompt = ask(
        rng,
        [
            "give me the first letter of each word: {w}",
            "write the first letter of {w}",
            "list the first letters of these words: {w}",
            "What are the first letters of {w}?",
            "Which letters do {w} start with?",
            "First letters: {w}",
            "take the first letter of every word in this list: {w}",
            "Here is a list: {w}. What letter does each word begin with?",
        ],
        w=words,
    )
    return example(
        prompt,
        "First letters: " + ", ".join(f"{word} {word[0]}" for word in words),
        "first_letters",
        words,
    )


def plural_list(rng: random.Random) -> Example:
    """Every noun of a list in the plural."""
    words = rng.sample(list(PLURALS), rng.randint(3, 4))
    prompt = ask(
        rng,
        [
            "make these words plural: {w}",
            "write the plurals of {w}",
            "make every word plural: {w}",
            "turn {w} into plurals",
            "What are the plurals of {w}?",
            "What is the plural of each word: {w}?",
            "Plural forms: {w}",
            "give me more than one of each: {w}",
            "Here is a list: {w}. Make each word plural.",
        ],
        w=words,
    )
    return example(
        prompt, "Plural: " + ", ".join(PLURALS[word] for word in words), "plural_list", words
    )


def sort_by_kind(rng: random.Random) -> Example:
    """Which words of a list of two kinds are of one kind: yes or no for each of them."""
    wanted, other = rng.sample(list(KINDS), 2)
    chosen = rng.sample(KINDS[wanted], rng.randint(1, 3))
    words = chosen + rng.sample(KINDS[other], rng.randint(max(1, 4 - len(chosen)), 3))
    rng.shuffle(words)
    prompt = ask(
        rng,
        [
            "Which of these are {k}: {w}?",
            "Which of these words are {k}: {w}?",
            "find the {k} in this list: {w}",
            "list only the {k}: {w}",
            "Here is a list: {w}. Which words are {k}?",
            "pick out the {k} from {w}",
            "keep only the {k}: {w}",
            "What {k} are in this list: {w}?",
            "From {w}, name the {k}.",
        ],
        w=words,
        k=wanted,
    )
    return example(
        prompt,
        f"{capital(wanted)}: "
        + ", ".join(f"{word} {'yes' if word in chosen else 'no'}" for word in words),
        "sort_by_kind",
        words,
    )


FAMILIES: list[Family] = [
    Family("sort_words", sort_words, True, 4.0),
    Family("reverse_words", reverse_words, True, 2.0),
    Family("repeat_words", repeat_words, True, 1.0),
    Family("spell", spell, True, 4.0),
    Family("count_words", count_words, True, 1.0),
    Family("pick", pick, True, 8.0),
    Family("look_up", look_up, True, 5.0),
    Family("first_letters", first_letters, True, 1.0),
    Family("plural_list", plural_list, True, 2.0),
    Family("sort_by_kind", sort_by_kind, True, 2.0),
]
