"""Made-up facts in a folded text of which an answer needs two to four.

Our own generator, with words and sentences unlike those of the tests it prepares for (variable
tracking in RULER, arXiv 2404.06654, and multi-hop questions). Two forms: chains, in which each key
shares what the next one has; and joins, in which one fact leads to a place and another says
something about it. Other chains and joins of the same form stand between them.
"""

import random
from typing import NamedTuple

from octavo.data.builders.qa import Question, dialogue
from octavo.data.builders.text import hide
from octavo.data.builders.words import different, keys, listed, name, pair
from octavo.data.examples import Example, ExampleMaker
from octavo.data.sources import Library
from octavo.recipe import MixtureSection

CHAINS = 0.6
"""How often the facts are chains; otherwise joins."""
MAX_LINKS = 4
SENTENCES = 0.3
"""How often a question is answered by a sentence."""

THINGS = (
    *("locker", "password", "room", "boat", "table", "mailbox", "workshop", "desk", "garage"),
    *("account", "stall", "shelf", "bench", "signal", "tent", "field", "phone line", "key"),
)
ROOTS = (
    "{key}'s {thing} is {value}.",
    "The {thing} of {key} is {value}.",
    "For {key} the {thing} is set to {value}.",
    "{value} is the {thing} that {key} was assigned.",
)
LINKS = (
    "{key}'s {thing} is {other}'s {thing}.",
    "{key} has the same {thing} as {other}.",
    "The {thing} of {key} is that of {other}.",
    "{key} uses {other}'s {thing}.",
    "As to the {thing}, {key} shares with {other}.",
    "Whatever {thing} {other} has, {key} has too.",
)
CHAIN_QUESTIONS = (
    "What is {key}'s {thing}?",
    "Which {thing} does {key} have in the end?",
    "Follow the text: what is the {thing} of {key}?",
    "Work out the {thing} of {key}.",
    "{key} needs the {thing}. Which is it?",
)
SHARERS = (
    "Who has the {thing} {value}? Name all.",
    "List everyone whose {thing} is {value}.",
    "Whose {thing} comes to {value}?",
)
CHAIN_ANSWER = "{key}'s {thing} is {value}."


class Join(NamedTuple):
    """Two facts with a place in common, and the question that needs both."""

    first: str
    second: str
    question: str


JOINS = (
    Join(
        "{key} lodges at the {place} inn.",
        "Parcels for the {place} inn are kept under {value}.",
        "Under what are parcels kept for the inn where {key} lodges?",
    ),
    Join(
        "{key} sails on the {place}.",
        "The radio of the {place} answers to {value}.",
        "What does the radio of the ship that {key} sails on answer to?",
    ),
    Join(
        "{key} studies with a teacher called {place}.",
        "The teacher called {place} can be reached at {value}.",
        "Where can the teacher of {key} be reached?",
    ),
    Join(
        "{key} was born in the village of {place}.",
        "The village of {place} has the postal mark {value}.",
        "What postal mark has the village in which {key} was born?",
    ),
    Join(
        "The owner of the {place} bakery is {key}.",
        "At the {place} bakery the back door opens with {value}.",
        "What opens the back door of the bakery that {key} owns?",
    ),
    Join(
        "{key} borrowed the book called {place}.",
        "The book called {place} stands on shelf {value}.",
        "On which shelf stands the book that {key} borrowed?",
    ),
    Join(
        "{key} won the race on a horse named {place}.",
        "The horse named {place} sleeps in box {value}.",
        "In which box sleeps the horse on which {key} won?",
    ),
    Join(
        "The play that {key} wrote is named {place}.",
        "Tickets for the play named {place} carry the stamp {value}.",
        "Which stamp do tickets carry for the play that {key} wrote?",
    ),
)


def build(
    rng: random.Random, library: Library, maker: ExampleMaker, mixture: MixtureSection
) -> Example | None:
    """Put chains or joins into prose of `context_tokens`, and ask for their ends."""
    document = library.prose(rng)
    make = _chains if rng.random() < CHAINS else _joins
    sentences, questions = make(rng)
    in_order = rng.random() < 0.5
    bounds = mixture.context_tokens
    context = hide(rng, maker.prompts, document.text, sentences, bounds, in_order=in_order)
    if not context:
        return None
    count = rng.randint(1, min(mixture.max_questions, len(questions)))
    chosen = rng.sample(questions, count)
    return dialogue(rng, maker, "hops", context, chosen, document.origin)


def _chains(rng: random.Random) -> tuple[list[str], list[Question]]:
    """Make one to three chains of two to four facts; no question is answered by one fact."""
    thing = rng.choice(THINGS)
    lengths = [rng.randint(2, MAX_LINKS) for _ in range(rng.randint(1, 3))]
    names = keys(rng, sum(lengths))
    ends = different(rng, len(lengths))
    sentences: list[str] = []
    questions: list[Question] = []
    for length, end in zip(lengths, ends, strict=True):
        chain, names = names[:length], names[length:]
        possible: list[Question] = []  # one is asked: its answer would give the others away
        sentences.append(rng.choice(ROOTS).format(key=chain[0], thing=thing, value=end))
        for key, other in zip(chain[1:], chain, strict=False):
            sentences.append(rng.choice(LINKS).format(key=key, other=other, thing=thing))
            question = rng.choice(CHAIN_QUESTIONS).format(key=key, thing=thing)
            answer = CHAIN_ANSWER if rng.random() < SENTENCES else "{value}"
            possible.append((question, answer.format(key=key, thing=thing, value=end)))
        question = rng.choice(SHARERS).format(thing=thing, value=end)
        possible.append((question, listed(chain)))
        questions.append(rng.choice(possible))
    return sentences, questions


def _joins(rng: random.Random) -> tuple[list[str], list[Question]]:
    """Make one to three joins of one form; each question needs both facts of its join."""
    form = rng.choice(JOINS)
    count = rng.randint(1, 3)
    people = keys(rng, count)
    places = different(rng, count, rng.choice((name, lambda r: pair(r).title())))
    ends = different(rng, count)
    sentences: list[str] = []
    questions: list[Question] = []
    for key, place, end in zip(people, places, ends, strict=True):
        sentences += [
            text.format(key=key, place=place, value=end) for text in (form.first, form.second)
        ]
        questions.append((form.question.format(key=key), end))
    return sentences, questions
