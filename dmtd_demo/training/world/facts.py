"""True facts in tables, asked in many ways and answered with one sentence that is always the same
for a fact and a direction.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from dmtd_demo.training.world import Example, Family

TWO_FACTS_SHARE = 0.2
LOWER_CASE_SHARE = 0.12  # questions typed without a capital
BARE_SHARE = 0.12  # and without their last mark
POLITE_SHARE = 0.12
POLITE = (
    "Please tell me: {}",
    "Hi, {}",
    "A question: {}",
    "Quick question: {}",
    "I would like to know: {}",
    "Tell me: {}",
)


def vary(rng: random.Random, question: str, prefixes: bool = True) -> str:
    """The question as different people would type it: polite, without its capital or its mark."""
    if prefixes and question.endswith("?") and rng.random() < POLITE_SHARE:
        question = rng.choice(POLITE).format(question[0].lower() + question[1:])
    if rng.random() < LOWER_CASE_SHARE:
        question = question[0].lower() + question[1:]
    if rng.random() < BARE_SHARE:
        question = question.rstrip("?.")
    return question


@dataclass(frozen=True)
class Kind:
    """One direction of one table.

    questions: without capital and mark. answer and questions take their slots from a row.
    """

    questions: tuple[str, ...]
    answer: str
    rows: list[dict[str, str]]


def table(text: str) -> list[tuple[str, str]]:
    """ "France Paris, New Zealand=Wellington" -> pairs; '=' where a side has spaces."""
    pairs = []
    for entry in text.split(","):
        left, right = entry.strip().split("=") if "=" in entry else entry.split()
        pairs.append((left.strip(), right.strip()))
    return pairs


def an(word: str) -> str:
    return ("an " if word[0].lower() in "aeiou" else "a ") + word


def rows_of(pairs: list[tuple[str, str]]) -> list[dict[str, str]]:
    """Slots a and b, with an article (aa, bb) and capitalised (A, AA, B)."""
    return [
        {
            "a": a,
            "b": b,
            "aa": an(a),
            "AA": an(a).capitalize(),
            "bb": an(b),
            "A": a[0].upper() + a[1:],
            "B": b[0].upper() + b[1:],
        }
        for a, b in pairs
    ]


CAPITALS = table(
    "France Paris, Germany Berlin, Italy Rome, Spain Madrid, Portugal Lisbon, England London, "
    "Ireland Dublin, Scotland Edinburgh, "
    "Norway Oslo, Sweden Stockholm, Finland Helsinki, Denmark Copenhagen, Iceland Reykjavik, "
    "Poland Warsaw, Austria Vienna, "
    "Hungary Budapest, Greece Athens, Turkey Ankara, Russia Moscow, Ukraine Kyiv, Romania "
    "Bucharest, Bulgaria Sofia, Croatia Zagreb, "
    "Belgium Brussels, China Beijing, Japan Tokyo, India=New Delhi, Thailand Bangkok, Vietnam "
    "Hanoi, South Korea=Seoul, Nepal Kathmandu, "
    "Egypt Cairo, Kenya Nairobi, Morocco Rabat, Ghana Accra, Ethiopia=Addis Ababa, Canada Ottawa, "
    "Mexico=Mexico City, Cuba Havana, "
    "Brazil Brasilia, Argentina=Buenos Aires, Peru Lima, Chile Santiago, Colombia Bogota, "
    "Australia Canberra, New Zealand=Wellington"
)
ELEMENTS = table(
    "hydrogen H, helium He, carbon C, nitrogen N, oxygen O, neon Ne, sodium Na, magnesium Mg, "
    "aluminium Al, silicon Si, sulfur S, "
    "chlorine Cl, potassium K, calcium Ca, iron Fe, nickel Ni, copper Cu, zinc Zn, silver Ag, tin "
    "Sn, gold Au, mercury Hg, lead Pb, "
    "uranium U, iodine I"
)
PLANETS = "Mercury Venus Earth Mars Jupiter Saturn Uranus Neptune".split()
PLANET_FACTS = table(
    "Mercury=the smallest planet, Venus=the hottest planet, Earth=the planet we live on, Mars=the "
    "red planet, "
    "Jupiter=the largest planet, Saturn=the planet with the brightest rings, Uranus=the planet "
    "that lies on its side, "
    "Neptune=the planet farthest from the Sun"
)
MONTHS = (
    "January February March April May June July August September October November December".split()
)
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
SEASONS = "spring summer autumn winter".split()
ORDINALS = (
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth".split()
)
YOUNG = table(
    "cat kitten, dog puppy, cow calf, horse foal, sheep lamb, goat=kid, pig piglet, duck "
    "duckling, hen chick, fox cub, swan cygnet, "
    "goose gosling, deer fawn, kangaroo joey, frog tadpole, owl owlet, hare leveret, eagle eaglet"
)
ONE_PARENT = [(parent, child) for parent, child in YOUNG if child not in ("cub", "calf", "chick")]
SOUNDS = table(
    "cat meows, dog barks, cow moos, horse neighs, sheep baas, pig oinks, duck quacks, hen "
    "clucks, lion roars, wolf howls, "
    "owl hoots, frog croaks, bee buzzes, snake hisses, mouse squeaks, donkey brays, crow caws, "
    "rooster crows, dove coos, elephant trumpets"
)
OPPOSITES = table(
    "big small, old new, bright dark, warm cool, hot cold, quiet loud, soft hard, heavy light, "
    "clean dirty, "
    "tall short, brave cowardly, kind cruel, happy sad, fast slow, early late, open closed, full "
    "empty, high low, wet dry, rich poor, "
    "strong weak, good bad, right wrong, near far, deep shallow, thick thin, wide narrow, smooth "
    "rough, sharp blunt, sweet sour, true false, "
    "easy difficult, cheap expensive, safe dangerous, noisy silent, rare common, simple "
    "complicated, polite rude"
)
MIXES = [
    ("red", "yellow", "orange"),
    ("blue", "yellow", "green"),
    ("red", "blue", "purple"),
    ("red", "white", "pink"),
    ("black", "white", "grey"),
    ("red", "green", "brown"),
]
SIDES = table(
    "triangle three, square four, rectangle four, pentagon five, hexagon six, heptagon seven, "
    "octagon eight, nonagon nine, decagon ten"
)
LEGS = table(
    "spider eight, ant six, bee six, dog four, cat four, horse four, hen two, duck two, snake no, "
    "fish no, snail no, crab ten, frog four, fly six, "
    "beetle six, person two, cow four, scorpion eight, butterfly six, swan two"
)
PLURALS = table(
    "mouse mice, goose geese, child children, man men, woman women, foot feet, tooth teeth, ox "
    "oxen, sheep sheep, fish fish, deer deer, "
    "leaf leaves, wolf wolves, knife knives, wife wives, shelf shelves, city cities, baby babies, "
    "story stories, box boxes, fox foxes, "
    "bus buses, person people, potato potatoes, life lives, brush brushes, church churches, loaf "
    "loaves"
)
SINGULAR_KNOWN = [(one, many) for one, many in PLURALS if one != many]
PAST = table(
    "go went, see saw, eat ate, run ran, write wrote, sing sang, swim swam, drink drank, give "
    "gave, take took, come came, find found, "
    "think thought, buy bought, bring brought, fly flew, draw drew, build built, sleep slept, "
    "begin began, make made, know knew"
)
HOMES = table(
    "bee=a hive, bird=a nest, spider=a web, fish=water, rabbit=a burrow, bear=a den, horse=a "
    "stable, cow=a barn, pig=a sty, fox=a den, "
    "lion=the savanna, camel=the desert, dog=a kennel, whale=the sea, beaver=a lodge"
)
GROUPS = table(
    "cat mammal, dog mammal, whale mammal, bat mammal, eagle bird, penguin bird, owl bird, salmon "
    "fish, shark fish, frog amphibian, "
    "newt amphibian, snake reptile, lizard reptile, turtle reptile, bee insect, ant insect, "
    "butterfly insect, swan bird, horse mammal, crow bird"
)
TOOLS = table(
    "time=a clock, temperature=a thermometer, weight=a scale, length=a ruler, air pressure=a "
    "barometer, direction=a compass, "
    "the speed of a car=a speedometer, an angle=a protractor"
)
UNITS = [
    ("minute", "sixty", "seconds"),
    ("hour", "sixty", "minutes"),
    ("day", "twenty-four", "hours"),
    ("week", "seven", "days"),
    ("year", "twelve", "months"),
    ("decade", "ten", "years"),
    ("century", "one hundred", "years"),
    ("metre", "one hundred", "centimetres"),
    ("kilometre", "one thousand", "metres"),
    ("kilogram", "one thousand", "grams"),
    ("dozen", "twelve", "items"),
    ("byte", "eight", "bits"),
    ("millennium", "one thousand", "years"),
    ("pair", "two", "items"),
]
SEASON_SIGNS = table(
    "spring=flowers begin to bloom, summer=the days are the warmest, autumn=many leaves fall, "
    "winter=the days are the coldest"
)
LETTERS = [chr(ord("A") + i) for i in range(26)]


def neighbours(names: list[str], noun: str, answer_noun: str, ring: bool) -> list[Kind]:
    """What comes after and before in an ordered list.

    answer_noun: what the sentence calls its subject, or ''.
    """
    after = list(zip(names, names[1:] + names[:1])) if ring else list(zip(names, names[1:]))
    kinds = []
    for side, other, pairs in (
        ("after", "follows", after),
        ("before", "comes right before", [(b, a) for a, b in after]),
    ):
        questions = (
            f"which {noun} comes {side} {{a}}",
            f"what {noun} comes {side} {{a}}",
            f"what is the {noun} {side} {{a}}",
            f"name the {noun} {side} {{a}}",
            f"tell me the {noun} that comes {side} {{a}}",
            f"which {noun} {other} {{a}}",
            f"what comes right {side} the {noun} {{a}}",
        )
        kinds.append(Kind(questions, f"The {answer_noun}{side} {{a}} is {{b}}.", rows_of(pairs)))
    return kinds


def ordered(names: list[str], noun: str, place: str) -> list[Kind]:
    """The n-th of a list, and the place of a member.

    noun, place: e.g. 'month', 'month of the year'.
    """
    pairs = list(zip(names, ORDINALS))
    return [
        Kind(
            (
                f"what is the {{b}} {place}",
                f"which is the {{b}} {place}",
                f"name the {{b}} {place}",
                f"tell me the {{b}} {place}",
                f"what do we call the {{b}} {place}",
                f"can you name the {{b}} {place}",
            ),
            f"The {{b}} {place} is {{a}}.",
            rows_of(pairs),
        ),
        Kind(
            (
                f"which {place} is {{a}}",
                f"what number is {{a}} when we count every {noun}",
                f"tell me which {place} {{a}} is",
                f"in which position is {{a}} among the {noun}s",
                f"what is the position of {{a}} among the {noun}s",
                f"{{a}} is which {place}",
                f"where does {{a}} stand in the order of the {noun}s",
            ),
            f"{{a}} is the {{b}} {place}.",
            rows_of(pairs),
        ),
    ]


def days_of(month: str) -> str:
    if month == "February":
        return "28 days, and 29 in a leap year"
    return "30 days" if month in ("April", "June", "September", "November") else "31 days"


def mix_rows() -> list[dict[str, str]]:
    """Both orders are asked; the answer keeps the table's."""
    return [
        {"p": p, "q": q, "A": a.capitalize(), "b": b, "c": c}
        for a, b, c in MIXES
        for p, q in ((a, b), (b, a))
    ]


