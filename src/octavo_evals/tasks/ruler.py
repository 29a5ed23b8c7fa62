"""What RULER's 13 tasks share: fitting an item to a length, and the two scorers.

Source: arXiv 2404.06654 and github.com/NVIDIA/RULER, commit c3f5e3b (`scripts/data/synthetic`,
`scripts/eval/synthetic/constants.py`). Its templates are kept to the letter and its rules are kept;
its stream of random numbers is not: here every item has a generator of its own, so that it depends
on seed, task, length and number only. What else differs, and why:

- An item that misses the common size by a little may also grow by a step, so each is within one
  step of its length. Nothing retries for ever: a length that cannot be met is an error.
- Below 4096 tokens the original's steps of 500 words (essays) and 10 documents would waste half
  the length; here they are 25 words and 1 document.
- The original shuffles needles, words and documents with the same seed for every item, which puts
  the gold document of equally many at one place; here the item's own generator shuffles them.
- Keys and values of one item are distinct, so that a needle that is asked for is the only one.

lm-evaluation-harness 0.4.13 has tasks of these names whose scores do not compare with either: its
`qa` scores the fraction of references found instead of any, its `cwe` leaves the worked example
out, its `vt` misspells "assigned" and joins its noise with spaces, and it fits sizes in steps.
"""

import random
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from octavo.errors import EvaluationError
from octavo_evals.task import Item, Metrics, Reply, Request

NUM_ITEMS = 500
"""Items per task and length, as in the paper."""
SHORT = 4096
"""Below this length the original, and more so this, makes smaller items in smaller steps."""
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."

_MAX_DRAWS = 20
"""How often an item is drawn anew when even its smallest size does not fit."""
_MAX_JUMPS = 8
"""After so many guesses the search for a size just halves what is left."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Draft:
    """The parts of an item at some size, before it is known to fit."""

    before: str
    context: str
    after: str
    prefix: str
    references: tuple[str, ...]
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The prompt as the length rule counts it: without chat template, with the prefix."""
        return self.before + self.context + self.after + self.prefix


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """How the items of a task are made at one length."""

    draft: Callable[[int, int, random.Random], Draft]
    """From an item's number, its size and its generator; called again for every size tried."""
    smallest: int
    step: int
    largest: int
    """Sizes: words, lines, documents, whatever the haystack is made of."""
    num_items: int = NUM_ITEMS
    passes_over: bool = False
    """Whether an item that cannot be made to fit is left out rather than an error."""


class RulerTask(ABC):
    """A task whose items are made to a length.

    The length rule is the original's: tokens of prompt and answer prefix, and the new tokens
    allowed, are together at most `Request.length`.
    """

    has_length = True
    metric = "match"
    max_new_tokens: int
    needs_all = True
    """Whether every reference counts, or any one suffices."""

    def __init__(self, short_name: str) -> None:
        self.name = f"ruler/{short_name}"

    @abstractmethod
    def plan(self, request: Request, length: int) -> Plan:
        """Return how items of this length are made."""

    def items(self, request: Request) -> Iterator[Item]:
        """Yield items of the wanted length.

        Raises `EvaluationError` without a length and for one too short for the task.
        """
        if request.length is None:
            raise EvaluationError(f"{self.name} makes items to a length; give --length, as 4096")
        plan = self.plan(request, request.length)
        common = self._common_size(plan, request, request.length)
        wanted = plan.num_items if request.limit is None else request.limit
        shortest: int | None = None
        num_made = 0
        for index in range(plan.num_items):
            if num_made == wanted:
                return
            draft, tokens = self._fit(plan, request, request.length, index, common)
            if draft is not None:
                num_made += 1
                yield Item(
                    id=f"{index:04}",
                    before=draft.before,
                    context=draft.context,
                    after=draft.after,
                    prefix=draft.prefix,
                    references=draft.references,
                    max_new_tokens=self.max_new_tokens,
                    about=draft.about,
                )
                continue
            shortest = tokens if shortest is None else min(shortest, tokens)
            if not plan.passes_over:
                break
        if shortest is not None and not (plan.passes_over and num_made):
            raise EvaluationError(
                f"{self.name} cannot make items of {request.length} tokens: the shortest takes "
                f"{shortest}, {self.max_new_tokens} for the answer included; give a --length of "
                f"at least {shortest}"
            )

    def score(self, item: Item, reply: Reply) -> Metrics:
        """Return the original's score, and `strict`: the same, but of whole words and numbers."""
        matches = string_match_all if self.needs_all else string_match_part
        return {
            "score": matches(reply.text, item.references),
            "strict": matches(reply.text, item.references, whole=True),
        }

    def _common_size(self, plan: Plan, request: Request, length: int) -> int:
        """Return the largest size at which the first item fits: the anchor of all the others."""
        sized = _Sizer(self, plan, request, f"{length}/0", 0)
        found = _largest_fit(sized.tokens, length, plan.smallest, plan.largest, guess=plan.smallest)
        return plan.smallest if found is None else found

    def _fit(
        self, plan: Plan, request: Request, length: int, index: int, common: int
    ) -> tuple[Draft | None, int]:
        """Return an item and its tokens, or None and the fewest tokens that were needed."""
        fewest: list[int] = []
        for draw in range(1 if plan.passes_over else _MAX_DRAWS):
            key = f"{length}/{index}" + (f"/{draw}" if draw else "")
            sized = _Sizer(self, plan, request, key, index)
            draft, tokens = _fit_in_steps(plan, sized, length, common)
            if draft is not None:
                return draft, tokens
            fewest.append(tokens)
        return None, min(fewest)


