"""Made-up facts in a compressed text of which an answer needs two to four.

Our own generator, with words and sentences unlike those of the tests it prepares for (variable
tracking in RULER, arXiv 2404.06654, and multi-hop questions). Two forms: chains, in which each key
shares what the next one has; and joins, in which one fact leads to a place and another says
something about it. Other chains and joins of the same form stand between them.
"""

import random

from octavo.data.builders.qa import Question, dialogue
from octavo.data.builders.text import hide
from octavo.data.builders.words import PHRASES, different, keys, listed, name, pair
from octavo.data.examples import Example, ExampleMaker
from octavo.data.sources import Library
from octavo.recipe import MixtureSection

SAY = PHRASES["hops"]
CHAINS = 0.6
"""How often the facts are chains; otherwise joins."""
MAX_LINKS = 4
SENTENCES = 0.3
"""How often a question is answered by a sentence."""

CHAIN_ANSWER = "{key}'s {thing} is {value}."


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
    return dialogue(rng, maker, mixture, "hops", context, chosen, document.origin)


def _chains(rng: random.Random) -> tuple[list[str], list[Question]]:
    """Make one to three chains of two to four facts; no question is answered by one fact."""
    thing = rng.choice(SAY["things"])
    lengths = [rng.randint(2, MAX_LINKS) for _ in range(rng.randint(1, 3))]
    names = keys(rng, sum(lengths))
    ends = different(rng, len(lengths))
    sentences: list[str] = []
    questions: list[Question] = []
    for length, end in zip(lengths, ends, strict=True):
        chain, names = names[:length], names[length:]
        possible: list[Question] = []  # one is asked: its answer would give the others away
        sentences.append(rng.choice(SAY["roots"]).format(key=chain[0], thing=thing, value=end))
        for key, other in zip(chain[1:], chain, strict=False):
            sentences.append(rng.choice(SAY["links"]).format(key=key, other=other, thing=thing))
            question = rng.choice(SAY["chain_questions"]).format(key=key, thing=thing)
            answer = CHAIN_ANSWER if rng.random() < SENTENCES else "{value}"
            possible.append((question, answer.format(key=key, thing=thing, value=end)))
        question = rng.choice(SAY["sharers"]).format(thing=thing, value=end)
        possible.append((question, listed(chain)))
        questions.append(rng.choice(possible))
    return sentences, questions


def _joins(rng: random.Random) -> tuple[list[str], list[Question]]:
    """Make one to three joins of one form; each question needs both facts of its join."""
    form = rng.choice(SAY["joins"])
    count = rng.randint(1, 3)
    people = keys(rng, count)
    places = different(rng, count, rng.choice((name, lambda r: pair(r).title())))
    ends = different(rng, count)
    sentences: list[str] = []
    questions: list[Question] = []
    for key, place, end in zip(people, places, ends, strict=True):
        sentences += [
            form[fact].format(key=key, place=place, value=end) for fact in ("first", "second")
        ]
        questions.append((form["question"].format(key=key), end))
    return sentences, questions
