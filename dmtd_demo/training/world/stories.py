"""Stories, questions about them, rewriting, poems and lists.

A story is a plot (below), told with a cast: a hero, perhaps a friend (a person or an animal), a
thing and a place. Every plot knows the questions that can be answered from it. In the templates {h}
is the hero, {o} the friend ({O} at the start of a sentence, {ao} when first met), {t} the thing
({at} with a or an and its colour, {ct} with its colour), {p} the place and {inp} being there.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from dmtd_demo.training.world import Example, Family
from dmtd_demo.training.world.told import where, who_has
from dmtd_demo.training.world.words import ANIMALS, COLOURS, FOODS, PEOPLE, PLACES, THINGS, at

INDOORS = set(
    "attic barn castle cave church cottage kitchen library mill museum "
    "school shop station tower".split()
)
SWIMMERS = set("fish seal whale".split())
Questions = dict[str, tuple[list[str], str]]  # kind -> (ways to ask, the answer)


def a(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def cap(text: str) -> str:
    return text[:1].upper() + text[1:]


def join(items: list[str]) -> str:
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]


def polite(rng: random.Random, request: str) -> str:
    """A request that begins with a verb, said in one of several ways."""
    way = rng.choice(
        [
            "{}.",
            "{}.",
            "{}.",
            "{}",
            "please {}.",
            "please {}.",
            "{}, please.",
            "can you {}?",
            "could you {}?",
            "could you please {}?",
            "I would like you to {}.",
            "I want you to {}.",
        ]
    )
    return cap(way.format(request))


def polite_with(rng: random.Random, request: str, text: str) -> str:
    """The same, with the text that it is about: after a colon, or on its own line."""
    way = rng.choice(
        [
            "{}: {}",
            "{}: {}",
            "{}:\n{}",
            "please {}: {}",
            "please {}: {}",
            "can you {}? {}",
            "could you {}? {}",
            "could you please {}?\n{}",
            "I would like you to {}: {}",
        ]
    )
    return cap(way.format(request, text))


WHEN = [
    "once upon a time",
    "long ago, on a lazy day",
    "one bright morning",
    "one fine day",
    "on a quiet Sunday",
    "early one spring morning",
    "one cold autumn day",
    "on the first day of summer",
    "one day after breakfast",
    "on a warm day in May",
]
SPOTS = [
    "behind a big barrel",
    "under an old blanket",
    "behind a pile of wood",
    "under a heap of leaves",
    "behind a wooden crate",
    "under a bundle of straw",
    "in a dark corner",
    "behind a broken cart",
]
BRING = [
    "{when}, {h} and {ao} went to {p} with {at}.",
    "{when}, {h} took {at} to {p}, and {ao} came along.",
    "{h} had {at} and a good friend, {ao}. {when}, the two friends went to {p}.",
    "{h} loved {p} more than any other place. {when}, {h} went there with {ao} and {at}.",
    "{when}, {h} wanted to show {at} to {ao}, so the two met {inp}.",
    "{when}, {h} and {ao} met {inp}. {h} had brought {at}.",
    "There was once a child named {h}, who had {at}. {when}, {h} went to {p} with {ao}.",
    "{when}, {ao} waited {inp} for {h}, who soon came with {at}.",
]
BRING_ALONE = [
    "{when}, {h} went to {p} with {at}.",
    "{when}, {h} took {at} to {p}.",
    "{h} had {at} and took it everywhere. {when}, {h} was {inp}.",
    "{h} loved {p} more than any other place. {when}, {h} went there with {at}.",
    "There was once a child named {h}, who had {at}. {when}, {h} went to {p}.",
]
FIND = [
    "{when}, {h} and {ao} were playing {inp} when they found {at}.",
    "{when}, {h} went to {p} with {ao}. There they found {at}.",
    "{when}, {h} and {ao} went to {p}, and there they found {at}.",
    "{h} and {ao} were friends. {when}, they found {at} {inp}.",
]
FIND_ALONE = [
    "{when}, {h} was playing {inp} and found {at}.",
    "{when}, {h} went to {p}. There {h} found {at}.",
    "{h} liked to look for treasure. {when}, {h} found {at} {inp}.",
]
CODA = [
    "From then on, {h} and {o} were the best of friends.",
    "It was a day that {h} and {o} never forgot.",
    "Then {h} and {o} went home, tired and happy.",
    "When the sun went down, {h} and {o} were still laughing.",
    '"What a good day," said {h}, and {o} agreed.',
    "{h} and {o} still talk about that day.",
    "And so {h} and {o} learned that good friends are the best treasure.",
    "That night, {h} and {o} slept very well.",
    "The next day, {h} and {o} came back to {p} to play again.",
]
CODA_ALONE = [
    "It was a day that {h} never forgot.",
    "Then {h} went home, tired and happy.",
    "That night, {h} slept very well.",
    "When the sun went down, {h} was still smiling.",
    '"What a good day," said {h}.',
    "{h} still tells this story today.",
    "And so {h} learned that it is good to be patient.",
    "The next day, {h} came back to {p} to play again.",
]


@dataclass(frozen=True)
class Plot:
    # one of each is told; the third is left out of a short story
    parts: tuple[list[str], ...]
    # what else is drawn: "{o}" and "{h}" may be among it
    slots: dict[str, list[str]]
    asks: dict[str, tuple[list[str], str]]  # questions of this plot alone
    outdoors: bool = False


LOST = (
    [
        "{h} put {t} down for a moment, and then it was gone.",
        "But soon {h} looked around and could not see {t} anywhere.",
        "It was so nice there that {h} forgot to watch {t}. Suddenly it was gone.",
        "But when it was time to go home, {t} was missing.",
    ],
    [
        "{h} looked high and low, but found nothing.",
        '"Oh no!" said {h}. "I have lost {t}."',
        "{h} was very sad and did not know what to do.",
        "{h} was afraid that {t} was lost for good.",
    ],
)
LOST_ASKS = {
    "lost": (["What did {h} lose?", "What was lost?", "What was missing?"], "{h} lost {ct}."),
    "spot": (
        ["Where was {t} found?", "Where was {t} in the end?", "In which spot was {t} found?"],
        "{T} was {spot}.",
    ),
}
DUST = [
    "But {t} was so {state} that it was hard to see what it was.",
    "It was very {state}, as if nobody had touched it for years.",
    '"Poor thing," said {h}. "It is so {state}!"',
    "It must have been there for a long time, for it was very {state}.",
]
DUST_ASKS = {
    "state": (
        ["What was wrong with {t}?", "How did {t} look at first?"],
        "{T} was {state} at first.",
    )
}
STATES = ["dusty", "muddy", "dirty", "grubby"]

PLOTS = {
    "lost": Plot(
        (
            BRING,
            *LOST,
            [
                "Then {o} looked around slowly and found {t}. It was {spot}.",
                "{O} did not give up and found {t} at last. It was {spot}.",
                "But {o} was good at finding things, and found {t} {spot}.",
                "After a long search, {o} found {t} {spot}.",
            ],
            [
                "{h} thanked {o} and promised to be more careful.",
                "{h} laughed with joy and gave {o} a cake.",
                "{h} danced with joy and sang a song for {o}.",
                '"Thank you, my friend!" said {h}.',
            ],
        ),
        {"spot": SPOTS},
        LOST_ASKS
        | {"finder": (["Who found {t}?", "Who found {t} in the end?"], "{O} found {ct}.")},
    ),
    "dusty": Plot(
        (
            FIND,
            DUST,
            [
                "{h} wanted to leave it, but {o} had a better idea.",
                "{h} and {o} looked at it for a long time.",
                "{h} went to get some water, and {o} waited.",
                '"We can make it shine again," said {h}.',
            ],
            [
                "So {h} and {o} cleaned {t} until it was as good as new.",
                "{h} washed {t} with care while {o} sang a little song.",
                "{h} rubbed {t} with a soft cloth, and {o} helped.",
                "They worked together, and soon {t} was clean.",
            ],
            [
                "How pretty it was now!",
                "Now {ct} was the finest thing for miles around.",
                "In the light, {ct} looked like treasure.",
                "Everyone who passed by stopped to look at {ct}.",
            ],
        ),
        {"state": STATES},
        DUST_ASKS
        | {
            "found": (
                ["What did they find?", "What did {h} and {o} find?", "What was found?"],
                "{h} and {o} found {ct}.",
            )
        },
    ),
    "gift": Plot(
        (
            [
                "{when}, {h} went to {p} and met {ao} there.",
                "{when}, {h} met {ao} {inp}.",
                "{when}, {ao} sat all alone {inp}. Then {h} came by.",
                "{h} often went to {p}. {when}, {h} met {ao} there.",
            ],
            [
                "{O} was sad because {why}.",
                "{O} did not smile. {O} was sad because {why}.",
                "It was easy to see that {o} was sad because {why}.",
            ],
            [
                "{h} thought about it for a while.",
                "{h} sat down and listened.",
                '"Do not be sad," said {h}. "I can help you."',
                "{h} did not want to leave a friend like that.",
            ],
            [
                "{h} had {at} and gave it to {o}.",
                "Then {h} gave {o} a gift. It was {at}.",
                "So {h} ran home, came back with {at}, and gave it to {o}.",
                "{h} owned {at}. It was a great treasure, but {h} gave it to {o}.",
            ],
            [
                "{O} smiled for the first time that day.",
                "{O} jumped up and down with joy.",
                "At once {o} felt much better.",
                "{O} had never had such a fine gift before.",
            ],
        ),
        {
            "why": [
                "nobody wanted to play",
                "all the friends had gone away",
                "it was a long way home",
                "nobody had come to the party",
                "the day was so long and dull",
                "there was nothing new to see",
            ]
        },
        {
            "gift": (
                ["What did {h} give to {o}?", "What was the gift?", "What did {o} get?"],
                "{h} gave {ct} to {o}.",
            ),
            "giver": (
                ["Who gave {t} away?", "Who gave {t} to {o}?", "Who made the gift?"],
                "{h} gave {t} to {o}.",
            ),
            "why": (
                ["Why was {o} sad?", "Why did {o} feel sad?", "What made {o} sad?"],
                "{O} was sad because {why}.",
            ),
        },
    ),
    "storm": Plot(
        (
            BRING,
            [
                "Suddenly dark clouds came, and it began to {weather}.",
                "Then a cold wind blew, and it began to {weather}.",
                "But soon the sky turned dark, and it began to {weather}.",
                "Without any warning, it began to {weather}.",
            ],
            [
                "{h} was worried about {t}.",
                '"We must keep {t} dry," said {h}.',
                "There was no roof anywhere near.",
                "{h} held on to {t} and shivered.",
            ],
            [
                "Luckily, {wise} found a dry place {nook}.",
                "But {wise} looked around and found a dry place {nook}.",
                "Just in time, {wise} found a dry place {nook}.",
            ],
            [
                "They waited there until the sun came out, and {t} stayed dry.",
                "They told each other stories there until the storm was over.",
                "There they sat close together with {t} until the sky was blue again.",
                "When it was over, a rainbow stood in the sky.",
            ],
        ),
        {
            "weather": ["rain", "snow", "hail"],
            "wise": ["{h}", "{o}"],
            "nook": [
                "under a big tree",
                "inside a hollow tree",
                "under a rock",
                "inside an old hut",
                "under a wooden roof",
            ],
        },
        {
            "weather": (
                [
                    "What was the weather like?",
                    "What began to fall from the sky?",
                    "How did the weather change?",
                ],
                "It began to {weather}.",
            ),
            "nook": (
                [
                    "Where was the dry place?",
                    "Where did they stay dry?",
                    "Where did they hide from the storm?",
                ],
                "The dry place was {nook}.",
            ),
            "wise": (
                ["Who found a dry place?", "Who found the dry place?"],
                "{W} found the dry place.",
            ),
        },
        outdoors=True,
    ),
    "share": Plot(
        (
            FIND,
            [
                "Both of them wanted to keep it.",
                '"It is mine!" said {h}. But {o} wanted it too.',
                "{h} wanted to keep it, and so did {o}.",
            ],
            [
                "Soon they were not talking to each other.",
                "For a while, nobody was happy.",
                "They both held on to {t} and would not let go.",
                "It was their first fight, and it felt bad.",
            ],
            [
                'Then {wise} had an idea. "We can {plan}," said {wise}.',
                'At last {wise} took a deep breath and said, "We can {plan}."',
                'After some time, {wise} said in a soft voice, "We can {plan}."',
            ],
            [
                "That was a fine plan, and the fight was over.",
                "They both laughed, and the fight was over.",
                "It worked so well that nobody was angry any more.",
                "And that is just what they did with {ct}.",
            ],
        ),
        {
            "wise": ["{h}", "{o}"],
            "plan": [
                "take turns",
                "share it",
                "give it to a museum",
                "use it together",
                "keep it here for everyone",
            ],
        },
        {
            "wise": (
                ["Who had the idea?", "Who had the good idea?", "Who ended the fight?"],
                "{W} had the idea.",
            ),
            "plan": (
                ["What was the idea?", "What was the plan?", "How did the fight end?"],
                "The idea was to {plan}.",
            ),
            "found": (
                ["What did they find?", "What did {h} and {o} find?", "What was found?"],
                "{h} and {o} found {ct}.",
            ),
        },
    ),
    "game": Plot(
        (
            [
                "{when}, {h} and {ao} {play} {inp}.",
                "{when}, {h} met {ao} {inp}, and the two {play}.",
                "{when}, {h} went to {p}. There {h} and {ao} {play}.",
            ],
            [
                "The prize was {at}.",
                '"The winner gets a prize," said {h}. The prize was {at}.',
                "There was a prize to win. The prize was {at}.",
            ],
            [
                "They both tried very hard.",
                "It was not easy at all.",
                "At first it looked as if nobody would win.",
                "They played for a long time.",
            ],
            [
                "In the end, {wise} won.",
                "It was very close, but {wise} won.",
                "At last, {wise} won and got {ct}.",
            ],
            [
                "But the winner shared the prize, and both were glad.",
                '"Well done!" everyone said, and {t} was passed around.',
                "But it was so much fun that they played again the next day.",
                "The winner was proud, and {ct} looked very fine.",
            ],
        ),
        {
            "wise": ["{h}", "{o}"],
            "play": [
                "played hide and seek",
                "had a race",
                "held a singing contest",
                "held a dancing contest",
            ],
        },
        {
            "wise": (
                ["Who won?", "Who won in the end?", "Who was the winner?"],
                "{W} won in the end.",
            ),
            "prize": (
                ["What was the prize?", "What could they win?", "What did the winner get?"],
                "The prize was {ct}.",
            ),
            "play": (
                ["What did they do together?", "What did {h} and {o} do?", "What game was it?"],
                "{h} and {o} {play}.",
            ),
        },
    ),
}
ALONE = {
    "lost": Plot(
        (
            BRING_ALONE,
            *LOST,
            [
                "But {h} did not give up and found {t} at last. It was {spot}.",
                "After a long search, {h} found {t} {spot}.",
                "Then {h} stopped, took a deep breath and looked again. There was {t}, {spot}!",
            ],
            [
                "{h} laughed with joy and promised to be more careful.",
                "{h} danced with joy all the way home.",
                '"There you are!" said {h}, and held on to it all the way home.',
            ],
        ),
        {"spot": SPOTS},
        LOST_ASKS,
    ),
    "dusty": Plot(
        (
            FIND_ALONE,
            DUST,
            [
                "{h} looked at it for a long time.",
                '"I can make it shine again," said {h}.',
                "But {h} had a good idea.",
            ],
            [
                "{h} rubbed {t} with a soft cloth until it was as good as new.",
                "{h} went to get some water and washed {t} with great care.",
                "So {h} cleaned {t}, bit by bit, and sang a little song.",
            ],
            [
                "How pretty it was now!",
                "Now {ct} was the finest thing for miles around.",
                "In the light, {ct} looked like treasure.",
            ],
        ),
        {"state": STATES},
        DUST_ASKS | {"found": (["What did {h} find?", "What was found?"], "{h} found {ct}.")},
    ),
    "draw": Plot(
        (
            BRING_ALONE,
            [
                "{h} wanted to {make} {t}, but the first try looked all wrong.",
                "There {h} tried to {make} {t}, but it was too hard.",
                '"Today I will {make} {t}," said {h}. But it was not easy.',
            ],
            [
                "{h} was a little sad, and took a rest.",
                '"I will try once more," said {h}.',
                "A bird sang, as if to say that {h} must not stop.",
            ],
            [
                "So {h} tried again and again, and the {number} try was perfect.",
                "But {h} went on, and the {number} try was perfect.",
                "{h} looked at {t} very closely. At last, the {number} try was perfect.",
            ],
            [
                "Everyone wanted to see it.",
                "{h} put it on the wall at home.",
                "It looked just like {ct}.",
            ],
        ),
        {"make": ["draw", "paint"], "number": ["third", "fourth", "fifth", "sixth", "tenth"]},
        {
            "make": (
                ["What did {h} want to do?", "What did {h} try to do?"],
                "{h} wanted to {make} {ct}.",
            ),
            "number": (
                ["Which try was perfect?", "Which try was the good one?"],
                "The {number} try was perfect.",
            ),
        },
    ),
}
ASKS = {
    "who": (
        [
            "Who is the story about?",
            "Who is in the story?",
            "Who was in the story?",
            "Which characters are in the story?",
        ],
        "The story is about {who}.",
    ),
    "place": (
        [
            "Where did it happen?",
            "Where does the story take place?",
            "Where was {h}?",
            "What is the place of the story?",
        ],
        "The story took place {inp}.",
    ),
    "colour": (
        [
            "What colour was {t}?",
            "What color was {t}?",
            "Which colour did {t} have?",
            "Do you know the colour of {t}?",
        ],
        "{T} was {colour}.",
    ),
    "animal": (
        [
            "Which animal was in the story?",
            "What animal was with {h}?",
            "Which animal did {h} meet?",
            "What kind of animal was it?",
        ],
        "The animal was {ao}.",
    ),
}


@dataclass(frozen=True)
class Tale:
    cast: str  # sorted and joined
    about: str  # "Ada, a fox and a red kite"
    place: str  # "at the lake"
    text: str
    questions: Questions


def tell(rng: random.Random, short: bool = False) -> Tale:
    """A story with a cast drawn at random, and all that can be asked about it."""
    hero, friend = rng.sample(PEOPLE, 2)
    kind, thing, place = (
        rng.choice(["alone", "person", "person", "animal", "animal"]),
        rng.choice(THINGS),
        rng.choice(PLACES),
    )
    colour = rng.choice(COLOURS) if rng.random() < 0.75 else ""
    coloured = f"{colour} {thing}".strip()
    if kind == "animal":
        friend = rng.choice([x for x in ANIMALS if x not in SWIMMERS])
    plots = ALONE if kind == "alone" else PLOTS
    plot = rng.choice([x for x in plots.values() if not (x.outdoors and place in INDOORS)])
    parts = [rng.choice(part) for part in plot.parts]
    o = "the " + friend if kind == "animal" else friend
    fill = {
        "h": hero,
        "o": o,
        "O": cap(o),
        "ao": a(friend) if kind == "animal" else friend,
        "t": "the " + thing,
        "T": "The " + thing,
        "at": a(coloured),
        "ct": "the " + coloured,
        "p": "the " + place,
        "inp": at(place),
        "colour": colour,
        "who": hero if kind == "alone" else f"{hero} and {o}",
        "when": rng.choice(WHEN if parts[0].startswith("{when}") else WHEN[2:]),
    }
    for slot, values in plot.slots.items():
        fill[slot] = rng.choice(values).format(**fill)
    fill["W"] = cap(fill.get("wise", ""))
    coda = rng.choice(CODA_ALONE if kind == "alone" else CODA)
    parts = parts[:2] + parts[3:] if short else parts + [coda]
    text = ". ".join(
        cap(sentence) for sentence in " ".join(part.format(**fill) for part in parts).split(". ")
    )
    questions = {
        k: ([q.format(**fill) for q in qs], cap(answer.format(**fill)))
        for k, (qs, answer) in (ASKS | plot.asks).items()
        if not (k == "colour" and not colour) and not (k == "animal" and kind != "animal")
    }
    people = [hero] if kind == "alone" else [hero, fill["ao"]]
    return Tale(
        "|".join(sorted(([hero] if kind == "alone" else [hero, friend]) + [coloured, place])),
        join(people + [fill["at"]]),
        at(place),
        text,
        questions,
    )


def request(rng: random.Random, tale: Tale) -> str:
    about, place = tale.about, tale.place
    if rng.random() < 0.2:
        return rng.choice(
            [
                "I would like to hear a story about {}. It should take place {}.",
                "A story about {} {}, please.",
                "I want a story with {}, set {}.",
                "Do you know a story about {} {}?",
                "I am bored. Tell me a story about {} {}.",
                "Story time! Today: {} {}.",
            ]
        ).format(about, place)
    return polite(
        rng,
        rng.choice(
            [
                "tell me a story about {} {}",
                "write a story about {} {}",
                "tell a short story about {} {}",
                "write a little story with {} {}",
                "make up a story about {} {}",
                "tell me a tale of {} {}",
                "write me a short story with {} {}",
                "give me a story about {} {}",
                "tell me a bedtime story about {} {}",
                "write a short story with {}, set {}",
            ]
        ).format(about, place),
    )


def story(rng: random.Random) -> Example:
    tale = tell(rng)
    return Example((("user", request(rng, tale)), ("assistant", tale.text)), f"story:{tale.cast}")


def story_question(rng: random.Random) -> Example:
    pasted = rng.random() < 0.5
    tale = tell(rng, short=pasted and rng.random() < 0.7)
    kinds = rng.sample(sorted(tale.questions), 2)
    (asks, answer), (asks_before, answer_before) = (
        tale.questions[kinds[0]],
        tale.questions[kinds[1]],
    )
    ask, before = (
        rng.choice(asks),
        (("user", rng.choice(asks_before)), ("assistant", answer_before)),
    )
    content = f"story_question:{tale.cast}:{kinds[0]}"
    if not pasted:
        told = (("user", request(rng, tale)), ("assistant", tale.text))
        return Example(
            told + (before if rng.random() < 0.25 else ()) + (("user", ask), ("assistant", answer)),
            content,
        )
    way = rng.choice(
        [
            "{s} {q}",
            "{s}\n{q}",
            "{s}\n\n{q}",
            "Story: {s}\nQuestion: {q}",
            "Read this story: {s}\n{q}",
            'Here is a story: "{s}" {q}',
            "Read the story and answer the question. {s} {q}",
            "{q}\n{s}",
            "{q} Here is the story: {s}",
        ]
    )
    if rng.random() < 0.15:
        return Example(
            (
                ("user", way.format(s=tale.text, q=before[0][1])),
                before[1],
                ("user", ask),
                ("assistant", answer),
            ),
            content,
        )
    return Example((("user", way.format(s=tale.text, q=ask)), ("assistant", answer)), content)


VERBS = dict(
    zip(
        "finds sees loses buys carries sells keeps holds drops cleans paints draws hides leaves "
        "makes washes".split(),
        "found saw lost bought carried sold kept held dropped cleaned painted drew hid left made "
        "washed".split(),
    )
)


def rewrite(rng: random.Random) -> Example:
    (one, two, three), (thing, thing2) = rng.sample(PEOPLE, 3), rng.sample(THINGS, 2)
    (colour, colour2), (place, place2) = rng.sample(COLOURS, 2), rng.sample(PLACES, 2)
    verb = rng.choice(sorted(VERBS))
    kind = rng.choice(["colour", "thing", "place", "name", "swap", "past", "present", "colour"])
    shapes = [
        "{o} gave {at} to {w} near the {p}.",
        "{o} and {w} found {at} near the {p}.",
        "{o} showed {w} the {c} {t} from the {p}.",
        "{o} sold the {c} {t} to {w} near the {p}.",
        "{o} took {at} from the {p} to {w}.",
        "{w} saw {o} with {at} near the {p}.",
    ]
    if kind != "swap":
        shapes += [
            "{o} carried the {c} {t} to the {p}.",
            "{o} has {at} from the {p}.",
            "{o} saw {at} near the {p}.",
        ]
    shape = "{o} {v} {at} near the {p}." if kind in ("past", "present") else rng.choice(shapes)

    def say(
        o: str = one, w: str = two, c: str = colour, t: str = thing, p: str = place, v: str = verb
    ) -> str:
        return shape.format(o=o, w=w, c=c, t=t, p=p, v=v, at=a(f"{c} {t}"))

    def change(old: str, new: str, what: str) -> list[str]:
        return [
            f"replace {what}{old} with {new}",
            f"change {what}{old} to {new}",
            f"replace {old} with {new}",
            f"change {old} to {new} in this sentence",
            f"use {new} instead of {old}",
            f"write {new} for {old}",
            f"rewrite this with {new} instead of {old}",
        ]

    first, second = (two, one) if shape.startswith("{w}") else (one, two)
    before, after, ways = {
        "colour": (say(), say(c=colour2), change(colour, colour2, "the colour ")),
        "thing": (say(), say(t=thing2), change(thing, thing2, "the word ")),
        "place": (say(), say(p=place2), change(place, place2, "the place ")),
        "name": (say(), say(o=three), change(one, three, "the name ")),
        "swap": (
            say(),
            say(o=two, w=one),
            [
                "swap the two names",
                "swap the names",
                "swap the names in this sentence",
                "let the two people change places",
                f"swap {first} and {second}",
                f"switch {first} and {second} in this sentence",
            ],
        ),
        "past": (
            say(),
            say(v=VERBS[verb]),
            [
                "put it in the past tense",
                "put this in the past tense",
                "change this to the past tense",
                "write this sentence in the past tense",
                "say that it happened in the past",
                "use the past tense",
            ],
        ),
        "present": (
            say(v=VERBS[verb]),
            say(),
            [
                "put it in the present tense",
                "put this in the present tense",
                "change this to the present tense",
                "write this sentence in the present tense",
                "say that it happens now",
                "use the present tense",
            ],
        ),
    }[kind]
    return Example(
        (("user", polite_with(rng, rng.choice(ways), before)), ("assistant", after)),
        f"rewrite:{kind}|{before}|{after}",
    )


POEMS = {
    "animal place": [
        "There is {an} that I adore,\neach day {inp} I love it more.\nThe {n} and I, we laugh and "
        "play,\nand so we spend the summer day.",
        "A little {n}, so soft and small,\nwas heard {inp} by one and all.\nThe {n} sang a song "
        "at night,\nand all the stars were shining bright.",
        "I met {an} {inp} today,\nit looked at me and came to play.\nOh little {n}, be my "
        "friend,\nand may this day never end.",
        "Good night, dear {n}, the day is done,\nwe played {inp} and had our fun.\nNow close your "
        "eyes, the moon is high,\nand stars are shining in the sky.",
    ],
    "animal colour": [
        "I know a {c} {n} who likes to sing,\nit sings of summer, sun and spring.\nThe {c} {n} "
        "can dance with me\nbeneath the tall old apple tree.",
        "A {c} {n} came to my door,\nI never saw its like before.\nIt had some cake, it had some "
        "tea,\nand then it sat down next to me.",
        "The {c} {n} looked up at the moon,\nand hummed a happy little tune.\nThe {c} {n} slept "
        "all through the night,\nand woke up in the morning light.",
    ],
    "thing place": [
        "I found {an} {inp} one day,\nand will not give the {n} away.\nIt makes me smile, it "
        "makes me sing,\nmy {n} is such a lovely thing.",
        "There is {an} {inp}, I know,\nwhere gentle winds of summer blow.\nThe {n} waits there "
        "for you and me,\nas quiet as a thing can be.",
        "Who left {an} {inp} last night?\nIt shone so softly in the light.\nThe {n} is old, the "
        "{n} is dear,\nand I am glad that it is here.",
        "The rain came down, the wind blew cold,\nthe {n} {inp} was very old.\nI took the {n} and "
        "held it tight,\nand kept it warm and dry all night.",
    ],
    "thing colour": [
        "My {c} {n} is good and true,\nI take it out when skies are blue.\nAnd when the day turns "
        "into night,\nmy {c} {n} still feels just right.",
        "A {c} {n}, a sunny day,\na song to sing along the way.\nWhat more could anybody need?\nA "
        "{c} {n} is good indeed.",
        "Look at the {c} {n}, how fine!\nI am so happy it is mine.\nBut you can have my {c} {n} "
        "too,\nfor all I have I share with you.",
    ],
}


def poem(rng: random.Random) -> Example:
    kind = rng.choice(sorted(POEMS))
    noun = rng.choice(
        [x for x in ANIMALS if x not in SWIMMERS] if kind.startswith("animal") else THINGS
    )
    place, colour = rng.choice(PLACES), rng.choice(COLOURS)
    text = "\n".join(
        cap(x)
        for x in rng.choice(POEMS[kind])
        .format(n=noun, an=a(noun), c=colour, inp=at(place))
        .replace("A orange", "An orange")
        .replace("a orange", "an orange")
        .split("\n")
    )
    about = a(f"{colour} {noun}") if kind.endswith("colour") else f"{a(noun)} {at(place)}"
    ask = polite(
        rng,
        rng.choice(
            [
                "write a poem about {}",
                "write a short poem about {}",
                "make a poem about {}",
                "write me a little poem about {}",
                "give me four lines about {} that rhyme",
                "make up a rhyme about {}",
                "tell me a poem about {}",
                "write a rhyme with {}",
            ]
        ).format(about),
    )
    return Example(
        (("user", ask), ("assistant", text)),
        f"poem:{noun}|{colour if kind.endswith('colour') else place}",
    )


LISTS = {
    "numbered": [
        "make a numbered list",
        "write these as a numbered list",
        "number these items",
        "turn this into a numbered list",
        "put these in a numbered list",
    ],
    "bulleted": [
        "make a bulleted list",
        "write these as a bulleted list",
        "make a list with bullets",
        "turn this into a bulleted list",
        "put a dash before each item",
    ],
    "sentence": [
        "join these with commas and the word and",
        "join these words with commas and 'and'",
        "write these in one line with commas and 'and'",
        "make one phrase of these, with commas and an 'and'",
        "put these in a row with commas and 'and'",
    ],
}


def list_from(rng: random.Random) -> Example:
    kind = rng.choice(sorted(LISTS))
    items = rng.sample(
        rng.choice([THINGS, ANIMALS, FOODS, COLOURS, PEOPLE, PLACES, THINGS + FOODS + ANIMALS]),
        rng.randint(3, 5),
    )
    given = rng.choice([", ".join, ", ".join, " ".join, "; ".join])(items)
    head = rng.choice(LISTS[kind])
    ask = rng.choice(
        [
            f"{cap(head)}: {given}",
            f"Please {head}: {given}",
            f"Can you {head}? {given}",
            f"Could you please {head}? {given}",
            f"I have these words: {given}\nPlease {head}.",
        ]
    )
    answer = {
        "numbered": "\n".join(f"{i}. {x}" for i, x in enumerate(items, 1)),
        "bulleted": "\n".join(f"- {x}" for x in items),
        "sentence": f"In a row: {join(items)}",
    }[kind]
    return Example((("user", ask), ("assistant", answer)), f"list_from:{kind}|" + "|".join(items))


FAMILIES: list[Family] = [
    Family("story", story, False, 1.5),
    Family("story_question", story_question, True, 5.0),
    Family("who_has", who_has, True, 5.0),
    Family("where", where, True, 4.0),
    Family("rewrite", rewrite, True, 4.0),
    Family("poem", poem, False, 1.0),
    Family("list_from", list_from, True, 1.5),
]
