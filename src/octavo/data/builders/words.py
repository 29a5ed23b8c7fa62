"""Everyday words, and names and values made up from a random state.

What is made up cannot be guessed: an answer that holds it must have come through the latents.
"""

import random
import tomllib
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

PHRASES: dict[str, Any] = tomllib.loads(
    Path(__file__).with_name("phrases.toml").read_text(encoding="utf-8")
)
"""What each builder says, by its name."""
ADJECTIVES: list[str] = PHRASES["words"]["adjectives"].split()
NOUNS: list[str] = PHRASES["words"]["nouns"].split()


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
