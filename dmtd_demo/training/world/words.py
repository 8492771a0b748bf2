"""The words of the small world.

Every word of two or more letters is lower case unless it is a name.
"""

PEOPLE = (
    "Ada Ben Cara Dan Ella Finn Grace Hugo Iris Jack Kim Leo Mia Nora Omar Paul Quinn Rosa Sam "
    "Tara Uma Vera Will Yara Zoe Alan "
    "Bella Carl Diana Emil Fay Gus Hana Ivan June Karl Lily Max Nina Otto"
).split()
ANIMALS = (
    "cat dog horse cow sheep goat pig duck hen mouse rabbit fox bear wolf lion tiger owl crow "
    "swan frog snail bee ant fish seal "
    "whale deer hare mole otter"
).split()
THINGS = (
    "apple ball bell book boat bottle box brush bucket button candle chair clock coat coin cup "
    "drum feather flag flute hammer hat "
    "jar key kite ladder lamp lantern letter map mirror needle paper pencil pillow plate ribbon "
    "ring rope shell shoe spoon star "
    "stone stool table ticket umbrella vase wheel"
).split()
PLACES = (
    "attic barn beach bridge castle cave church city cottage farm field forest garden harbor hill "
    "island kitchen lake library "
    "market meadow mill mountain museum park river school shop station tower valley village"
).split()
COLOURS = "red blue green yellow orange purple white black brown pink grey silver golden".split()
FOODS = (
    "bread cheese soup rice cake pie honey milk tea jam corn beans plum pear grape lemon peach "
    "carrot onion potato"
).split()
ADJECTIVES = (
    "small big old new bright dark warm cold quiet loud soft heavy light clean round tall short "
    "brave kind happy calm clever "
    "curious gentle proud shy"
).split()
VERBS = (
    "run walk jump sing dance read write draw paint cook bake swim climb play sleep build".split()
)

ON = set("bridge farm hill island mountain".split())
AT = set("beach church harbor lake mill river school station".split())


def at(place: str) -> str:
    return ("on the " if place in ON else "at the " if place in AT else "in the ") + place
