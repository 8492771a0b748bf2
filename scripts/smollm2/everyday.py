"""Everyday requests, put together from lists, and the model's own greedy answers to them.

    python scripts/smollm2/everyday.py runs/everyday --minutes 40
    python scripts/smollm2/everyday.py runs/everyday --pack assets/smollm2-135m/everyday.npz
    python scripts/smollm2/everyday.py runs/opened --openings --minutes 40

What a model asks itself (Magpie) is not what people ask. With `--openings` it writes the requests
all the same, each from the first words of one (`dmtd_demo/training/openings.txt`). The 64 requests
that ship for training (`dmtd_demo/training/prompts.txt`) are kept aside: `--aside` answers them, to
judge by. A run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import re
import sys
import time
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from corpus import Corpus

from dmtd_demo.decoders.batched import Writing, batched_ar
from dmtd_demo.models.chat import encode_chat
from dmtd_demo.models.loading import load
from dmtd_demo.models.model import Model
from dmtd_demo.training.magpie import (
    DULL,
    DataSettings,
    Writer,
    is_held_out,
    read_openings,
    repetition,
)

NAME = "SmolLM2-135M-Instruct"
ASIDE = ROOT / "dmtd_demo" / "training" / "prompts.txt"
LONGEST, BATCH, LEAST = 192, 64, 32
# at 1 every third request of so small a model is an odd one
WARM = 0.8

# every list is open; what the kept-aside requests ask is in none of them
LISTS = {
    "concept": "democracy; a black hole; evolution; the internet; a database; probability; an "
    "atom; a molecule; DNA; a protein; an enzyme; electricity; magnetism; a transistor; an "
    "operating system; a compiler; an algorithm; cloud computing; encryption; a firewall; open "
    "source software; version control; artificial intelligence; a blockchain; a mortgage; a "
    "pension; interest; a stock; a bond; gross domestic product; unemployment; a tariff; a tax "
    "return; insurance; a contract; copyright; a patent; a trademark; the constitution; a "
    "parliament; human rights; the United Nations; the European Union; a referendum; globalization; "
    "urbanization; biodiversity; an ecosystem; a food chain; a habitat; erosion; a volcano; an "
    "earthquake; a hurricane; a tornado; the ozone layer; solar energy; wind power; a battery; a "
    "fuel cell; an electric car; a jet engine; a telescope; a microscope; a laser; radar; sonar; "
    "a satellite; a comet; a galaxy; the Big Bang; relativity; quantum mechanics; entropy; energy; "
    "momentum; friction; pressure; density; a wave; sound; light; a rainbow; a prism; a lens; an "
    "acid; a base; a salt; an element; the periodic table; a chemical bond; oxidation; a catalyst; "
    "a cell; the nucleus; mitochondria; respiration; digestion; the heart; the brain; a neuron; "
    "a hormone; an allergy; diabetes; high blood pressure; a fever; an antibiotic; a vitamin; "
    "protein in food; cholesterol; a calorie; meditation; yoga; anxiety; stress; empathy; "
    "leadership; teamwork; a metaphor; a simile; irony; a sonnet; a novel; a fable; a myth; "
    "a hypothesis; the scientific method; a statistic; the mean and the median; a fraction; a "
    "percentage; a decimal; a triangle; a circle; symmetry; an equation; a function; a derivative; "
    "an integral; a matrix; a vector; a graph; a logarithm; a proof",
    "pair": "a lake and a river; an alligator and a crocodile; a moth and a butterfly; a planet "
    "and a star; weather and climate; mass and weight; heat and temperature; a simile and a "
    "metaphor; a debit card and a credit card; a salad and a soup; tea and coffee; a lawyer and a "
    "judge; a comedy and a tragedy; a violin and a cello; a city and a town; a street and a road; "
    "a laptop and a tablet; RAM and a hard disk; HTTP and HTTPS; a compiler and an interpreter; "
    "Java and JavaScript; SQL and NoSQL; a while loop and a for loop; a class and an object; "
    "an array and a linked list; a stack and a queue; Python and C++; Linux and Windows; "
    "margarine and butter; a fruit and a vegetable; a cold and the flu; an artery and a vein; "
    "an introvert and an extrovert; an asteroid and a meteor; a frog and a toad; a solid and a "
    "liquid; an apartment and a house; a bus and a tram; socialism and capitalism; "
    "knowledge and wisdom; empathy and sympathy; a symphony and a concerto; fiction and "
    "nonfiction; a resume and a cover letter; mean and median; area and perimeter; "
    "a bond and a share; gross and net income; a hybrid and an electric car; a ship and a boat",
    "how": "a bicycle; a clock; a microwave oven; a vacuum cleaner; a camera; a piano; a guitar; "
    "a washing machine; an elevator; a traffic light; a solar panel; a thermometer; a compass; "
    "a lock; a zipper; a toaster; a telephone; a radio; a television; a printer; a computer mouse; "
    "a search engine; an airplane; a helicopter; a submarine; a rocket; a bridge; a dam; a "
    "wind turbine; a nuclear reactor; a car engine; a brake; a pump; a candle; a light bulb; "
    "a mirror; a magnet; a spring; a pulley; a lever; GPS; Wi-Fi; Bluetooth; email; a credit card; "
    "a touch screen; a barcode; a smoke detector; a hearing aid; an x-ray machine",
    "why": "do leaves change color in autumn; is the ocean salty; do cats purr; do dogs bark; do "
    "birds migrate; do we dream; do we yawn; do we laugh; do onions make us cry; does bread rise; "
    "does iron rust; do stars twinkle; does the moon have phases; do volcanoes erupt; does "
    "thunder follow lightning; is snow white; is grass green; do bees make honey; do spiders make "
    "webs; do trees have rings; do we need water; do we need exercise; is reading important; is "
    "history worth studying; do people learn languages; do prices rise; do companies advertise; do "
    "countries trade; do we pay taxes; do people vote; is teamwork important; is recycling useful; "
    "do cars need oil; do planes fly; do boats float; do batteries run out; do computers get slow; "
    "is a password important; do programs have bugs; is testing code important",
    "person": "Albert Einstein; Isaac Newton; Charles Darwin; Galileo Galilei; Ada Lovelace; Alan "
    "Turing; Leonardo da Vinci; Michelangelo; Vincent van Gogh; Pablo Picasso; Frida Kahlo; "
    "Mozart; Beethoven; Bach; William Shakespeare; Jane Austen; Charles Dickens; Mark Twain; "
    "Homer; Plato; Aristotle; Socrates; Confucius; Julius Caesar; Cleopatra; Napoleon; George "
    "Washington; Abraham Lincoln; Mahatma Gandhi; Nelson Mandela; Martin Luther King; Florence "
    "Nightingale; Louis Pasteur; Alexander Fleming; Nikola Tesla; Thomas Edison; the Wright "
    "brothers; Neil Armstrong; Amelia Earhart; Marco Polo; Christopher Columbus; Johannes "
    "Gutenberg; Gregor Mendel; Rosalind Franklin; Katherine Johnson; Stephen Hawking",
    "country": "Germany; Italy; Spain; Japan; Canada; Brazil; Egypt; India; China; Kenya; Norway; "
    "Greece; Turkey; Mexico; Peru; Argentina; Poland; Sweden; Finland; Ireland; Portugal; "
    "the Netherlands; Austria; Switzerland; Hungary; Morocco; South Africa; Nigeria; Ethiopia; "
    "Thailand; Vietnam; Indonesia; South Korea; New Zealand; Chile; Colombia; Cuba; Iceland",
    "task": "bake bread; boil an egg; make a salad; make tomato soup; roast a chicken; grow "
    "tomatoes; plant a tree; water houseplants; clean a window; remove a stain; wash a wool "
    "sweater; iron a shirt; tie a tie; fold a fitted sheet; paint a wall; hang a picture; fix a "
    "leaky faucet; unclog a drain; change a light bulb; assemble furniture; learn to swim; learn "
    "to drive; learn a language; learn the guitar; start running; stop smoking; lose weight; eat "
    "healthier; drink more water; train a puppy; take care of a cat; feed a fish; choose a laptop; "
    "back up a computer; choose a password; set up a router; write a resume; prepare for an "
    "interview; ask for a raise; write a cover letter; give a presentation; take notes; study for "
    "an exam; write an essay; cite a source; read faster; remember names; make friends; apologize; "
    "say no politely; plan a party; wrap a gift; pack a suitcase; book a hotel; read a map; "
    "take a good photo; start a blog; start a business; make a budget; save money; open a bank "
    "account; file taxes; sell a used car; rent a flat; install Python; use git; debug a program; "
    "sort a list in Python; read a file in Python; make a web page; center a div in CSS; write a "
    "loop in Java; connect to a database; deploy a web app",
    "activity": "studying; public speaking; saving money; cooking on a budget; healthy eating; "
    "running; hiking; camping; gardening; photography; drawing; writing a novel; learning a "
    "language; working from home; time management; job interviews; traveling alone; flying with "
    "children; raising a puppy; using less plastic; saving energy; organizing a desk; cleaning a "
    "kitchen; reading more books; staying calm; making new friends; being a good listener; "
    "leading a team; giving feedback; remote meetings; online safety; debugging code; writing "
    "clean code; learning to program; preparing for an exam; choosing a career; buying a used car",
    "code": "checks whether a number is even; adds two numbers; computes the factorial of a "
    "number; finds the largest number in a list; removes duplicates from a list; counts the vowels "
    "in a string; counts the words in a text; sorts a list of numbers; computes the average of a "
    "list; converts Celsius to Fahrenheit; checks whether a year is a leap year; checks whether a "
    "number is prime; finds the greatest common divisor; merges two sorted lists; flattens a "
    "nested list; reads a file line by line; writes a list to a file; parses a JSON string; "
    "downloads a web page; rolls a die; shuffles a list; generates a random password; finds the "
    "second largest number; transposes a matrix; multiplies two matrices; does a binary search; "
    "implements bubble sort; implements quicksort; counts how often each word occurs; capitalizes "
    "every word; checks whether two words are anagrams; computes compound interest; converts a "
    "number to binary; sums the digits of a number; finds common elements of two lists; prints a "
    "multiplication table; validates an email address; measures how long a function takes; "
    "computes the area of a circle; swaps two variables",
    "language": "Python; Python; Python; JavaScript; Java; C; C++; Go; Rust; Ruby",
    "topic": "the moon; a mountain; winter; spring; a river; a forest; an old house; a train; a "
    "garden; a dog; a bird; friendship; courage; time; music; a lost key; the city at night; "
    "a storm; a teacher; a grandmother; coffee; a robot; the stars; snow; a desert; a journey; "
    "hope; a birthday; a rainy day; an island; a castle; a dragon; a bakery; a library; a clock; "
    "a football match; a farmer; a doctor; a painter; an astronaut",
    "who": "my boss; a customer; a neighbor; a friend; my landlord; a professor; the bank; a "
    "hotel; an airline; a recruiter; my team; a supplier; the city council; a doctor",
    "matter": "asking for a day off; apologizing for a late reply; complaining about noise; "
    "confirming an appointment; canceling an order; asking for a refund; inviting them to dinner; "
    "thanking them for their help; asking about a bill; introducing a new colleague; asking for "
    "a letter of reference; reporting a broken heater; announcing a meeting; asking for advice; "
    "congratulating them on a promotion; asking for an extension of a deadline",
    "style": "more politely; in simple words; more formally; more briefly; in the passive voice; "
    "in the past tense; as a question; for a child; in a friendlier tone; without jargon",
    "sentence": "I can't come to the party because I am sick. ; The company lost a lot of money "
    "last year. ; You need to fix this bug today. ; The dog chased the cat across the yard. ; "
    "Your report is too long. ; We will not pay this bill. ; The meeting is moved to Monday. ; "
    "She walks to school every morning. ; The product is bad and nobody buys it. ; He don't know "
    "nothing about it. ; Please wait here until we call you. ; The results of the experiment were "
    "not what we expected. ; Our new phone has a better camera and a larger screen. ; The train "
    "was late again, so I missed my appointment. ; I want my money back. ; It is important to "
    "drink enough water when it is hot. ; The museum is closed on Mondays. ; They was very happy "
    "with the service. ; Turn off the lights when you leave. ; The weather will be cold and windy "
    "tomorrow.",
    "text": "The honey bee lives in colonies of up to 60,000 insects. Most of them are workers, "
    "who collect nectar and look after the young. In winter the colony keeps warm by moving "
    "together. ; The city opened a new library last week. It has 200 seats, a café and a room for "
    "children. The mayor said that reading should be free for everyone. ; Regular exercise lowers "
    "blood pressure, improves mood and helps people sleep. Doctors advise at least 150 minutes a "
    "week. Walking counts. ; The team released version 2.0 of its app. It starts faster, uses less "
    "memory and works without a network. Users had asked for a dark mode, which is there too. ; "
    "Coffee was first grown in Ethiopia. Traders brought it to Yemen, and from there it spread to "
    "the whole world. Today Brazil grows the most. ; The river flooded three villages after two "
    "days of rain. Nobody was hurt, but a bridge was destroyed. Repairs will take a month.",
    "things": "animals that live in the ocean; fruits; vegetables; European countries; African "
    "countries; musical instruments; sports; famous painters; classic novels; programming "
    "languages; board games; healthy snacks; breakfast ideas; gifts for a ten-year-old; indoor "
    "plants; cheap meals; hobbies; jobs in a hospital; tools for a workshop; items for a first "
    "aid kit; rules for a classroom; questions for a job interview; ideas for a birthday party; "
    "names for a dog; names for a cat; questions to ask on a first date; activities for a rainy "
    "day; ways to reduce stress; ways to earn money as a student; ways to help a neighbor; "
    "benefits of reading; uses of artificial intelligence; inventions that changed the world; "
    "events of the twentieth century; kitchen tools; items for a picnic; words that rhyme with day",
    "n": "three; four; five; six; ten",
}
# how often each is drawn, and the requests
TEMPLATES = {
    "What is {concept}?": 8,
    "What is {concept}, and why does it matter?": 3,
    "Explain {concept} in simple words.": 6,
    "Explain {concept} to a beginner.": 4,
    "Tell me about {concept}.": 3,
    "Give me an example of {concept}.": 2,
    "What is the difference between {pair}?": 8,
    "Compare {pair}.": 3,
    "How does {how} work?": 8,
    "Who invented {how}?": 2,
    "Why {why}?": 8,
    "Who was {person}?": 6,
    "What is {person} known for?": 4,
    "What is the capital of {country}?": 4,
    "Tell me something about {country}.": 3,
    "What should I see in {country}?": 3,
    "How do I {task}?": 10,
    "How can I {task}?": 5,
    "What do I need to {task}?": 3,
    "Explain step by step how to {task}.": 5,
    "Give me {n} tips for {activity}.": 8,
    "What are common mistakes in {activity}?": 3,
    "Make a plan for {activity}.": 3,
    "Write a {language} function that {code}.": 10,
    "Write a {language} program that {code}, and explain it.": 5,
    "How do I write code in {language} that {code}?": 4,
    "Write a short poem about {topic}.": 5,
    "Write a short story about {topic}.": 5,
    "Describe {topic} in three sentences.": 4,
    "Write a slogan about {topic}.": 2,
    "Write an email to {who}, {matter}.": 8,
    "Write a short message to {who}, {matter}.": 4,
    "Rewrite this sentence {style}: {sentence}": 8,
    "Correct the grammar: {sentence}": 3,
    "Translate into Spanish: {sentence}": 2,
    "Translate into German: {sentence}": 2,
    "Summarize in one sentence: {text}": 3,
    "Summarize this text: {text}": 3,
    "What is the main point of this text? {text}": 2,
    "List {n} {things}.": 8,
    "Name {n} {things}, with a short reason for each.": 4,
    "Can you help me with {activity}?": 2,
    "Is it hard to {task}?": 2,
}


def requests(seed: int = 0) -> list[str]:
    """All requests of an order that a seed gives, no one twice; none of those kept aside."""
    rng = random.Random(seed)
    lists = {name: [x.strip() for x in text.split(";")] for name, text in LISTS.items()}
    aside = set(kept_aside())
    names, weights = list(TEMPLATES), list(TEMPLATES.values())
    found: dict[str, None] = {}
    for template in itertools.islice(iter(lambda: rng.choices(names, weights)[0], None), 40_000):
        asked = template.format(**{name: rng.choice(each) for name, each in lists.items()})
        if asked not in aside:
            found[asked] = None
    return list(found)


def opened(model: Model, folder: Path, part: int, seed: int) -> list[str]:
    """Requests that the model writes from the shipped openings, none twice or kept aside."""
    kept = folder / "asked" / f"{part}.json"
    if kept.exists():
        return json.loads(kept.read_text())
    settings = DataSettings(
        16 * BATCH, BATCH, temperature=WARM, seed=seed, openings=read_openings("everyday")
    )
    writer = Writer(model, kept.parent, settings)
    drafts = writer.drafts(settings.conversations, part)
    writer.ask(drafts, f"{seed}:everyday:{part}", lambda tokens: None)
    found = {draft.messages[0]["content"]: None for draft in drafts if not draft.gone}
    asked = [a for a in found if not is_near(a)]
    kept.write_text(json.dumps(asked, indent=0))
    return asked


def is_near(asked: str) -> bool:
    """Whether a request is one of those kept aside, or has most of its words."""
    words = _words(asked)
    asides = map(_words, kept_aside())
    return any(len(words & aside) >= 0.6 * len(words | aside) for aside in asides)


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def kept_aside() -> list[str]:
    return ASIDE.read_text(encoding="utf-8").splitlines()


def answered(model: Model, asked: list[str], file: Path, until: float) -> None:
    """Append each request's ids, where the answer begins, and whether it came to its end."""
    prompts = [encode_chat(model.tokenizer, [{"role": "user", "content": a}]) for a in asked]

    def goes_on(ids: list[int]) -> bool:
        return time.monotonic() < until and (len(ids) < 64 or repetition(ids[-64:]) < 0.5)

    began, tokens = time.monotonic(), 0
    how = Writing(BATCH, go_on=goes_on)
    for done, w in enumerate(batched_ar(model, prompts, LONGEST, how), 1):
        line = {"asked": asked[w.index], "prompt": len(prompts[w.index]), "ended": w.ended}
        line |= {"stopped": w.stopped, "ids": [*prompts[w.index], *w.ids]}
        with file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(line) + "\n")
        tokens += len(w.ids)
        if done % BATCH == 0:
            print(done, f"{tokens / (time.monotonic() - began):.0f} tokens/s", flush=True)


