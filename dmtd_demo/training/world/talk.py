"""Talk: explanations, greetings, thanks, what `classroom` does not know, and small Python functions
on request.
"""

from __future__ import annotations

import random
import string
from dataclasses import dataclass

from dmtd_demo.training.world import Example, Family
from dmtd_demo.training.world.explanations import EXPLANATIONS
from dmtd_demo.training.world.facts import CAPITALS, vary
from dmtd_demo.training.world.words import ANIMALS, FOODS, PEOPLE, THINGS

REQUESTS = ("{}", "Please {}", "Can you {}?", "Could you {}, please?")
ASIDES = (
    "{}",
    "{}",
    "{}",
    "{}",
    "I have a question. {}",
    "I am new to this. {}",
    "One more thing. {}",
    "{} Please explain it simply.",
)

GREETINGS: dict[str, tuple[str, ...]] = {
    "Hello! I am classroom, a small language model. What shall we try?": (
        "Hello",
        "Hello!",
        "Hi",
        "Hi!",
        "Hey",
        "Hi there!",
        "Hello there",
        "Hello classroom!",
        "Hi classroom",
        "Greetings!",
        "Hey there!",
        "Hello, model!",
    ),
    "Good morning! What shall we try today?": (
        "Good morning",
        "Good morning!",
        "Morning!",
        "Good morning, classroom",
        "A good morning to you!",
    ),
    "Good afternoon! What shall we try today?": (
        "Good afternoon",
        "Good afternoon!",
        "Good day!",
        "Good afternoon, classroom",
        "Good day to you",
    ),
    "Good evening! What shall we try tonight?": (
        "Good evening",
        "Good evening!",
        "Evening!",
        "Good evening, classroom",
        "A good evening to you!",
    ),
    "I am ready and in good order, thank you. What would you like to ask?": (
        "How are you?",
        "How are you today?",
        "Hi, how are you?",
        "Hello, how are you?",
        "How do you do?",
        "How is it going?",
        "Are you well?",
        "How do you feel?",
    ),
    "Nice to meet you too! Ask me for a story, a sum, or how I work.": (
        "Nice to meet you",
        "Nice to meet you!",
        "Pleased to meet you!",
        "Good to see you",
        "Glad to meet you!",
    ),
    "Yes, I am here. What would you like to ask?": (
        "Are you there?",
        "Is anybody there?",
        "Can you hear me?",
        "Are you ready?",
        "Test",
        "Testing",
        "Can we start?",
    ),
}
THANKS: dict[str, tuple[str, ...]] = {
    "You are welcome!": (
        "Thank you",
        "Thank you!",
        "Thanks",
        "Thanks!",
        "Thanks a lot!",
        "Thank you very much",
        "Many thanks!",
        "Thanks for your help",
        "Great, thank you!",
    ),
    "Goodbye! It was nice to talk with you.": (
        "Bye",
        "Bye!",
        "Goodbye",
        "Goodbye!",
        "See you later!",
        "See you soon",
        "I have to go now",
        "That is all for today",
    ),
    "Good night! Come back soon.": (
        "Good night",
        "Good night!",
        "Sleep well!",
        "Good night, classroom",
    ),
    "I am glad that you like it. Shall we try something else?": (
        "Well done!",
        "Good job!",
        "That was great",
        "Very good!",
        "Nice!",
        "I like that",
        "Wonderful!",
        "Cool!",
        "You are clever",
    ),
    "I am sorry about that. I am small, and I make mistakes.": (
        "That is wrong",
        "That was not right",
        "You made a mistake",
        "Wrong!",
        "This is nonsense",
        "That makes no sense",
        "You are wrong",
    ),
    "All right. What would you like to try next?": (
        "OK",
        "Okay",
        "Fine",
        "I see",
        "All right",
        "Yes",
        "No",
        "Got it",
        "Hm",
    ),
}

