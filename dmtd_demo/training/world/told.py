"""Small facts told in the prompt, and questions about them: who has what, and who is where."""

from __future__ import annotations

import random

from dmtd_demo.training.world import Example
from dmtd_demo.training.world.words import COLOURS, PEOPLE, PLACES, THINGS, at

QA = tuple[list[str], str]  # ways to ask, the answer


def told_then_asked(rng: random.Random, facts: str, questions: list[QA], content: str) -> Example:
    """Facts and a question in one message, in either order, or the facts first and the question a
    turn later; perhaps more questions after it.
    """
    asked = [
        (rng.choice(asks), answer)
        for asks, answer in rng.sample(questions, min(len(questions), rng.choice([1, 1, 2, 3, 4])))
    ]
    if rng.random() < 0.15:
        turns = [(facts, "Thank you, I will remember that.")] + asked
    else:
        way = rng.choice(
            [
                "{f} {q}",
                "{f} {q}",
                "{f}\n{q}",
                "Facts: {f}\nQuestion: {q}",
                "{q} {f}",
                "Listen: {f} {q}",
                "I know this: {f} Now tell me: {q}",
                "{f} Please answer: {q}",
            ]
        )
        turns = [(way.format(f=facts, q=asked[0][0]), asked[0][1])] + asked[1:]
    return Example(
        tuple(
            message for ask, answer in turns for message in (("user", ask), ("assistant", answer))
        ),
        content,
    )


def who_has(rng: random.Random) -> Example:
    count = rng.randint(2, 3)
    people, things, colours = (
        rng.sample(PEOPLE, count),
        rng.sample(THINGS, count),
        rng.sample(COLOURS, count),
    )
    verb = rng.choice(["has", "has", "has", "owns", "got"])
    owned = list(zip(people, colours, things))
    questions: list[QA] = []
    # the answers go through the facts with what is asked for first, so that the rest stands right
    # after it, and say that one again
    by_person = f"Facts: {', '.join(map(' '.join, owned))}. Wanted: "
    by_thing = f"Facts: {', '.join(' '.join(reversed(fact)) for fact in owned)}. Wanted: "
    for person, colour, thing in owned:
        named = f"{colour} {thing}" if rng.random() < 0.3 else thing
        questions += [
            (
                [
                    f"Who has the {named}?",
                    f"Who has the {named} now?",
                    f"Who is the one with the {named}?",
                    f"Which person has the {named}?",
                ],
                f"{by_thing}{thing} {colour} {person}. So {person} has the {named}.",
            ),
            (
                [
                    f"What does {person} have?",
                    f"Which thing does {person} have?",
                    f"What is it that {person} has?",
                ],
                f"{by_person}{person} {colour} {thing}. So {person} has the {colour} {thing}.",
            ),
            (
                [
                    f"What colour is the {thing} of {person}?",
                    f"What colour is {person}'s {thing}?",
                    f"What color is {person}'s {thing}?",
                    f"Which colour does {person}'s {thing} have?",
                ],
                f"{by_person}{person} {colour} {thing}. So {person}'s {thing} is {colour}.",
            ),
        ]
    content = "who_has:" + "|".join(sorted(f"{p} {c} {t}" for p, c, t in owned))
    return told_then_asked(
        rng, " ".join(f"{p} {verb} the {c} {t}." for p, c, t in owned), questions, content
    )


def where(rng: random.Random) -> Example:
    """One or two people go from place to place; where is one of them now, and where did they go
    first? The answer goes through all the moves, so that the one asked for is the nearest to its
    end: from the start for where somebody is now, from the end for where they went first.
    """
    count = rng.randint(2, 4)
    people, places = rng.sample(PEOPLE, rng.randint(1, 2)), rng.sample(PLACES, count)
    movers = people + [rng.choice(people) for _ in range(count - len(people))]
    rng.shuffle(movers)
    moves = list(zip(movers, places))
    facts = []
    for i, (mover, place) in enumerate(moves):
        lead = rng.choice(["", "", "Then ", "After that, ", "Later, "]) if i else ""
        facts.append(
            f"{lead}{mover} {rng.choice(['went', 'went', 'walked', 'ran', 'moved'])} to the "
            f"{place}."
        )
    from_start, from_end = (", ".join(map(" ".join, way)) for way in (moves, moves[::-1]))
    questions: list[QA] = []
    for person in people:
        own = [place for mover, place in moves if mover == person]
        questions += [
            (
                [
                    f"Where is {person} now?",
                    f"Where is {person}?",
                    f"In which place is {person} now?",
                    f"Where can I find {person}?",
                ],
                f"From the start: {from_start}. Wanted: {person} {own[-1]}. So {person} is "
                f"{at(own[-1])}.",
            ),
            (
                [f"Where did {person} go first?", f"To which place did {person} go first?"],
                f"From the end: {from_end}. Wanted: {person} {own[0]}. So {person} went to the "
                f"{own[0]} first.",
            ),
        ]
    return told_then_asked(
        rng, " ".join(facts), questions, "where:" + "|".join(f"{p}>{x}" for p, x in moves)
    )
