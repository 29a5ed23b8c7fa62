"""RULER's variable tracking, `vt`: one chain of five assignments among noise.

    before    an example with its answer, then: Memorize and track the chain(s) of ...
    context   noise, VAR QWERT = 31337, noise, VAR ZXCVB = VAR QWERT , noise, ...
    after     Question: Find all variables that are assigned the value 31337 in the text above.
    prefix     Answer: According to the chain(s) of variable assignment in the text above, 5 ...

The worked example is an instruction, not memory, so it stands in `before` and is never compressed.
It is laid out once for a seed and length (three-letter names, as much noise as 500 tokens hold),
and every item gives it fresh names and a fresh value. The original's limit of 500 tokens leaves a
short item more example than context; here it is also at most a quarter of the length.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from random import Random
from string import ascii_uppercase

from octavo_evals.task import Request, Task
from octavo_evals.tasks.ruler import NOISE, SHORT, Draft, Plan, RulerTask

BEFORE = "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
AFTER = "\nQuestion: Find all variables that are assigned the value {value} in the text above."
PREFIX = (
    " Answer: According to the chain(s) of variable assignment in the text above, {count} "
    "variables are assigned the value {value}, they are: "
)
CHAIN = 5
"""Variables of the chain: the first has the value, and four hops follow."""
EXAMPLE_TOKENS = 500


class Variables(RulerTask):
    """Name the five variables that have the value."""

    max_new_tokens = 30

    def __init__(self) -> None:
        super().__init__("vt")

    def plan(self, request: Request, length: int) -> Plan:
        """Return how to hide a chain among so many noise sentences."""
        layout = Random(f"{request.seed}/{self.name}/{length}/example")
        places = _layout(request.count_tokens, min(EXAMPLE_TOKENS, length // 4), layout)

        def draft(index: int, size: int, random: Random) -> Draft:
            example = _example(places, random)
            names, value = _names(5, random), _value(random)
            # In the original too, no assignment comes after the last noise sentence.
            context = _text(_scatter(size, random), names, value)
            return Draft(
                before=f"{example}\n{BEFORE}",
                context=context,
                after=AFTER.format(value=value),
                prefix=PREFIX.format(value=value, count=CHAIN),
                references=tuple(names),
                about={"size": size},
            )

        step = 5 if length < SHORT else 10
        return Plan(draft=draft, smallest=CHAIN, step=step, largest=max(length, CHAIN))


def _layout(count_tokens: Callable[[str], int], budget: int, random: Random) -> list[bool]:
    """Return the example's lines, True for an assignment, with as much noise as fits the budget."""
    best = _scatter(1, random)
    per_noise = max(1, count_tokens(NOISE))
    for num_noise in range(2, budget // per_noise + 1):
        lines = _scatter(num_noise, random)
        if count_tokens(_example(lines, random)) > budget:
            break
        best = lines
    return best


def _scatter(num_noise: int, random: Random) -> list[bool]:
    """Return lines of noise (False) with the chain's assignments (True) at random places."""
    spots: Sequence[int] = range(num_noise)
    if num_noise < CHAIN:  # only in the example of a short item: two may stand together
        places = sorted(random.choices(spots, k=CHAIN))
    else:
        places = sorted(random.sample(spots, CHAIN))
    lines: list[bool] = []
    for spot in spots:
        lines += [True] * places.count(spot) + [False]
    return lines


def _text(lines: Sequence[bool], names: Sequence[str], value: str) -> str:
    # Each assignment of a variable ends in a space, as in the original.
    assignments = iter(
        [f"VAR {names[0]} = {value}"] + [f"VAR {b} = VAR {a} " for a, b in pairwise(names)]
    )
    return "\n".join(next(assignments) if is_chain else NOISE for is_chain in lines)


def _example(lines: Sequence[bool], random: Random) -> str:
    names, value = _names(3, random), _value(random)
    return (
        BEFORE
        + _text(lines, names, value)
        + AFTER.format(value=value)
        + PREFIX.format(value=value, count=CHAIN)
        + f" {' '.join(names)}\n"
    )


def _names(letters: int, random: Random) -> list[str]:
    names: list[str] = []
    while len(names) < CHAIN:
        name = "".join(random.choices(ascii_uppercase, k=letters))
        if name not in (*names, "VAR"):
            names.append(name)
    return names


def _value(random: Random) -> str:
    return str(random.randrange(10000, 99999))


TASKS: dict[str, Callable[[], Task]] = {"vt": Variables}
