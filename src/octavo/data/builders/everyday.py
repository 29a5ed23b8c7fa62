"""Letters, invoices, minutes, logs, tables and other everyday documents, made up and asked about.

A kind is a head, facts in some layout or a table or both, and a tail; `everyday.toml` has them all.
Every answer stands in its document, letter for letter. The rule is our own; the documents of the
evaluation `everyday` are none of these: they were written by hand.
"""

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from octavo.data.builders.layouts import FORMS, Fact, Page, settings, table
from octavo.data.builders.qa import SAY, Question, dialogue
from octavo.data.builders.text import log_uniform, num_tokens
from octavo.data.builders.values import EVERYDAY, Values
from octavo.data.examples import Example, ExampleMaker
from octavo.data.sources import Library
from octavo.recipe import MixtureSection

CHARS_A_TOKEN = 2.6
"""About what a token of such documents has, full of numbers and names as they are."""
SHORT = 240
"""Characters below which a document has no head and tail."""
LONG = 1500
"""Characters above which half of the contexts are several documents."""
MAX_DOCUMENTS = 12


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """What documents of one kind are made of."""

    form: str
    heads: tuple[Fact, ...]
    facts: tuple[Fact, ...]
    columns: tuple[str, ...]
    """Of its table, `name:kind of value` each."""
    tails: tuple[Fact, ...]

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> "Kind":
        """Read a kind as the file has it."""
        heads, facts, tails = (
            tuple(map(Fact.read, given[part])) for part in ("head", "facts", "tail")
        )
        columns = tuple(given.get("table", ()))
        return cls(form=given["form"], heads=heads, facts=facts, columns=columns, tails=tails)


KINDS: dict[str, Kind] = {name: Kind.read(given) for name, given in EVERYDAY["kinds"].items()}


def build(
    rng: random.Random, library: Library, maker: ExampleMaker, mixture: MixtureSection
) -> Example | None:
    """Make up a context of `context_tokens`, and ask up to `max_questions` about it."""
    low, high = mixture.context_tokens
    context, questions = compose(rng, round(CHARS_A_TOKEN * log_uniform(rng, (low, high))))
    is_long = len(context.encode()) > high  # no token is shorter than a byte
    if not questions or (is_long and num_tokens(maker.prompts, context) > high):
        return None
    asked = rng.sample(questions, min(len(questions), rng.randint(1, mixture.max_questions)))
    return dialogue(rng, maker, mixture, "everyday", context, asked, "everyday:0")


def compose(rng: random.Random, num_chars: int) -> tuple[str, list[Question]]:
    """Return a document of about so many characters, or several, and all that can be asked."""
    if num_chars < LONG or rng.random() < 0.5:
        return write(rng, rng.choice(list(KINDS)), num_chars)
    count = rng.randint(2, min(MAX_DOCUMENTS, num_chars // 500))
    label, about = rng.choice(SAY["labels"]), rng.choice(SAY["about"])
    texts: list[str] = []
    questions: list[Question] = []
    for number in range(1, count + 1):
        kind, size = rng.choice(list(KINDS)), round(num_chars / count * rng.uniform(0.5, 1.4))
        text, asked = write(rng, kind, size)
        name = f"{label} {number} ({kind})"
        texts.append(f"{name}:\n{text}")
        named = rng.choice((name, f"{label} {number}"))
        questions += [(about.format(name=named, question=one), answer) for one, answer in asked]
    return "\n\n".join(texts), questions


def write(rng: random.Random, name: str, num_chars: int) -> tuple[str, list[Question]]:
    """Return a document of a kind, and the questions that have one answer in it."""
    kind, page = KINDS[name], Page(Values(rng))
    is_short = num_chars < SHORT
    head = "" if is_short else page.say(rng.choice(kind.heads))
    tail = "" if is_short or rng.random() < 0.3 else page.say(rng.choice(kind.tails))
    room, parts = max(1, num_chars - len(head) - len(tail)), [head]
    if kind.form == "config":
        parts.append(settings(page, room))
    elif kind.facts:
        share = rng.uniform(0.3, 0.6) if kind.columns else 1.0
        parts.append(FORMS[kind.form](page, kind.facts, round(share * room)))
        room -= len(parts[-1])
    if kind.columns and room > 0:
        parts.append(table(page, kind.columns, room))
    text = "\n\n".join(filter(None, (part.strip() for part in [*parts, tail])))
    times = Counter(question for question, _ in page.questions)
    return text, [one for one in page.questions if times[one[0]] == 1 and one[1] in text]
