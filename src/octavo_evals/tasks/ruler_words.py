"""RULER's two counting tasks: `cwe`, common words of a list, and `fwe`, frequent coded words.

    cwe   before    an example with its answer, then: Below is a numbered list of words. ...
          context   1. otter 2. drum 3. otter ...
          after     Question: What are the 10 most common words in the above list?
    fwe   before    Read the following coded text and track the frequency of each coded word. ...
          context   ... qlkzxa ... rrtyua ... qlkzxa ...
          after     Question: Do not provide any explanation. Please ignore the dots '....'. ...

The worked example of `cwe` is an instruction, not memory, so it stands in `before` and is never
compressed. Words are those of whatever version of wonderwords is installed; when a list needs more
(beyond about 128k tokens), pairs of words joined by a hyphen make up the rest, where the original
takes another list of English words. Below 2048 tokens even the original's short form would not fit
every tokenizer: there the example has 10 words twice and 5 once, the list has 10 words 3 times.
"""

import math
from collections.abc import Callable
from random import Random
from string import ascii_lowercase

from octavo_evals.task import Request, Task
from octavo_evals.tasks.ruler import SHORT, Draft, Plan, RulerTask
from octavo_evals.tasks.ruler_needles import word_lists

COMMON = 10
COMMON_BEFORE = (
    "Below is a numbered list of words. In these words, some appear more often than others. "
    "Memorize the ones that appear most often.\n"
)
COMMON_AFTER = "\nQuestion: What are the 10 most common words in the above list?"
COMMON_PREFIX = " Answer: The top 10 words that appear most often in the list are:"

CODED_BEFORE = (
    "Read the following coded text and track the frequency of each coded word. Find the three most "
    "frequently appeared coded words. "
)
CODED_AFTER = (
    "\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the three "
    "most frequently appeared words in the above coded text?"
)
CODED_PREFIX = (
    " Answer: According to the coded text above, the three most frequently appeared words are:"
)
DOTS = "..."
"""Stands in for the most frequent word, as noise."""
CODED_LETTERS = 6
ZETA_2 = math.pi**2 / 6

_VERY_SHORT = 2048
_FEWEST_CODED = 53
"""Below this the fourth and the fifth word can be equally frequent, and the answer is not one."""


class CommonWords(RulerTask):
    """Name the ten words of a list that are repeated most."""

    max_new_tokens = 120

    def __init__(self) -> None:
        super().__init__("cwe")

    def plan(self, request: Request, length: int) -> Plan:
        """Return how to make a list of so many different words.

        Raises `MissingExtraError` without wonderwords.
        """
        words = sorted(set().union(*word_lists()))
        if length < _VERY_SHORT:
            example, repeats = (15, 2, 1), (3, 1)
        elif length < SHORT:
            example, repeats = (20, 3, 1), (6, 1)
        else:
            example, repeats = (40, 10, 3), (30, 3)

        def draft(index: int, size: int, random: Random) -> Draft:
            shown, answer = _numbered(words, *example, random)
            context, common = _numbered(words, size, *repeats, random)
            worked = f"{COMMON_BEFORE}{shown}{COMMON_AFTER}{COMMON_PREFIX} {_number(answer)}\n"
            return Draft(
                before=worked + COMMON_BEFORE,
                context=context,
                after=COMMON_AFTER,
                prefix=COMMON_PREFIX,
                references=tuple(common),
                about={"size": size},
            )

        return Plan(draft=draft, smallest=COMMON, step=10, largest=max(length, COMMON))


class CodedWords(RulerTask):
    """Name the three most frequent words of a text in which word k is as frequent as 1/k**2."""

    max_new_tokens = 50

    def __init__(self) -> None:
        super().__init__("fwe")

    def plan(self, request: Request, length: int) -> Plan:
        """Return how to make a text of about so many words."""
        num_words = max(4, (length - self.max_new_tokens) // 50)

        def draft(index: int, size: int, random: Random) -> Draft:
            vocabulary: dict[str, None] = {}
            while len(vocabulary) < num_words:
                vocabulary["".join(random.choices(ascii_lowercase, k=CODED_LETTERS))] = None
            ranked = [DOTS, *list(vocabulary)[1:]]
            text = [
                word
                for rank, word in enumerate(ranked, 1)
                for _ in range(int(size / rank**2 / ZETA_2))
            ]
            random.shuffle(text)
            return Draft(
                before=CODED_BEFORE,
                context=" ".join(text),
                after=CODED_AFTER,
                prefix=CODED_PREFIX,
                references=tuple(ranked[1:4]),
                about={"size": size},
            )

        step = max(1, (length - self.max_new_tokens) // 32)
        # At most one token more than a word each, and the rarest words fall away: twice is enough.
        return Plan(
            draft=draft, smallest=_FEWEST_CODED, step=step, largest=max(2 * length, _FEWEST_CODED)
        )


def _numbered(
    words: list[str], size: int, often: int, seldom: int, random: Random
) -> tuple[str, list[str]]:
    """Return a numbered list of so many different words, and the ten that are in it often."""
    drawn = _draw(words, size, random)
    common, rest = drawn[:COMMON], drawn[COMMON:]
    entries = common * often + rest * seldom
    random.shuffle(entries)
    return _number(entries), common


def _number(words: list[str]) -> str:
    return " ".join(f"{number}. {word}" for number, word in enumerate(words, 1))


def _draw(words: list[str], size: int, random: Random) -> list[str]:
    if size <= len(words):
        return random.sample(words, size)
    known = dict.fromkeys(words)
    while len(known) < size:
        known["-".join(random.sample(words, 2))] = None
    drawn = list(known)
    random.shuffle(drawn)
    return drawn


TASKS: dict[str, Callable[[], Task]] = {"cwe": CommonWords, "fwe": CodedWords}
