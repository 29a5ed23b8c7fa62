"""Measure what a model is better at: which policy, which layout, and what its confidence is worth.

Every item is answered by each policy and layout, from latents at every ratio, and from its raw
text where that fits. The pair that answers most is kept (of equals the cheaper, which stands
first), with a curve of confidence for each thing that answers were read from.
"""

import random
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from octavo.agent.agent import Agent
from octavo.confidence import MIN_ITEMS, Measured, Reading, fit
from octavo.errors import ContextError, InputError, PromptTooLongError
from octavo.expand import LAYOUTS, Layout
from octavo.model import Model
from octavo.progress import Progress, ignore

PAIRS: tuple[tuple[str, Layout], ...] = (
    ("retrieval", "alone"), ("retrieval", "in place"), ("hybrid", "alone"), ("hybrid", "in place"),
    ("model", "alone"), ("model", "in place"), ("model", "appended"),
)  # fmt: skip
"""Tried in this order: from what asks least of a model to what asks most."""
NEW_TOKENS = 32
_COLOURS = "amber black blue brown crimson green grey indigo ivory olive red silver".split()
_THINGS = "anchor basket candle drum engine flute glove hammer kettle lantern mirror rope".split()


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownItem:
    """A question about a text whose answers are known."""

    context: str
    question: str
    answers: Sequence[str]

    def is_right(self, said: str) -> bool:
        """Return whether an answer holds one of the known ones as whole words."""
        words = _plain(said)
        return any(f" {_plain(answer)} " in f" {words} " for answer in self.answers)


def made_up(count: int, *, seed: int = 0, paragraphs: int = 10) -> list[KnownItem]:
    """Make items where none are given: made-up facts between the paragraphs of a shipped story."""
    story = resources.files("octavo").joinpath("assets", "texts", "blue-carbuncle.txt")
    prose = [one for one in story.read_text(encoding="utf-8").split("\n\n") if len(one) > 80]
    rng, items = random.Random(seed), []
    for _ in range(count):
        first = rng.randrange(max(1, len(prose) - paragraphs))
        pieces = list(prose[first : first + paragraphs])
        named = rng.sample([f"{c} {t}" for c in _COLOURS for t in _THINGS], 3)
        facts = {name: str(rng.randrange(1000, 10000)) for name in named}
        for name, number in facts.items():
            fact = f"The number of the {name} is {number}."
            pieces.insert(rng.randrange(len(pieces) + 1), fact)
        items.append(
            KnownItem(
                context="\n\n".join(pieces),
                question=f"What is the number of the {named[0]}?",
                answers=(facts[named[0]],),
            )
        )
    return items


def read_items(records: Iterable[Mapping[str, Any]]) -> list[KnownItem]:
    """Read `{"context", "question", "answers"}` records; raises `InputError` for others."""
    items = []
    for number, record in enumerate(records, 1):
        context, question = record.get("context"), record.get("question")
        answers = record.get("answers")
        if isinstance(answers, Mapping):  # as the hub has SQuAD
            answers = answers.get("text")
        is_list = isinstance(answers, list) and all(isinstance(one, str) for one in answers)
        if not (isinstance(context, str) and isinstance(question, str) and is_list):
            raise InputError(
                f'item {number} is not {{"context": …, "question": …, "answers": ["…"]}}; fix it'
            )
        if answers:
            items.append(KnownItem(context=context, question=question, answers=answers))
    return items


def calibrate(
    model: Model,
    items: Sequence[KnownItem],
    *,
    pairs: Sequence[tuple[str, Layout]] = PAIRS,
    about: str = "",
    progress: Progress = ignore,
) -> Measured:
    """Return what was measured on some items; `write_measured` keeps it.

    Raises `InputError` for fewer items than a curve needs. Takes a few seconds an item and pair on
    a laptop with the shipped model.
    """
    if len(items) < MIN_ITEMS:
        raise InputError(f"{len(items)} items are too few to measure on; give {MIN_ITEMS} or more")
    right: dict[str, list[bool]] = defaultdict(list)
    seen: dict[Reading, list[tuple[float, bool]]] = defaultdict(list)
    for done, item in enumerate(items):
        progress("calibrating", done, len(items))
        context = model.compress(item.context)
        for policy, layout in pairs:
            agent = Agent(model, context, policy=policy, layout=layout, max_new_tokens=NEW_TOKENS)
            run = agent.run(item.question)
            answer = run.answer()
            is_right = item.is_right(answer.text)
            right[f"{policy}, {layout}"].append(is_right)
            # What was read beside latents is no passage alone, and what an agent says of latents,
            # with all that it is offered, says little of plain questions: neither has a curve.
            if run.logprob is not None and answer.reading == "passages" and layout == "alone":
                seen["passages"].append((run.logprob, is_right))
        for ratio in (*model.ratios, None):
            try:
                is_known = ratio in (None, context.ratio)
                read = context if is_known else model.compress(item.context, ratio)
                said = model.generate(
                    item.question, read, raw=ratio is None, max_new_tokens=NEW_TOKENS
                )
            except (ContextError, PromptTooLongError):
                continue
            if said.logprob is not None:
                which: Reading = "raw" if ratio is None else "latents"
                seen[which].append((said.logprob, item.is_right(said.text)))
    progress("calibrating", len(items), len(items))
    accuracy = {pair: sum(found) / len(found) for pair, found in right.items()}
    best = max(accuracy, key=accuracy.__getitem__)
    policy, _, layout_name = best.partition(", ")
    return Measured(
        fingerprint=model.fingerprint,
        curves={
            reading: fit([logprob for logprob, _ in found], [is_right for _, is_right in found])
            for reading, found in sorted(seen.items())
            if len(found) >= MIN_ITEMS
        },
        policy=policy,
        layout=next(one for one in LAYOUTS if one == layout_name),
        accuracy=accuracy,
        about=about or f"{len(items)} items",
    )


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))