KINDS: list[Kind] = [
    Kind(
        (
            "what is the capital of {a}",
            "which city is the capital of {a}",
            "tell me the capital of {a}",
            "name the capital of {a}",
            "what is {a}'s capital",
            "what is the capital city of {a}",
            "do you know the capital of {a}",
            "capital of {a}",
        ),
        "The capital of {a} is {b}.",
        rows_of(CAPITALS),
    ),
    Kind(
        (
            "which country has the capital {b}",
            "{b} is the capital of which country",
            "of which country is {b} the capital",
            "what country is {b} the capital of",
            "tell me which country has {b} as its capital",
            "name the country whose capital is {b}",
        ),
        "{b} is the capital of {a}.",
        rows_of(CAPITALS),
    ),
    Kind(
        (
            "what is the symbol of {a}",
            "what is the chemical symbol for {a}",
            "which symbol does {a} have",
            "tell me the symbol of {a}",
            "how do chemists write {a}",
            "what is the symbol of the element {a}",
            "chemical symbol of {a}",
        ),
        "The chemical symbol of {a} is {b}.",
        rows_of(ELEMENTS),
    ),
    Kind(
        (
            "which element has the symbol {b}",
            "what element is {b}",
            "what does the chemical symbol {b} stand for",
            "which chemical element is written {b}",
            "name the element with the symbol {b}",
            "tell me which element has the symbol {b}",
        ),
        "{b} is the chemical symbol of {a}.",
        rows_of(ELEMENTS),
    ),
    *ordered(PLANETS, "planet", "planet from the Sun"),
    *neighbours(PLANETS, "planet", "planet ", ring=False),
    Kind(
        (
            "which planet do we call {b}",
            "what is the name of {b}",
            "tell me the name of {b}",
            "can you name {b}",
            "name {b}",
            "do you know {b}",
        ),
        "{A} is {b}.",
        rows_of(PLANET_FACTS),
    ),
    Kind(
        (
            "what is special about {a}",
            "tell me something about the planet {a}",
            "what do you know about {a}",
            "what is the planet {a} known for",
            "tell me a fact about {a}",
            "how would you describe the planet {a}",
        ),
        "{A} is {b}.",
        rows_of(PLANET_FACTS),
    ),
    *ordered(MONTHS, "month", "month of the year"),
    *neighbours(MONTHS, "month", "month ", ring=True),
    Kind(
        (
            "how many days does {a} have",
            "how many days are in {a}",
            "how many days are there in {a}",
            "what is the number of days in {a}",
            "how long is {a}",
            "tell me how many days {a} has",
        ),
        "{a} has {b}.",
        rows_of([(month, days_of(month)) for month in MONTHS]),
    ),
    *neighbours(DAYS, "day", "day ", ring=True),
    *neighbours(SEASONS, "season", "season ", ring=True),
    *neighbours(LETTERS, "letter", "letter ", ring=False),
    Kind(
        (
            "which season is it when {b}",
            "what do we call the season when {b}",
            "which is the season when {b}",
            "what is the season in which {b}",
            "tell me the season when {b}",
            "name the season when {b}",
        ),
        "{A} is the season when {b}.",
        rows_of(SEASON_SIGNS),
    ),
    Kind(
        (
            "what is a young {a} called",
            "what do we call a young {a}",
            "what is the young of {aa} called",
            "what is a baby {a} called",
            "tell me the word for a young {a}",
            "what is the name for a baby {a}",
            "do you know what a young {a} is called",
        ),
        "A young {a} is called {bb}.",
        rows_of(YOUNG),
    ),
    Kind(
        (
            "which animal does {bb} grow into",
            "what does {bb} become",
            "what is {bb} when it is grown up",
            "{bb} is the young of which animal",
            "tell me which animal {bb} grows into",
            "which animal was once {bb}",
        ),
        "{B} is the word for a young {a}.",
        rows_of(ONE_PARENT),
    ),
    Kind(
        (
            "what sound does {aa} make",
            "which sound does {aa} make",
            "do you know the sound of {aa}",
            "how does {aa} sound",
            "tell me the sound of {aa}",
            "what do we call the sound of {aa}",
        ),
        "{AA} {b}.",
        rows_of(SOUNDS),
    ),
    Kind(
        (
            "which animal {b}",
            "what animal {b}",
            "name an animal that {b}",
            "tell me an animal that {b}",
            "do you know an animal that {b}",
            "can you name an animal that {b}",
        ),
        "An animal that {b} is the {a}.",
        rows_of(SOUNDS),
    ),
    Kind(
        (
            "what is the opposite of {a}",
            "which word is the opposite of {a}",
            "tell me the opposite of {a}",
            "name the opposite of {a}",
            "which word means the opposite of {a}",
            "give me the opposite of {a}",
            "opposite of {a}",
        ),
        "The opposite of {a} is {b}.",
        rows_of(OPPOSITES + [(b, a) for a, b in OPPOSITES]),
    ),
    Kind(
        (
            "which colour do {p} and {q} make",
            "what do {p} and {q} make when you mix them",
            "what colour do I get if I mix {p} and {q}",
            "what happens if I mix {p} paint with {q} paint",
            "tell me what {p} and {q} give together",
            "which color comes from mixing {p} with {q}",
        ),
        "{A} and {b} make {c}.",
        mix_rows(),
    ),
    Kind(
        (
            "which two colours make {c}",
            "how do I mix {c}",
            "what two colors give {c}",
            "what do I need to mix {c}",
            "how can I make {c} paint",
            "tell me how to mix {c}",
        ),
        "You get {c} by mixing {a} and {b}.",
        [{"a": a, "b": b, "c": c} for a, b, c in MIXES],
    ),
    Kind(
        (
            "how many sides does {aa} have",
            "can you tell me how many sides {aa} has",
            "what is the number of sides of {aa}",
            "do you know how many sides {aa} has",
            "tell me how many sides {aa} has",
            "how many sides are there in {aa}",
        ),
        "{AA} has {b} sides.",
        rows_of(SIDES),
    ),
    Kind(
        (
            "which shape has {b} sides",
            "what is a shape with {b} sides called",
            "what do we call a shape with {b} sides",
            "name a shape with {b} sides",
            "tell me the shape that has {b} sides",
            "do you know a shape with {b} sides",
        ),
        "A shape with {b} sides is {aa}.",
        rows_of([pair for pair in SIDES if pair[0] != "rectangle"]),
    ),
    Kind(
        (
            "how many legs does {aa} have",
            "do you know how many legs {aa} has",
            "what is the number of legs of {aa}",
            "tell me how many legs {aa} has",
            "on how many legs does {aa} walk",
            "how many legs are there on {aa}",
        ),
        "{AA} has {b} legs.",
        rows_of(LEGS),
    ),
    Kind(
        (
            "what is the plural of {a}",
            "tell me the plural of {a}",
            "how do you say more than one {a}",
            "what is the plural form of {a}",
            "give me the plural of {a}",
            "one {a}, two what",
            "plural of {a}",
        ),
        "The plural of {a} is {b}.",
        rows_of(PLURALS),
    ),
    Kind(
        (
            "what is the singular of {b}",
            "tell me the singular of {b}",
            "what is the singular form of {b}",
            "give me the singular of {b}",
            "what is the word for just one of the {b}",
            "singular of {b}",
        ),
        "The singular of {b} is {a}.",
        rows_of(SINGULAR_KNOWN),
    ),
    Kind(
        (
            "what is the past tense of {a}",
            "tell me the past tense of {a}",
            "what is the past of {a}",
            "give me the past tense of the verb {a}",
            "how do I say {a} in the past",
            "past tense of {a}",
        ),
        "The past tense of {a} is {b}.",
        rows_of(PAST),
    ),
    Kind(
        (
            "where does {aa} live",
            "what is the home of {aa}",
            "tell me where {aa} lives",
            "where can I find {aa}",
            "in which place does {aa} live",
            "where is {aa} at home",
        ),
        "The home of {aa} is {b}.",
        rows_of(HOMES),
    ),
    Kind(
        (
            "what kind of animal is {aa}",
            "which group of animals does {aa} belong to",
            "to which group does {aa} belong",
            "what sort of animal is {aa}",
            "tell me what kind of animal {aa} is",
            "is {aa} a mammal, a bird, a fish or something else",
        ),
        "{AA} is {bb}.",
        rows_of(GROUPS),
    ),
    Kind(
        (
            "what do we use to measure {a}",
            "which tool measures {a}",
            "how can I measure {a}",
            "what is used for measuring {a}",
            "what do I need to measure {a}",
            "tell me which tool measures {a}",
        ),
        "We measure {a} with {b}.",
        rows_of(TOOLS),
    ),
    Kind(
        (
            "how many {c} are in {a}",
            "how many {c} does {a} have",
            "how many {c} are there in {a}",
            "tell me how many {c} {a} has",
            "what is the number of {c} in {a}",
            "do you know how many {c} are in {a}",
        ),
        "{A} has {b} {c}.",
        [
            {
                "a": ("an " if a == "hour" else an(a)[: an(a).index(" ") + 1]) + a,
                "A": ("An " if a == "hour" else "A ") + a,
                "b": b,
                "c": c,
            }
            for a, b, c in UNITS
        ],
    ),
]
WEIGHTS = [len(kind.rows) for kind in KINDS]


def one_fact(rng: random.Random) -> tuple[str, str]:
    """A question without capital and mark, and its answer."""
    kind = rng.choices(KINDS, WEIGHTS)[0]
    row = rng.choice(kind.rows)
    answer = kind.answer.format(**row)
    return rng.choice(kind.questions).format(**row), answer[0].upper() + answer[1:]


def is_request(question: str) -> bool:
    return question.split()[0] in ("tell", "name", "give")


def facts(rng: random.Random) -> Example:
    """One fact, or two in one message, answered in order."""
    question, answer = one_fact(rng)
    if rng.random() < TWO_FACTS_SHARE:
        second, more = one_fact(rng)
        while is_request(second) != is_request(question):
            second, more = one_fact(rng)
        question, answer = (
            f"{question}{rng.choice((', and ', ' and '))}{second}",
            f"{answer} {more}",
        )
    mark = "." if is_request(question) else "?"
    return Example(
        (("user", vary(rng, question[0].upper() + question[1:] + mark)), ("assistant", answer))
    )


FAMILIES: list[Family] = [Family("facts", facts, weight=2.5)]
