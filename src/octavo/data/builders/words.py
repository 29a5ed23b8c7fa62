"""Everyday words, and names and values made up from a random state.

What is made up cannot be guessed: an answer that holds it must have come through the latents.
"""

import random
import uuid
from collections.abc import Callable

ADJECTIVES = """
    able amber ancient autumn awkward bitter bold brass brave brief bright brisk broad
    broken bronze busy calm careful cheap chilly clean clear clever cloudy coarse cold
    copper crisp crooked curious damp dark deep dusty eager early earnest eastern easy empty
    faint fair faithful familiar famous fancy fierce firm flat foggy fond fragile fresh
    frosty gentle giant glad glossy golden grand grave green grey handy happy harsh hasty
    heavy hidden hollow honest humble icy idle inner ivory jolly keen kind large late lazy
    level light little lively lonely long loose loud lucky mellow mild misty modest muddy
    narrow neat nimble noble northern odd old open outer pale patient plain polite proud
    purple quick quiet rapid rare ready restless rough round rusty salty scarlet secret
    shallow sharp shy silent silver simple sleepy slender slow small smooth sober soft solid
    southern spare steady steep still stormy striped strong sturdy sudden sunny sweet swift
    tall tame tender thick thin tidy timid tiny upper vast velvet warm weary western wet
    whole wide wild windy wise wooden woollen yellow young
""".split()
"""Everyday adjectives."""
NOUNS = """
    acorn anchor anvil apron arrow atlas badge bakery balcony barn barrel basket beacon
    beetle bell bench blanket boat bonnet bottle bowl bridge broom brush bucket button cabin
    cactus candle canoe canvas carpet cart castle cellar chain chair chalk cherry chimney
    cinema clock cloud clover coat collar comb compass cottage cradle crane cricket crown
    cupboard curtain dairy daisy desk dolphin door dragon drawer dress drum eagle easel
    elbow engine falcon farm feather fence ferry fiddle field finger fisherman flag flute
    forest fork fountain fox garden gate ginger glacier glove goose grape guitar hammer
    hammock harbour harp hazel helmet heron hill hinge honey hook horse island jacket jar
    jewel jungle kettle key kitchen kite ladder lake lamp lantern leaf lemon library
    lighthouse lily lobster locket maple marble market meadow melon mill mirror mitten
    monkey mountain mustard nail napkin needle nest nettle notebook oak oar ocean olive
    onion orchard otter oven owl oyster paddle palace parcel parrot path pear pebble pencil
    pepper piano pigeon pillow pine plate plough plum pocket pony porch potato puddle pump
    quill rabbit raft rail raven ribbon river robin rocket roof rope rose saddle sail salmon
    sandal saucer scarf school seal shed shell ship shovel shutter sleeve slipper snail soap
    sparrow spoon spring stable stairs stamp station stone stove stream sugar swan table
    tailor teapot temple thimble thistle ticket tiger timber toad torch tower trumpet tulip
    tunnel turnip turtle umbrella valley vase village violin wagon walnut watch water weaver
    wheat wheel whistle willow window wing wolf wool yard zebra
""".split()
"""Everyday nouns."""

_HEADS = "b br c d dr f g gr h j k l m n p r s st t th tr v w z".split()
_VOWELS = "a e i o u ai ea ia io ou".split()
_TAILS = "l m n r s th nd ll rn x".split()


def name(rng: random.Random) -> str:
    """Make up the name of a person or a place, of two or three syllables."""
    syllables = [rng.choice(_HEADS) + rng.choice(_VOWELS) for _ in range(rng.choice((1, 2, 2)))]
    return "".join(
        [*syllables, rng.choice(_HEADS), rng.choice(_VOWELS), rng.choice(_TAILS)]
    ).title()


def pair(rng: random.Random, gap: str = " ") -> str:
    """Put an adjective before a noun."""
    return f"{rng.choice(ADJECTIVES)}{gap}{rng.choice(NOUNS)}"


def digits(rng: random.Random) -> str:
    """Return a number of three to seven digits."""
    length = rng.randint(3, 7)
    return str(rng.randrange(10 ** (length - 1), 10**length))


def value(rng: random.Random) -> str:
    """Make up a value: digits half of the time, else words, word pairs, hex or a UUID."""
    form = rng.choices(("digits", "word", "pair", "hex", "uuid"), (10, 3, 3, 2, 2))[0]
    if form == "digits":
        return digits(rng)
    if form == "word":
        return rng.choice(NOUNS)
    if form == "pair":
        return pair(rng, rng.choice((" ", "-", "_")))
    if form == "hex":
        return f"{rng.getrandbits(32):08x}"
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def keys(rng: random.Random, count: int) -> list[str]:
    """Make up different keys of one form: names, full names, or word pairs."""
    form = rng.randrange(4)
    found: dict[str, None] = {}
    while len(found) < count:
        if form == 0:
            key = name(rng)
        elif form == 1:
            key = f"{name(rng)} {name(rng)}"
        else:
            key = pair(rng, "-" if form == 2 else " ")
        found[key] = None
    return list(found)


def different(
    rng: random.Random, count: int, make: Callable[[random.Random], str] = value
) -> list[str]:
    """Make up `count` different values."""
    found: dict[str, None] = {}
    while len(found) < count:
        found[make(rng)] = None
    return list(found)


def listed(items: list[str]) -> str:
    """Join items as a sentence does: a, b and c."""
    return " and ".join(filter(None, [", ".join(items[:-1]), items[-1]]))
