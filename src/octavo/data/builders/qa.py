"""Questions about a compressed text: the text at the head of a chat, then a question a turn.

All questions of one chat share one span, as they do when a user compresses once and asks many
times. The rule is our own; question-answer records are a part of the paper's fine-tuning mixture
(arXiv 2606.09659, Table 3).
"""

import random

from octavo.data.builders.text import num_tokens
from octavo.data.builders.words import PHRASES
from octavo.data.examples import Example, ExampleMaker
from octavo.data.sources import Asked, Library
from octavo.recipe import MixtureSection

SAY = PHRASES["qa"]
JOINED = 0.5
"""How often a short text is joined with others."""
MAX_JOINED = 12
HINTS = 0.3
"""How often a question with a short answer says that a short one is wanted."""
SHORT_WORDS = 5

Question = tuple[str, str]


def build(
    rng: random.Random, library: Library, maker: ExampleMaker, mixture: MixtureSection
) -> Example | None:
    """Ask up to `max_questions` about one text; None for one longer than `context_tokens`."""
    asked = library.questions(rng)
    low, high = mixture.context_tokens
    if len(asked.context) > 12 * high:  # far too long: not even worth tokenising
        return None
    length = num_tokens(maker.prompts, asked.context)
    if length > high:
        return None
    if 2 * length < low and rng.random() < JOINED:
        context, questions = _joined(rng, library, maker, asked, mixture)
        if num_tokens(maker.prompts, context) > high:
            return None
    else:
        context = asked.context
        questions = [(question, rng.choice(answers)) for question, answers in asked.turns]
    count = rng.randint(1, min(mixture.max_questions, len(questions)))
    return dialogue(rng, maker, mixture, "qa", context, rng.sample(questions, count), asked.origin)


def dialogue(
    rng: random.Random,
    maker: ExampleMaker,
    mixture: MixtureSection,
    kind: str,
    context: str,
    questions: list[Question],
    origin: str,
) -> Example | None:
    """Return a chat that begins with a text, mostly compressed, and asks one question a turn."""
    messages: list[dict[str, object]] = []
    form = "text" if mixture.raw and rng.random() < mixture.raw else "memory"
    for question, answer in questions:
        if len(answer.split()) <= SHORT_WORDS and rng.random() < HINTS:
            question = f"{question} {rng.choice(SAY['briefly'])}"
        parts = [{"type": form, "text": context}, {"type": "text", "text": f"\n\n{question}"}]
        messages += [
            {"role": "user", "content": question if messages else parts},
            {"role": "assistant", "content": answer},
        ]
    return maker.from_chat(kind, messages, origin)


def _joined(
    rng: random.Random,
    library: Library,
    maker: ExampleMaker,
    asked: Asked,
    mixture: MixtureSection,
) -> tuple[str, list[Question]]:
    """Join short texts under numbered headings; questions name theirs, for texts may disagree."""
    chosen = [asked]
    low = mixture.context_tokens[0]
    total = num_tokens(maker.prompts, asked.context)
    for _ in range(2 * MAX_JOINED):
        if total >= low or len(chosen) == MAX_JOINED:
            break
        other = library.questions(rng)
        if len(other.context) > 12 * low or any(other.context == c.context for c in chosen):
            continue
        length = num_tokens(maker.prompts, other.context)
        if length <= low:
            chosen.append(other)
            total += length
    rng.shuffle(chosen)
    label, about = rng.choice(SAY["labels"]), rng.choice(SAY["about"])
    texts, questions = [], []
    for number, item in enumerate(chosen, 1):
        name = f"{label} {number}"
        texts.append(f"{name}:\n{item.context}")
        questions += [
            (about.format(name=name, question=question), rng.choice(answers))
            for question, answers in item.turns
        ]
    return "\n\n".join(texts), questions
