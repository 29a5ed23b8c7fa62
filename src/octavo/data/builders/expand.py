"""Traces of skimming: a text in numbered, folded parts; some are asked for; then the answer.

    user       [1] <latents> [2] <latents> …   Question: …      assistant  EXPAND: 4
    user       [4] the raw part                                 assistant  the answer

The parts that hold the answer are known: facts were hidden in them, or a record's answer stands in
one. What is said and shown is what the agent says and shows (`octavo.expand`), to a model without
tool calls of its own. Learning to choose is the paper's open direction (arXiv 2606.09659, section
8); the rule is our own.
"""

import random
import re

import octavo.expand as expand
from octavo.ask.passages import Passage, cut_passages
from octavo.data.builders.needle import hidden_facts
from octavo.data.builders.qa import Question
from octavo.data.builders.text import num_tokens
from octavo.data.examples import Example, ExampleMaker
from octavo.data.sources import Library
from octavo.recipe import MixtureSection

FACTS = 0.5
"""How often facts are made up, where there are records of questions too."""
PART_TOKENS = (64, 128, 256)
SEVERAL_ROUNDS = 0.5
"""How often parts are asked for one after another, where there are several."""
NEIGHBOURS = 0.2
"""How often a part more is asked for: a careful reader is not always sure."""
MAX_GOLD = 3
"""Parts that may hold an answer; where more do, none is the right one."""


def build(
    rng: random.Random, library: Library, maker: ExampleMaker, mixture: MixtureSection
) -> Example | None:
    """Ask for facts or answers that stand in known parts of a text of `context_tokens`."""
    if not library.has("questions") or rng.random() < FACTS:
        found = hidden_facts(rng, library, maker, mixture)
        if found is None:
            return None
        text, (question, answer), needed, origin = found
        passages = cut_passages(text, max_tokens=rng.choice(PART_TOKENS))
        gold = [_holding(text, passages, needle) for needle in needed]
        if any(len(parts) != 1 for parts in gold):  # cut in two, or said twice
            return None
        numbers = sorted({number for parts in gold for number in parts})
    else:
        asked = library.questions(rng)
        question, answers = rng.choice(asked.turns)
        text, answer, origin = asked.context, rng.choice(answers), asked.origin
        low, high = mixture.context_tokens
        if len(text) > 12 * high or not low <= num_tokens(maker.prompts, text) <= high:
            return None
        passages = cut_passages(text, max_tokens=rng.choice(PART_TOKENS))
        numbers = _likeliest(text, passages, question, answer)
    if not numbers or len(passages) < 2:
        return None
    return _trace(rng, maker, text, passages, (question, answer), numbers, origin)


def _trace(
    rng: random.Random,
    maker: ExampleMaker,
    text: str,
    passages: list[Passage],
    question: Question,
    numbers: list[int],
    origin: str,
) -> Example | None:
    """Lay out the conversation."""
    pieces = [text[one.start : one.end] for one in passages]
    if not all(piece.strip() for piece in pieces):
        return None
    parts = expand.folded([{"type": "memory", "text": piece} for piece in pieces])
    asked = {"type": "text", "text": expand.asking(question[0])}
    messages: list[dict[str, object]] = [{"role": "user", "content": [*parts, asked]}]
    rounds = [numbers]
    if len(numbers) > 1 and rng.random() < SEVERAL_ROUNDS:
        rounds = [[number] for number in numbers]
    elif rng.random() < NEIGHBOURS:
        more = rng.choice([at for at in range(1, len(pieces) + 1) if at not in numbers] or numbers)
        rounds = [sorted({*numbers, more})]
    for opened in rounds:
        shown = expand.in_full([(number, pieces[number - 1]) for number in opened])
        messages += [
            {"role": "assistant", "content": expand.ask_for(opened)},
            {"role": "user", "content": shown},
        ]
    messages.append({"role": "assistant", "content": question[1]})
    return maker.from_chat("expand", messages, origin)


def _holding(text: str, passages: list[Passage], needle: str) -> list[int]:
    """Return the numbers of the parts that a sentence stands in, whole."""
    return [at for at, one in enumerate(passages, 1) if needle in text[one.start : one.end]]


def _likeliest(text: str, passages: list[Passage], question: str, answer: str) -> list[int]:
    """Return the part with the answer that shares most words with the question; none for many."""
    holding = _holding(text.casefold(), passages, answer.casefold()) if answer else []
    if not 1 <= len(holding) <= MAX_GOLD or len(text.casefold()) != len(text):
        return []
    words = set(re.findall(r"\w+", question.casefold()))

    def shared(number: int) -> int:
        one = passages[number - 1]
        return len(words & set(re.findall(r"\w+", text[one.start : one.end].casefold())))

    return [max(holding, key=shared)]