UNKNOWN = (
    "I do not know that: I am a small model trained on short stories, two-digit sums, word games, "
    "a table of facts, and questions about "
    "how language models work."
)
UNKNOWN_TEMPLATES: tuple[str, ...] = (
    "What will the weather be like in {city} tomorrow?",
    "Will it rain in {city} on the weekend?",
    "How warm is it in {city} right now?",
    "What is the latest news from {country}?",
    "What happened in {country} today?",
    "What is in the news today?",
    "Who won the election in {country}?",
    "Who is the president of {country}?",
    "Who was the first king of {country}?",
    "Which party governs {country}?",
    "What do you think about politics in {country}?",
    "Who won the {sport} match between {country} and {country2}?",
    "Who won the {sport} world cup in {year}?",
    "Who is the best {sport} player in the world?",
    "How many goals did {country} score in {year}?",
    "What are the rules of {sport}?",
    "When does the next {sport} game start?",
    "Who is the most famous actor in {country}?",
    "How old is the singer {name} {surname}?",
    "Who is {name} {surname}?",
    "Where was {name} {surname} born?",
    "Is {name} {surname} married?",
    "Who directed the film {title}?",
    "Who wrote the book {title}?",
    "What is the book {title} about?",
    "Who painted {title}?",
    "Who sings the song {title}?",
    "What is the best film of {year}?",
    "I have a pain in my {part}, what should I do?",
    "Which medicine helps against {illness}?",
    "What are the symptoms of {illness}?",
    "Is {illness} dangerous?",
    "How many calories are in {number} grams of {food}?",
    "Is {food} healthy?",
    "Can I sue my {person} in {country}?",
    "Is it legal to sell {food} in {country}?",
    "How do I write a contract with my {person}?",
    "How much tax do I pay in {country}?",
    "What is the stock price of {name} {surname} Limited?",
    "Should I buy shares or gold in {year}?",
    "How much is one dollar in the money of {country}?",
    "How can I get rich?",
    "How much does {thing} cost in {city}?",
    "Where can I buy {thing} in {city}?",
    "What happened in the year {year}?",
    "Who ruled {country} in {year}?",
    "When did the war in {country} end?",
    "When was {city} founded?",
    "Who discovered {country}?",
    "How many people live in {city}?",
    "What is the population of {country}?",
    "How far is it from {city} to {city2}?",
    "Which language do they speak in {country}?",
    "What is the highest mountain of {country}?",
    "Which is the longest river in {country}?",
    "What should I see in {city}?",
    "Find me a hotel in {city}.",
    "Book a flight from {city} to {city2}.",
    "What is the integral of x to the power of {number}?",
    "Solve the equation {number}x + {small} = {big}.",
    "What is the square root of {big}?",
    "What is {big} times {big2}?",
    "What is the derivative of {small} x^{number}?",
    "Prove that {big} is a prime number.",
    "Translate {word} into {language}.",
    "How do you say {word} in {language}?",
    "What does {word} mean in {language}?",
    "Do you speak {language}?",
    "Write a letter in {language}.",
    "Give me a recipe for {food} {dish}.",
    "How do I cook {food} {dish}?",
    "How long must {food} be in the oven?",
    "What can I cook with {food} and {food2}?",
    "How long does {animal} live?",
    "How fast can {animal} run?",
    "What does {animal} cost?",
    "How do I train {animal}?",
    "How do I repair {thing}?",
    "How is {thing} made?",
    "Who invented {thing}?",
    "Draw a picture of {animal}.",
    "Show me a photo of {city}.",
    "Play some music from {country}.",
    "Set an alarm for {hour} o'clock.",
    "Call my {person}.",
    "Send an email to {name} {surname}.",
    "What time is it in {city}?",
    "What is the date today?",
    "Write a website in JavaScript about {animal}.",
    "Write an essay about {country}.",
    "How do I install {language2} on my computer?",
    "What is the difference between {language2} and {language3}?",
    "Why is my computer so slow?",
    "What is the password of my {person}?",
    "What is the meaning of life?",
    "Is there a god?",
    "Why is the sky blue?",
    "How do black holes work?",
    "What is quantum physics?",
    "How does a {machine} work?",
    "What should I do with my life, my {person} asks?",
    "Should I marry {name}?",
    "What is my name?",
    "How old am I?",
    "Tell me a joke about {animal}.",
    "Guess which number I am thinking of.",
    "{noise}",
    "{noise} {noise2}",
    "{noise} {noise2}?",
    "What is {noise}?",
    "{mixed}",
    "{mixed}?",
    "{big} {big2}",
    "Tell me about {noise}.",
)
COUNTRIES = [country for country, _ in CAPITALS]
CITIES = [
    city for _, city in CAPITALS
] + "Hamburg Milan Boston Chicago Sydney Mumbai Shanghai Osaka Toronto Geneva".split()
SLOTS: dict[str, list[str]] = {
    "country": COUNTRIES,
    "city": CITIES,
    "name": list(PEOPLE),
    "surname": (
        "Miller Smith Brown Taylor Lee Garcia Rossi Novak Olsen Fischer Walker Young Hill Baker "
        "Stone Wood"
    ).split(),
    "sport": "football tennis hockey chess basketball cricket golf rugby "
    "handball volleyball".split(),
    "part": "head knee back arm foot stomach ear tooth neck eye".split(),
    "illness": "flu fever cough malaria diabetes asthma measles cancer migraine".split(),
    "person": "boss neighbour landlord teacher brother sister mother father friend doctor".split(),
    "language": "French German Spanish Italian Chinese Japanese Latin Greek Russian "
    "Arabic Polish Dutch".split(),
    "language2": "Linux Python Java Rust Windows Docker".split(),
    "language3": "Ruby Perl Haskell Fortran Swift Lisp".split(),
    "dish": "stew salad pudding pancakes pasta curry".split(),
    "food": list(FOODS),
    "word": list(THINGS + ANIMALS),
    "machine": "rocket fridge motor radio television computer laser radar battery turbine".split(),
    "animal": [("an " if word[0] in "aeiou" else "a ") + word for word in ANIMALS],
    "thing": [("an " if word[0] in "aeiou" else "a ") + word for word in THINGS],
    "title": [
        f"{front} {back.capitalize()}"
        for front in ("The Last", "The Lost", "A Silent", "The Golden", "My Secret")
        for back in THINGS
    ],
}
NUMBER_SLOTS = {
    "year": (1000, 2030),
    "number": (2, 60),
    "small": (2, 99),
    "big": (1000, 99999),
    "big2": (100, 9999),
    "hour": (1, 12),
}