class _Sizer:
    """The drafts of one item at every size asked for, each made and counted once."""

    def __init__(self, task: RulerTask, plan: Plan, request: Request, key: str, index: int) -> None:
        self._seed = f"{request.seed}/{task.name}/{key}"
        self._plan, self._index = plan, index
        self._count, self._max_new_tokens = request.count_tokens, task.max_new_tokens
        self._known: dict[int, tuple[Draft, int]] = {}

    def draft(self, size: int) -> Draft:
        return self._at(size)[0]

    def tokens(self, size: int) -> int:
        return self._at(size)[1]

    def _at(self, size: int) -> tuple[Draft, int]:
        if size not in self._known:
            draft = self._plan.draft(self._index, size, random.Random(self._seed))
            self._known[size] = draft, self._count(draft.text) + self._max_new_tokens
        return self._known[size]


def _fit_in_steps(plan: Plan, sized: _Sizer, length: int, common: int) -> tuple[Draft | None, int]:
    """Fit an item at the largest of the sizes a whole number of steps from the common one."""

    def size(steps: int) -> int:
        return max(plan.smallest, common + steps * plan.step)

    lowest = -((common - plan.smallest) // -plan.step)
    highest = (plan.largest - common) // plan.step
    steps = _largest_fit(lambda at: sized.tokens(size(at)), length, -lowest, highest, guess=0)
    if steps is None:
        return None, sized.tokens(plan.smallest)
    return sized.draft(size(steps)), sized.tokens(size(steps))


def _largest_fit(
    tokens: Callable[[int], int], budget: int, low: int, high: int, *, guess: int
) -> int | None:
    """Return the largest number in low..high whose tokens are within budget, or None.

    Tokens must grow with the number. Counting the tokens of a long text is slow, so each try is
    where the line through the last two points meets the budget; three or four are enough.
    """
    fits, over = low - 1, high + 1
    at, last = min(max(guess, low), high), None
    jumps = 0
    while over - fits > 1:
        count = tokens(at)
        if count <= budget:
            fits = at
        else:
            over = at
        if last is None:
            slope = count / max(1, at) if low > 0 else None
        else:
            slope = (count - last[1]) / (at - last[0])
        last = at, count
        jumps += 1
        if jumps > _MAX_JUMPS:
            at = (fits + over) // 2
        elif slope is None or slope <= 0:
            at += 1 if count <= budget else -1
        else:
            at += int((budget - count) // slope)
        at = min(max(at, fits + 1), over - 1)
    return None if fits < low else fits


def string_match_all(text: str, references: Sequence[str], *, whole: bool = False) -> float:
    """Return the fraction of references that the answer holds, whatever their case.

    As in the original a reference also counts inside a longer word or number; with `whole` it must
    stand free of letters and digits.
    """
    found = _find(text, references, whole)
    return sum(found) / len(found)


def string_match_part(text: str, references: Sequence[str], *, whole: bool = False) -> float:
    """Return 1.0 if the answer holds any of the references, else 0.0."""
    return float(any(_find(text, references, whole)))


def clean_answer(text: str) -> str:
    """Return an answer as the original's evaluator scores it: control characters end lines."""
    return re.sub(r"[\x00-\x1f]", "\n", text.strip()).strip()


def _find(text: str, references: Sequence[str], whole: bool) -> list[bool]:
    answer = clean_answer(text).lower()
    if not whole:
        return [reference.lower() in answer for reference in references]
    return [
        re.search(rf"(?<![^\W_]){re.escape(reference.lower())}(?![^\W_])", answer) is not None
        for reference in references
    ]
