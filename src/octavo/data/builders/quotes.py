"""A compressed passage of prose, and questions that quote it for the words beside the quotation.

Made-up needles stand out from the prose around them; here every word of the prose may be asked for.
Any text makes such questions, and the answer is the text's own words.
"""

import random
import re

from octavo.data.builders.qa import Question, dialogue
from octavo.data.builders.text import passage
from octavo.data.builders.words import PHRASES
from octavo.data.examples import Example, ExampleMaker
from octavo.data.sources import Library
from octavo.recipe import MixtureSection

SAY = PHRASES["quotes"]
BLANK = "____"
MIN_WORDS, MAX_WORDS = 5, 40
"""Sentences that are asked about."""
QUOTED_WORDS = (3, 8)
"""How much of a sentence is quoted where the rest is asked for."""
_SENTENCES = re.compile(r"(?:(?<=[.!?])|(?<=[.!?][\"'”’)\]]))\s+(?=[\"'“‘(\[]?[A-Z0-9])")
_WORD = re.compile(r"[^\W_](?:[\w'’.,-]*[^\W_])?")
_NAME_OR_NUMBER = re.compile(r"[A-Z].*|.*\d.*")


def build(
    rng: random.Random, library: Library, maker: ExampleMaker, mixture: MixtureSection
) -> Example | None:
    """Compress a passage of `context_tokens`, and ask for its words by their neighbours."""
    document = library.prose(rng)
    context = passage(rng, maker.prompts, document.text, mixture.context_tokens)
    if not context:
        return None
    sentences = [" ".join(sentence.split()) for sentence in _SENTENCES.split(context)]
    whole = [i for i, s in enumerate(sentences) if MIN_WORDS <= len(s.split()) <= MAX_WORDS]
    flat = " ".join(sentences)
    asked = rng.sample(whole, min(len(whole), rng.randint(1, mixture.max_questions)))
    made = [_question(rng, sentences, index, flat) for index in asked]
    questions = [question for question in made if question]
    if not questions:
        return None
    return dialogue(rng, maker, mixture, "quotes", context, questions, document.origin)


def _question(rng: random.Random, sentences: list[str], index: int, whole: str) -> Question | None:
    """Ask one thing about a sentence; None where the text has more than one answer."""
    sentence = sentences[index]
    if whole.count(sentence) != 1:
        return None
    form = rng.choice(("rest", "blank", "blank", "which", "next"))
    if form == "rest":
        words = sentence.split()
        first = min(len(words) - 2, rng.randint(*QUOTED_WORDS))
        quote, answer = " ".join(words[:first]), " ".join(words[first:])
        is_plain = whole.count(quote) == 1
    elif form == "blank":
        found = [m for m in _WORD.finditer(sentence) if m.start() and len(m[0]) > 2]
        named = [m for m in found if _NAME_OR_NUMBER.fullmatch(m[0])]
        if not found:
            return None
        word = rng.choice(named or found)
        quote, answer = f"{sentence[: word.start()]}{BLANK}{sentence[word.end() :]}", word[0]
        is_plain = BLANK not in sentence
    elif form == "which":
        answer = sentence
        words = [word for word in _WORD.findall(sentence) if len(word) > 3]
        if not words:
            return None
        quote = rng.choice([word for word in words if _NAME_OR_NUMBER.fullmatch(word)] or words)
        is_plain = whole.lower().count(quote.lower()) == 1
    else:
        if index + 1 == len(sentences) or len(sentences[index + 1].split()) > MAX_WORDS:
            return None
        quote, answer = sentence, sentences[index + 1]
        is_plain = index + 2 < len(sentences)  # the last one may be cut off
    return (rng.choice(SAY[form]).format(quote=quote), answer) if is_plain else None