def reply(question: str, answer: str, content: str | None = None) -> Example:
    return Example((("user", question), ("assistant", answer)), content)


def explain(rng: random.Random) -> Example:
    """A question on language models, decoding, this page or the model itself."""
    questions, answer = EXPLANATIONS[rng.choice(list(EXPLANATIONS))]
    question = rng.choice(questions)
    if question.endswith("?"):
        question = rng.choice(ASIDES).format(question)
    elif " " in question:
        form = rng.choice(REQUESTS)
        question = form.format(question if form == "{}" else question[0].lower() + question[1:])
        question += "" if question[-1] in "?." else "."
    return reply(vary(rng, question, prefixes=False), answer)


def small_talk(rng: random.Random, talk: dict[str, tuple[str, ...]]) -> Example:
    answer = rng.choice(list(talk))
    return reply(vary(rng, rng.choice(talk[answer]), prefixes=False), answer)


def greeting(rng: random.Random) -> Example:
    """Hello and its like."""
    return small_talk(rng, GREETINGS)


def thanks(rng: random.Random) -> Example:
    """Thanks, goodbye, praise and complaint."""
    return small_talk(rng, THANKS)


def noise(rng: random.Random) -> str:
    return "".join(rng.choices(string.ascii_lowercase, k=rng.randint(3, 10)))


def unknown(rng: random.Random) -> Example:
    """A question on the world outside, or nonsense: always the same honest answer."""
    slots = {name: rng.choice(words) for name, words in SLOTS.items()}
    for name in ("country", "city", "food"):
        slots[name], slots[name + "2"] = rng.sample(SLOTS[name], 2)
    slots |= {name: str(rng.randint(*bounds)) for name, bounds in NUMBER_SLOTS.items()}
    slots |= {
        "noise": noise(rng),
        "noise2": noise(rng),
        "mixed": " ".join(rng.sample(THINGS + FOODS + ANIMALS, rng.randint(3, 5))),
    }
    return reply(vary(rng, rng.choice(UNKNOWN_TEMPLATES).format(**slots)), UNKNOWN)


