"""Made-up facts hidden in a compressed text, or a compressed list, and questions for their values.

Our own generator, with words, sentences and hiding places unlike those of the tests it prepares
for (RULER, arXiv 2404.06654): a fact says some attribute of a made-up key, between the sentences of
real prose. Nothing but the latents can tell the value. Several facts share a text, and several
questions share its latents.
"""

import json
import random
from collections.abc import Callable, Sequence

from octavo.data.builders.qa import Question, dialogue
from octavo.data.builders.text import hide, log_uniform, num_tokens
from octavo.data.builders.words import PHRASES, different, keys, listed
from octavo.data.examples import Example, ExampleMaker
from octavo.data.sources import Library
from octavo.recipe import MixtureSection

SAY = PHRASES["needle"]
LISTS = 0.25
"""How often the text is a list of keys and values, without prose."""
MAX_FACTS = 6
SAME_ATTRIBUTE = 0.7
"""How often all facts of a text are about one attribute, so that only the key tells them apart."""
SENTENCES = 0.3
"""How often a question is answered by a sentence."""
SEVERAL = 0.2
"""How often a question asks for several values at once."""
MAX_ENTRIES = 400
SAMPLE = 8
"""Entries measured to learn how long one is."""

LINES: tuple[Callable[[str, str], str], ...] = (
    lambda key, value: f"{key}: {value}",
    lambda key, value: f"{key} = {value}",
    lambda key, value: f"{key}\t{value}",
    lambda key, value: f"- {key} -> {value}",
    lambda key, value: f"{key} | {value}",
    lambda key, value: f"{json.dumps(key)}: {json.dumps(value)},",
    lambda key, value: json.dumps({"key": key, "value": value}),
)

Fact = tuple[str, str, str]
"""An attribute, whose it is, and what it is."""


def build(
    rng: random.Random, library: Library, maker: ExampleMaker, mixture: MixtureSection
) -> Example | None:
    """Hide facts in prose of `context_tokens`, or list keys and values, and ask for some."""
    if rng.random() < LISTS:
        return _from_list(rng, maker, mixture)
    made = _in_prose(rng, library, maker, mixture)
    if made is None:
        return None
    context, facts, _, origin = made
    questions = _questions(rng, facts, rng.randint(1, mixture.max_questions))
    return dialogue(rng, maker, mixture, "needle", context, questions, origin)


def hidden_facts(
    rng: random.Random, library: Library, maker: ExampleMaker, mixture: MixtureSection
) -> tuple[str, Question, list[str], str] | None:
    """Hide facts in prose; return it, a question, the sentences that answer it, and the origin."""
    made = _in_prose(rng, library, maker, mixture)
    if made is None:
        return None
    context, facts, sentences, origin = made
    count = rng.randint(1, min(2, len(facts)))
    asked = rng.sample(range(len(facts)), count)
    chosen = [facts[at] for at in asked]
    question = _one(rng, *chosen[0]) if count == 1 else _several(chosen)
    return context, question, [sentences[at] for at in asked], origin


def _in_prose(
    rng: random.Random, library: Library, maker: ExampleMaker, mixture: MixtureSection
) -> tuple[str, list[Fact], list[str], str] | None:
    """Hide facts between the sentences of a document; return also how each was said."""
    document = library.prose(rng)
    count = rng.randint(1, MAX_FACTS)
    names = keys(rng, count)
    values = different(rng, count)
    shared = rng.choice(SAY["attributes"])
    attributes = [
        shared if rng.random() < SAME_ATTRIBUTE else rng.choice(SAY["attributes"]) for _ in names
    ]
    facts = list(zip(attributes, names, values, strict=True))
    sentences = [
        rng.choice(SAY["facts"]).format(attribute=attribute, key=name, value=said)
        for attribute, name, said in facts
    ]
    bounds = mixture.context_tokens
    context = hide(rng, maker.prompts, document.text, sentences, bounds, in_order=False)
    if not context or any(context.count(name) > 1 for name in names):  # the prose may say it too
        return None
    return context, facts, sentences, document.origin


def _questions(rng: random.Random, facts: Sequence[Fact], most: int) -> list[Question]:
    """Ask for one value or several at once; for none of them twice."""
    waiting = rng.sample(facts, len(facts))
    questions: list[Question] = []
    while waiting and len(questions) < most:
        count = rng.randint(2, 3) if len(waiting) > 1 and rng.random() < SEVERAL else 1
        asked, waiting = waiting[:count], waiting[count:]
        questions.append(_one(rng, *asked[0]) if count == 1 else _several(asked))
    return questions


def _one(rng: random.Random, attribute: str, key: str, said: str) -> Question:
    question = rng.choice(SAY["questions"]).format(attribute=attribute, key=key)
    if rng.random() < SENTENCES:
        return question, rng.choice(SAY["answers"]).format(attribute=attribute, key=key, value=said)
    return question, said


def _several(facts: Sequence[Fact]) -> Question:
    """Ask for values that the answer gives in the order of the question."""
    wanted = listed([f"the {attribute} of {key}" for attribute, key, _ in facts])
    return f"What are {wanted}?", listed([said for _, _, said in facts])


def _from_list(rng: random.Random, maker: ExampleMaker, mixture: MixtureSection) -> Example | None:
    """Fill a text of `context_tokens` with entries of one form."""
    line = rng.choice(LINES)
    length = log_uniform(rng, mixture.context_tokens)
    names, values = keys(rng, MAX_ENTRIES), different(rng, MAX_ENTRIES)
    entries = [line(key, said) for key, said in zip(names, values, strict=True)]
    each = num_tokens(maker.prompts, "\n".join(entries[:SAMPLE])) / SAMPLE
    count = max(1, min(MAX_ENTRIES, int(length / each)))
    context = "\n".join(entries[:count])
    if num_tokens(maker.prompts, context) > mixture.context_tokens[1]:
        return None
    asked = rng.sample(range(count), rng.randint(1, min(mixture.max_questions, count)))
    lookup = rng.choice(SAY["lookups"])
    questions = [(lookup.format(key=names[i]), values[i]) for i in asked]
    return dialogue(rng, maker, mixture, "needle", context, questions, "needle:list")