def lines(file: Path) -> list[dict]:
    """What a run has written so far."""
    return [json.loads(x) for x in file.read_text().splitlines()] if file.exists() else []


def is_whole(line: dict) -> bool:
    """Whether an answer runs in no loop."""
    return not line["stopped"] and repetition(line["ids"][line["prompt"] :]) <= DULL


def before_its_loop(line: dict) -> dict:
    """An answer up to where it begins to repeat itself."""
    ids, at = line["ids"], line["prompt"]
    n = len(ids) - at
    while n and repetition(ids[at : at + n]) > DULL / 3:
        n -= 1
    return line | {"stopped": False, "ids": ids[: at + n]}


def corpus(found: list[dict], held: bool | None = None, cut: bool = False) -> Corpus:
    """Answers without loops, as texts of the training. held: all or none; else by their content.
    cut: of those with loops what comes before, if it is of LEAST tokens.
    """
    kept = [x for x in found if is_whole(x)]
    if cut:
        begun = [before_its_loop(x) for x in found if not is_whole(x)]
        kept += [x for x in begun if len(x["ids"]) >= x["prompt"] + LEAST]
    lengths = np.array([len(x["ids"]) for x in kept])
    out = [
        is_held_out([{"role": "user", "content": x["asked"]}]) if held is None else held
        for x in kept
    ]
    return Corpus(
        np.concatenate([np.array(x["ids"], dtype=np.uint16) for x in kept]),
        np.cumsum(lengths) - lengths,
        lengths,
        np.array([x["prompt"] for x in kept]),
        np.array(out),
        np.zeros(len(kept), dtype=np.uint8),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--minutes", type=float, default=40.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--aside", action="store_true", help="the requests that are kept aside")
    parser.add_argument("--pack", type=Path, help="write what is there into this file instead")
    parser.add_argument(
        "--cut", action="store_true", help="pack what comes before the loops of answers too"
    )
    parser.add_argument("--openings", action="store_true", help="requests of the model's own")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.run.mkdir(parents=True, exist_ok=True)
    file = options.run / ("aside.jsonl" if options.aside else "everyday.jsonl")
    if options.pack:
        made = corpus(lines(file), True if options.aside else None, options.cut)
        made.save(options.pack, 10**9)
        print(f"{len(made.lengths)} texts, {made.answer_tokens} answer tokens")
        return
    torch.set_num_threads(options.threads)
    model = load(NAME, quantization="none", dtype="bfloat16", threads=options.threads)
    until = time.monotonic() + 60 * options.minutes
    there = {x["asked"] for x in lines(file)}
    for part in itertools.count() if options.openings else ():
        if time.monotonic() > until:
            return
        asked = opened(model, options.run, part, options.seed)
        answered(model, [a for a in asked if a not in there], file, until)
        there.update(asked)
    asked = [
        a for a in (kept_aside() if options.aside else requests(options.seed)) if a not in there
    ]
    # in parts, so that what is finished first is not always what is short
    for start in range(0, len(asked), 16 * BATCH):
        if time.monotonic() < until:
            answered(model, asked[start : start + 16 * BATCH], file, until)


if __name__ == "__main__":
    main()
