"""Sums, differences, comparing and sorting of numbers below 100.

Worked answers keep one layout, one small step at a time.
"""

from __future__ import annotations

import random

from dmtd_demo.training.world import Example, Family
from dmtd_demo.training.world.wordgames import PLURALS, ask
from dmtd_demo.training.world.words import FOODS, PEOPLE, THINGS

ITEMS = [PLURALS[noun] for noun in THINGS + FOODS if noun in PLURALS]  # what people have many of


def example(prompt: str, answer: str, content: str) -> Example:
    return Example((("user", prompt), ("assistant", answer)), content)


def worked_sum(a: int, b: int) -> str:
    """The sum of two two-digit numbers by columns; the carry is always said."""
    ones = a % 10 + b % 10
    carry = ones // 10
    return (
        f"{a} + {b}: ones {a % 10} + {b % 10} = {ones}, write {ones % 10}, carry {carry}. "
        f"Tens {a // 10} + {b // 10} + {carry} = {a // 10 + b // 10 + carry}. The answer is "
        f"{a + b}."
    )


def worked_difference(a: int, b: int) -> str:
    """The difference of two two-digit numbers by columns; the borrow is always said."""
    borrow = int(a % 10 < b % 10)
    ones = a % 10 + 10 * borrow
    return (
        f"{a} - {b}: ones {a % 10} - {b % 10}, borrow {borrow}, {ones} - {b % 10} = "
        f"{ones - b % 10}. "
        f"Tens {a // 10} - {b // 10} - {borrow} = {a // 10 - b // 10 - borrow}. The answer is "
        f"{a - b}."
    )


def addition(rng: random.Random) -> Example:
    """A sum, bare or in a little story."""
    a, b = rng.randint(10, 99), rng.randint(10, 99)
    p, q = rng.sample(PEOPLE, 2)
    prompt = ask(
        rng,
        [
            "What is {a} + {b}?",
            "{a} + {b}",
            "{a} + {b} = ?",
            "How much is {a} plus {b}?",
            "{a} plus {b}",
            "add {a} and {b}",
            "add {b} to {a}",
            "work out {a} + {b}",
            "What is the sum of {a} and {b}?",
            "calculate {a} + {b}",
            "What do {a} and {b} make?",
            "What is {b} more than {a}?",
            "tell me what {a} plus {b} is",
            "{p} has {a} {i} and finds {b} more. How many {i} does {p} have?",
            "{p} has {a} {i} and {q} has {b}. How many {i} do they have together?",
            "There are {a} {i} in a box. {p} puts in {b} more. How many are there now?",
            "{p} buys {a} {i} today and {b} tomorrow. How many is that?",
            "{q} gives {b} {i} to {p}, who had {a}. How many {i} does {p} have now?",
        ],
        a=a,
        b=b,
        p=p,
        q=q,
        i=rng.choice(ITEMS),
    )
    low, high = sorted((a, b))
    return example(prompt, worked_sum(a, b), f"addition:{low}|{high}")


def subtraction(rng: random.Random) -> Example:
    """A difference that is not below zero, bare or in a little story."""
    b, a = sorted((rng.randint(10, 99), rng.randint(10, 99)))
    p, q = rng.sample(PEOPLE, 2)
    prompt = ask(
        rng,
        [
            "What is {a} - {b}?",
            "{a} - {b}",
            "{a} - {b} = ?",
            "How much is {a} minus {b}?",
            "{a} minus {b}",
            "subtract {b} from {a}",
            "take {b} away from {a}",
            "work out {a} - {b}",
            "What is the difference of {a} and {b}?",
            "calculate {a} - {b}",
            "What is {b} less than {a}?",
            "tell me what {a} minus {b} is",
            "{p} has {a} {i} and gives {b} to {q}. How many {i} are left?",
            "{p} had {a} {i} but lost {b}. How many {i} does {p} have now?",
            "There are {a} {i} in a box. {p} takes out {b}. How many are left?",
            "{p} has {a} {i} and {q} has {b}. How many more does {p} have?",
            "{q} sells {b} of {a} {i}. How many does {q} still have?",
        ],
        a=a,
        b=b,
        p=p,
        q=q,
        i=rng.choice(ITEMS),
    )
    return example(prompt, worked_difference(a, b), f"subtraction:{a}|{b}")


def compare(rng: random.Random) -> Example:
    """The larger or the smaller of two numbers."""
    a, b = rng.sample(range(10, 100), 2)
    low, high = sorted((a, b))
    content = f"compare:{low}|{high}"
    if rng.random() < 0.3:
        p, q = rng.sample(PEOPLE, 2)
        more = rng.random() < 0.5
        prompt = ask(
            rng,
            [
                "{p} has {a} {i} and {q} has {b}. Who has {m}?",
                "Who has {m} {i}: {p} with {a} or {q} with {b}?",
                "{p} found {a} {i}. {q} found {b}. Who has {m}?",
            ],
            p=p,
            q=q,
            a=a,
            b=b,
            i=rng.choice(ITEMS),
            m="more" if more else "fewer",
        )
        who = p if (a > b) == more else q
        wanted = f"The larger is {high}" if more else f"The smaller is {low}"
        return example(
            prompt,
            f"Numbers: {a} {p}, {b} {q}. {wanted} {who}. So {who} has "
            f"{'more' if more else 'fewer'}.",
            content,
        )
    large = rng.random() < 0.5
    prompt = ask(
        rng,
        [
            "Which is {m}, {a} or {b}?",
            "Which number is {m}: {a} or {b}?",
            "{a} or {b}: which is {m}?",
            "Of {a} and {b}, which is {m}?",
            "tell me which is {m}, {a} or {b}",
            "compare {a} and {b}: which is {m}",
            "find the {m} number: {a} or {b}",
            "name the {m} one of {a} and {b}",
            "What is the {m} of {a} and {b}?",
        ],
        a=a,
        b=b,
        m=rng.choice(
            ["larger", "larger", "bigger", "greater"] if large else ["smaller", "smaller", "lower"]
        ),
    )
    return example(
        prompt,
        f"{high} is larger than {low}." if large else f"{low} is smaller than {high}.",
        content,
    )


def sort_numbers(rng: random.Random) -> Example:
    """Three or four numbers in order, either way."""
    numbers = rng.sample(range(10, 100), rng.randint(3, 4))
    down = rng.random() < 0.5
    way = rng.choice(
        ["from largest to smallest", "from high to low", "in descending order"]
        if down
        else ["from smallest to largest", "from low to high", "in ascending order"]
    )
    prompt = ask(
        rng,
        [
            "sort these numbers {d}: {w}",
            "sort {w} {d}",
            "put {w} {d}",
            "order these numbers {d}: {w}",
            "arrange {w} {d}",
            "What are {w} {d}?",
            "I have these numbers: {w}. List them {d}.",
            "Here are some numbers: {w}. Put them {d}.",
        ],
        w=list(map(str, numbers)),
        d=way,
    )
    return example(
        prompt,
        "Sorted: " + ", ".join(map(str, sorted(numbers, reverse=down))),
        "sort_numbers:" + "|".join(map(str, sorted(numbers))),
    )


FAMILIES: list[Family] = [
    Family("addition", addition, True, 1.5),
    Family("subtraction", subtraction, True, 2.0),
    Family("compare", compare, True, 5.0),
    Family("sort_numbers", sort_numbers, True, 4.0),
]
