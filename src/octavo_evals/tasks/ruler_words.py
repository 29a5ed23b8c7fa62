"""RULER's three tasks of drawn words and names: `vt`, `cwe` and `fwe`.

    vt    before    an example with its answer, then: Memorize and track the chain(s) of ...
          context   noise, VAR QWERT = 31337, noise, VAR ZXCVB = VAR QWERT , noise, ...
          after     Question: Find all variables that are assigned the value 31337 in the ...
    cwe   before    an example with its answer, then: Below is a numbered list of words. ...
          context   1. otter 2. drum 3. otter ...
          after     Question: What are the 10 most common words in the above list?
    fwe   before    Read the following coded text and track the frequency of each coded word. ...
          context   ... qlkzxa ... rrtyua ... qlkzxa ...
          after     Question: Do not provide any explanation. Please ignore the dots '....'. ...

The worked examples are instructions, not memory, so they stand in `before` and are never
compressed. That of `vt` is laid out once for a seed and length (three-letter names, as much noise
as 500 tokens hold), and every item gives it fresh names and a fresh value. The original's limit of
500 tokens leaves a short item more example than context; here it is also at most a quarter of the
length.

Words of `cwe` are those of whatever version of wonderwords is installed; when a list needs more
(beyond about 128k tokens), pairs of words joined by a hyphen make up the rest, where the original
takes another list of English words. Below 2048 tokens even the original's short form would not fit
every tokenizer: there the example has 10 words twice and 5 once, the list has 10 words 3 times.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from random import Random
from string import ascii_lowercase, ascii_uppercase

from octavo_evals.task import Item, Request, prompts
from octavo_evals.tasks.ruler import NOISE, SHORT, Plan, RulerTask
from octavo_evals.tasks.ruler_needles import word_lists

CHAIN = 5
"""Variables of the chain: the first has the value, and four hops follow."""
EXAMPLE_TOKENS = 500

COMMON = 10
COMMON_FORMS = {2048: ((15, 2, 1), (3, 1)), SHORT: ((20, 3, 1), (6, 1))}
"""Below each length: words of the example, how often it has the common ones and the others; how
often the list has them."""

DOTS = "..."
"""Stands in for the most frequent word, as noise."""
FEWEST_CODED = 53
"""Below this the fourth and the fifth word can be equally frequent, and the answer is not one."""
ZETA_2 = math.pi**2 / 6


class Variables(RulerTask):
    """Name the five variables that have the value."""

    prompt = "chain"
    max_new_tokens = 30

    def plan(self, request: Request) -> Plan:
        """Return how to hide a chain among so many noise sentences."""
        length = request.room
        layout = Random(f"{request.seed}/{self.name}/{length}/example")
        places = _layout(request.count_tokens, min(EXAMPLE_TOKENS, length // 4), layout)

        def draft(index: int, size: int, random: Random) -> Item:
            example = _example(places, random)
            names, value = _names(5, random), _value(random)
            # In the original too, no assignment comes after the last noise sentence.
            context = _chain(_scatter(size, random), names, value)
            about = {"size": size}
            return self.item(index, context, names, about, example=f"{example}\n", value=value)

        step = 5 if length < SHORT else 10
        return Plan(draft=draft, smallest=CHAIN, step=step, largest=max(length, CHAIN))


def _layout(count_tokens: Callable[[str], int], budget: int, random: Random) -> list[bool]:
    """Return the example's lines, True for an assignment, with as much noise as fits the budget."""
    best = _scatter(1, random)
    for num_noise in range(2, budget // max(1, count_tokens(NOISE)) + 1):
        lines = _scatter(num_noise, random)
        if count_tokens(_example(lines, random)) > budget:
            break
        best = lines
    return best


def _scatter(num_noise: int, random: Random) -> list[bool]:
    """Return lines of noise (False) with the chain's assignments (True) at random places."""
    spots = range(num_noise)
    # Only in the example of a short item may two stand together.
    is_short = num_noise < CHAIN
    places = random.choices(spots, k=CHAIN) if is_short else random.sample(spots, CHAIN)
    return [line for spot in spots for line in [True] * places.count(spot) + [False]]


def _chain(lines: Sequence[bool], names: Sequence[str], value: str) -> str:
    # Each assignment of a variable ends in a space, as in the original.
    assignments = iter(
        [f"VAR {names[0]} = {value}"] + [f"VAR {b} = VAR {a} " for a, b in pairwise(names)]
    )
    return "\n".join(next(assignments) if is_chain else NOISE for is_chain in lines)


def _example(lines: Sequence[bool], random: Random) -> str:
    names, value = _names(3, random), _value(random)
    chain = prompts()["chain"]
    asked = (chain["after"] + chain["prefix"]).format(value=value)
    return f"{chain['before']}{_chain(lines, names, value)}{asked} {' '.join(names)}\n"


def _names(letters: int, random: Random) -> list[str]:
    names: list[str] = []
    while len(names) < CHAIN:
        name = "".join(random.choices(ascii_uppercase, k=letters))
        if name not in (*names, "VAR"):
            names.append(name)
    return names


def _value(random: Random) -> str:
    return str(random.randrange(10000, 99999))


class CommonWords(RulerTask):
    """Name the ten words of a list that are repeated most."""

    prompt = "common"
    max_new_tokens = 120

    def plan(self, request: Request) -> Plan:
        """Return how to make a list of so many different words.

        Raises `MissingExtraError` without wonderwords.
        """
        words = sorted(set().union(*word_lists()))
        forms = [form for below, form in COMMON_FORMS.items() if request.room < below]
        example, repeats = forms[0] if forms else ((40, 10, 3), (30, 3))

        def draft(index: int, size: int, random: Random) -> Item:
            shown, answer = _repeated(words, *example, random)
            entries, common = _repeated(words, size, *repeats, random)
            text = prompts()["common"]
            worked = f"{_number(shown)}{text['after']}{text['prefix']} {_number(answer)}"
            worked = f"{text['before']}{worked}\n"
            return self.item(index, _number(entries), common, {"size": size}, example=worked)

        return Plan(draft=draft, smallest=COMMON, step=10, largest=max(request.room, COMMON))


def _repeated(
    words: list[str], size: int, often: int, seldom: int, random: Random
) -> tuple[list[str], list[str]]:
    """Return a list of so many different words, and the ten that are in it often."""
    if size <= len(words):
        drawn = random.sample(words, size)
    else:
        known = dict.fromkeys(words)
        while len(known) < size:
            known["-".join(random.sample(words, 2))] = None
        drawn = list(known)
        random.shuffle(drawn)
    entries = drawn[:COMMON] * often + drawn[COMMON:] * seldom
    random.shuffle(entries)
    return entries, drawn[:COMMON]


def _number(words: list[str]) -> str:
    return " ".join(f"{number}. {word}" for number, word in enumerate(words, 1))


class CodedWords(RulerTask):
    """Name the three most frequent words of a text in which word k is as frequent as 1/k**2."""

    prompt = "coded"
    max_new_tokens = 50

    def plan(self, request: Request) -> Plan:
        """Return how to make a text of about so many words."""
        num_words = max(4, (request.room - self.max_new_tokens) // 50)

        def draft(index: int, size: int, random: Random) -> Item:
            vocabulary: dict[str, None] = {}
            while len(vocabulary) < num_words:
                vocabulary["".join(random.choices(ascii_lowercase, k=6))] = None
            ranked = [DOTS, *list(vocabulary)[1:]]
            counts = {word: int(size / rank**2 / ZETA_2) for rank, word in enumerate(ranked, 1)}
            text = list(Counter(counts).elements())
            random.shuffle(text)
            return self.item(index, " ".join(text), ranked[1:4], {"size": size})

        step = max(1, (request.room - self.max_new_tokens) // 32)
        # At most one token more than a word each, and the rarest words fall away: twice is enough.
        largest = max(2 * request.room, FEWEST_CODED)
        return Plan(draft=draft, smallest=FEWEST_CODED, step=step, largest=largest)


TASKS = (Variables("vt"), CommonWords("cwe"), CodedWords("fwe"))
