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

import re
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from random import Random
from statistics import fmean
from typing import Any

from octavo.errors import EvaluationError
from octavo_evals.task import Item, Metrics, Reply, Request, Task, fill
from octavo_evals.tasks.fit import largest_fit

NUM_ITEMS = 500
"""Items per task and length, as in the paper."""
SHORT = 4096
"""Below this length the original, and more so this, makes smaller items in smaller steps."""
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
_MAX_DRAWS = 20
"""How often an item is drawn anew when even its smallest size does not fit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """How the items of a task are made at one length."""

    draft: Callable[[int, int, Random], Item]
    """From an item's number, its size and its generator; called again for every size tried."""
    smallest: int
    step: int
    largest: int
    """Sizes: words, lines, documents, whatever the haystack is made of."""
    num_items: int = NUM_ITEMS
    passes_over: bool = False
    """Whether an item that cannot be made to fit is left out rather than an error."""


class RulerTask(Task):
    """A task whose items are made to a length.

    The length rule is the original's: tokens of prompt and answer prefix, and the new tokens
    allowed, are together at most `Request.length`.
    """

    has_length = True
    metric = "match"
    max_new_tokens: int
    prompt: str
    """Its name in `assets/prompts.toml`."""
    needs_all = True
    """Whether every reference counts, or any one suffices."""

    def __init__(self, short_name: str) -> None:
        """Take the task's name in RULER."""
        self.name = f"ruler/{short_name}"

    @abstractmethod
    def plan(self, request: Request) -> Plan:
        """Return how items of the wanted length are made."""

    def item(
        self,
        index: int,
        context: str,
        references: Sequence[str],
        about: dict[str, Any],
        *,
        prompt: str = "",
        example: str = "",
        **fields: str,
    ) -> Item:
        """Return the item with that number: a context in the prompt, which names the fields."""
        around = fill(prompt or self.prompt, **fields)
        return Item(
            **{**around, "before": example + around["before"]},
            id=f"{index:04}",
            context=context,
            references=tuple(references),
            max_new_tokens=self.max_new_tokens,
            about=about,
        )

    def make(self, request: Request) -> Iterator[Item]:
        """Yield items of the wanted length; raises `EvaluationError` for one that is too short."""
        plan = self.plan(request)
        first = self._drafts(plan, request, 0, 0)
        # The largest size at which the first item fits is the anchor of all the others.
        common = largest_fit(
            lambda size: first(size)[1], request.room, plan.smallest, plan.largest,
            guess=plan.smallest,
        )  # fmt: skip
        shortest, is_empty = 0, True
        for index in range(plan.num_items):
            item, tokens = self._fit(plan, request, index, common or plan.smallest)
            if item is not None:
                is_empty = False
                yield item
                continue
            shortest = min(shortest or tokens, tokens)
            if not plan.passes_over:
                break
        if shortest and (is_empty or not plan.passes_over):
            raise EvaluationError(
                f"{self.name} cannot make items of {request.length} tokens: the shortest takes "
                f"{shortest}, {self.max_new_tokens} for the answer included; give a --length of "
                f"at least {shortest}"
            )

    def _fit(
        self, plan: Plan, request: Request, index: int, common: int
    ) -> tuple[Item | None, int]:
        """Return an item a whole number of steps from the common size, and its tokens.

        Where none fits, return None and the fewest tokens that were needed.
        """
        fewest = []
        for draw in range(1 if plan.passes_over else _MAX_DRAWS):
            drafts = self._drafts(plan, request, index, draw)
            made = _fit_in_steps(plan, drafts, request.room, common)
            if made is not None:
                return made
            fewest.append(drafts(plan.smallest)[1])
        return None, min(fewest)

    def _drafts(
        self, plan: Plan, request: Request, index: int, draw: int
    ) -> Callable[[int], tuple[Item, int]]:
        """Return what makes an item at a size and counts its tokens, once for each size."""
        key = f"{request.seed}/{self.name}/{request.length}/{index}" + (f"/{draw}" if draw else "")

        @cache
        def at(size: int) -> tuple[Item, int]:
            item = plan.draft(index, size, Random(key))
            return item, request.count_tokens(item.text) + self.max_new_tokens

        return at

    def score(self, item: Item, reply: Reply) -> Metrics:
        """Return the original's score, and `strict`: the same, but of whole words and numbers."""
        share: Callable[[list[bool]], float] = fmean if self.needs_all else any
        return {
            "score": float(share(find_references(reply.text, item.references))),
            "strict": float(share(find_references(reply.text, item.references, whole=True))),
        }


def _fit_in_steps(
    plan: Plan, drafts: Callable[[int], tuple[Item, int]], length: int, common: int
) -> tuple[Item, int] | None:
    """Fit an item at the largest of the sizes a whole number of steps from the common one."""

    def at(steps: int) -> tuple[Item, int]:
        return drafts(max(plan.smallest, common + steps * plan.step))

    lowest, highest = ((end - common) // plan.step for end in (plan.smallest, plan.largest))
    steps = largest_fit(lambda steps: at(steps)[1], length, lowest, highest, guess=0)
    return None if steps is None else at(steps)


def find_references(text: str, references: Sequence[str], *, whole: bool = False) -> list[bool]:
    """Return of each reference whether the answer holds it, whatever their case.

    As in the original a reference also counts inside a longer word or number; with `whole` it must
    stand free of letters and digits.
    """
    answer = clean_answer(text).lower()
    forms = (re.escape(reference.lower()) for reference in references)
    if whole:
        forms = (rf"(?<![^\W_]){form}(?![^\W_])" for form in forms)
    return [re.search(form, answer) is not None for form in forms]


def clean_answer(text: str) -> str:
    """Return an answer as the original's evaluator scores it: control characters end lines."""
    return re.sub(r"[\x00-\x1f]", "\n", text.strip()).strip()