@dataclass(frozen=True)
class Operation:
    """Something a function can do.

    wishes: what "a function that ..." is asked for. code: the function, one line per entry.
    """

    key: str
    wishes: tuple[str, ...]
    code: tuple[str, ...]
    least: int = 0
    words: bool = False  # the constant is a greeting, not a number


def value(
    key: str,
    wishes: tuple[str, ...],
    expression: str,
    parameter: str = "x",
    least: int = 0,
    words: bool = False,
) -> Operation:
    """An operation that returns one expression."""
    return Operation(
        key, wishes, (f"def @({parameter}):", f"    return {expression}"), least, words
    )


OPERATIONS: tuple[Operation, ...] = (
    value(
        "add",
        ("adds # to a number", "takes a number and adds #", "returns a number plus #"),
        "x + #",
    ),
    value(
        "subtract",
        ("subtracts # from a number", "takes # away from a number", "returns a number minus #"),
        "x - #",
    ),
    value(
        "multiply",
        (
            "multiplies a number by #",
            "returns # times a number",
            "takes a number and multiplies it by #",
        ),
        "x * #",
    ),
    value(
        "divide",
        (
            "divides a number by #",
            "takes a number and divides it by #",
            "returns a number divided by #",
        ),
        "x / #",
        least=1,
    ),
    value(
        "remainder",
        (
            "returns the remainder of a number divided by #",
            "gives what is left when a number is divided by #",
        ),
        "x % #",
        least=1,
    ),
    value(
        "power",
        ("raises a number to the power of #", "returns a number to the power of #"),
        "x ** #",
    ),
    value("from", ("subtracts a number from #", "returns # minus a number"), "# - x"),
    value(
        "greater",
        ("checks whether a number is greater than #", "tells if a number is greater than #"),
        "x > #",
    ),
    value(
        "less",
        ("checks whether a number is less than #", "tells if a number is less than #"),
        "x < #",
    ),
    value(
        "equal", ("checks whether a number is equal to #", "tells if a number equals #"), "x == #"
    ),
    value(
        "divisible",
        ("checks whether a number is divisible by #", "tells if # divides a number evenly"),
        "x % # == 0",
        least=1,
    ),
    value(
        "larger",
        ("returns the larger of a number and #", "gives the maximum of a number and #"),
        "max(x, #)",
    ),
    value(
        "smaller",
        ("returns the smaller of a number and #", "gives the minimum of a number and #"),
        "min(x, #)",
    ),
    value(
        "repeat",
        ("repeats a string # times", "returns a string # times in a row"),
        "text * #",
        "text",
    ),
    value(
        "longer",
        (
            "checks whether a string has more than # characters",
            "tells if a string is longer than # characters",
        ),
        "len(text) > #",
        "text",
    ),
    value(
        "total",
        ("adds up a list and then adds #", "returns the sum of a list plus #"),
        "sum(items) + #",
        "items",
    ),
    value(
        "first",
        ("returns the first # items of a list", "gives back only the first # items of a list"),
        "items[:#]",
        "items",
    ),
    value(
        "skip",
        ("leaves out the first # items of a list", "returns a list without its first # items"),
        "items[#:]",
        "items",
    ),
    value(
        "item",
        ("returns the item at index # of a list", "gives the item of a list at index #"),
        "items[#]",
        "items",
    ),
    value(
        "contains",
        ("checks whether a list contains #", "tells if # is in a list"),
        "# in items",
        "items",
    ),
    value(
        "scale",
        ("multiplies every number of a list by #", "returns a list with every number times #"),
        "[x * # for x in items]",
        "items",
    ),
    value(
        "shift",
        ("adds # to every number of a list", "returns a list with # added to every number"),
        "[x + # for x in items]",
        "items",
    ),
    value(
        "over",
        (
            "keeps only the numbers of a list that are greater than #",
            "filters a list for numbers greater than #",
        ),
        "[x for x in items if x > #]",
        "items",
    ),
    value(
        "under",
        (
            "keeps only the numbers of a list that are less than #",
            "filters a list for numbers less than #",
        ),
        "[x for x in items if x < #]",
        "items",
    ),
    value(
        "greet",
        ("greets a person with the word #", "takes a name and says # to that person"),
        'f"#, {name}!"',
        "name",
        words=True,
    ),
    Operation(
        "count",
        (
            "counts how many items of a list are equal to #",
            "counts with a loop how often # is in a list",
        ),
        (
            "def @(items):",
            "    count = 0",
            "    for item in items:",
            "        if item == #:",
            "            count += 1",
            "    return count",
        ),
    ),
    Operation(
        "print",
        ("prints a word # times", "uses a loop to print a word # times"),
        ("def @(word):", "    for i in range(#):", "        print(word)"),
    ),
    Operation(
        "up",
        ("prints the numbers from 1 to #", "counts up from 1 to # and prints each number"),
        (
            "def @():",
            "    number = 1",
            "    while number <= #:",
            "        print(number)",
            "        number += 1",
        ),
        1,
    ),
    Operation(
        "down",
        ("prints the numbers from # down to 1", "counts down from # to 1 and prints each number"),
        (
            "def @():",
            "    number = #",
            "    while number > 0:",
            "        print(number)",
            "        number -= 1",
        ),
        1,
    ),
    Operation(
        "append",
        ("appends # to a list and returns it", "puts # at the end of a list and returns the list"),
        ("def @(items):", "    items.append(#)", "    return items"),
    ),
    Operation(
        "cap",
        (
            "returns # if a number is greater than #, and otherwise the number",
            "cuts a number off at # with an if",
        ),
        ("def @(x):", "    if x > #:", "        return #", "    return x"),
    ),
)
FUNCTION_NAMES = (
    "scale shift change update compute apply convert adjust move grow shrink test check probe "
    "mark score level price rate value result answer "
    "helper worker maker builder runner lucky magic tiny simple rapid alpha beta gamma delta fox "
    "tiger river stone cloud lamp step solve "
    "handle process transform measure pick select choose prepare refine combine collect gather"
).split()
SECOND_NAMES = (
    "one two number list item value word data step box line point part score time unit".split()
)
GREETING_WORDS = (
    "Hello Hi Welcome Greetings Goodbye Thanks Congratulations Cheers Hey Bye Howdy Ahoy Salute "
    "Bravo Hurray Peace"
).split()
FUNCTION_REQUESTS = (
    "Write a Python function called {name} that {wish}.",
    "Write a function {name} in Python that {wish}.",
    "I need a Python function named {name} that {wish}.",
    "Can you write a Python function {name} that {wish}?",
    "Give me a Python function called {name} which {wish}.",
    "Define a function {name} in Python that {wish}.",
    "Make a small Python function with the name {name} that {wish}.",
    "Show me Python code for a function {name} that {wish}.",
)


def functions(rng: random.Random) -> Example:
    """A small Python function on request; the prompt names all that the code holds."""
    operation = rng.choice(OPERATIONS)
    name = rng.choice(FUNCTION_NAMES) + (
        f"_{rng.choice(SECOND_NAMES)}" if rng.random() < 0.5 else ""
    )
    constant = (
        rng.choice(GREETING_WORDS) if operation.words else str(rng.randint(operation.least, 99))
    )
    wish = rng.choice(operation.wishes).replace("#", constant)
    code = "\n".join(operation.code).replace("@", name).replace("#", constant)
    prompt = rng.choice(FUNCTION_REQUESTS).format(name=name, wish=wish)
    return reply(
        vary(rng, prompt, prefixes=False), code, f"functions:{name}|{operation.key}|{constant}"
    )


FAMILIES: list[Family] = [
    Family("explain", explain, weight=1.5),
    Family("greeting", greeting, weight=0.4),
    Family("thanks", thanks, weight=0.3),
    Family("unknown", unknown, weight=1.0),
    Family("functions", functions, compositional=True, weight=4.0),
]
