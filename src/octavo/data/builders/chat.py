"""A conversation with compressed messages; what the assistant says as plain text is scored.

The rule for a message is the paper's (arXiv 2606.09659, App. C.4): half of them become one span;
the others hold spans, one in messages of 32 to 199 tokens, 1-2 up to 599 and 1-3 beyond, which
cover 80-100% with gaps of at least 5%. Messages below 32 tokens, and those whose regions come
to cover less than 70%, are compressed whole.

The paper does not say which messages. Here: every system and user message; and, in half of the
longer conversations, the assistant's messages up to a random turn too, as a long history is kept.
These are not scored, for nobody generates compressed text. The others stay text and are.
"""

import random
from collections.abc import Mapping
from typing import Any

from octavo.data.builders.text import num_tokens
from octavo.data.examples import Example, ExampleMaker
from octavo.data.sources import Library
from octavo.recipe import MixtureSection

WHOLE = 0.5
REGIONS = ((32, 0, 0), (200, 1, 1), (600, 1, 2))
"""Messages below so many tokens hold so many spans, at least and at most; 0: they are one span."""
REGIONS_OF_LONG = (1, 3)
COVERED = (0.8, 1.0)
MIN_GAP = 0.05
MIN_COVERED = 0.7
HISTORY = 0.5
"""How often a conversation of several answers has compressed ones."""


def build(
    rng: random.Random, library: Library, maker: ExampleMaker, mixture: MixtureSection
) -> Example | None:
    """Compress the beginning of a conversation, as many turns as `context_tokens` allows."""
    document = library.chats(rng)
    messages = _beginning(maker, document.messages, mixture.context_tokens[1])
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if not answers:
        return None
    if any(_has_span(message) for message in messages):  # it came with spans of its own
        return maker.from_chat("chat", messages, document.origin)
    num_history = 0
    if len(answers) > 1 and rng.random() < HISTORY:
        num_history = answers[rng.randrange(len(answers) - 1)] + 1
    compressed = [
        message
        if message["role"] == "assistant" and i >= num_history
        else _compressed(rng, maker, message)
        for i, message in enumerate(messages)
    ]
    return maker.from_chat("chat", compressed, document.origin)


def regions(rng: random.Random, num_tokens: int) -> list[tuple[int, int]]:
    """Return which tokens of a message are compressed, as `[start, stop)`."""
    low, high = next((r[1:] for r in REGIONS if num_tokens < r[0]), REGIONS_OF_LONG)
    whole = [(0, num_tokens)]
    if not low or rng.random() < WHOLE:
        return whole
    count = rng.randint(low, high)
    covered = rng.uniform(COVERED[0], COVERED[1] - MIN_GAP * (count - 1))
    sizes = _divided(rng, covered, count)
    spare = _divided(rng, 1 - covered - MIN_GAP * (count - 1), count + 1)
    found = []
    at = 0.0
    for i, size in enumerate(sizes):
        at += spare[i] + (MIN_GAP if i else 0)
        found.append((round(at * num_tokens), round((at + size) * num_tokens)))
        at += size
    return found if sum(b - a for a, b in found) >= MIN_COVERED * num_tokens else whole


def _divided(rng: random.Random, total: float, count: int) -> list[float]:
    """Divide `total` at random into shares, none beyond three times another."""
    shares = [rng.uniform(0.5, 1.5) for _ in range(count)]
    return [total * share / sum(shares) for share in shares]


def _compressed(
    rng: random.Random, maker: ExampleMaker, message: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Compress a message by the rule; one without tokens stays as it is."""
    text = _text(message)
    starts = [start for start, _ in maker.prompts.source(text).offsets]
    if not starts:
        return message
    starts = [0, *starts[1:], len(text)]
    parts = []
    at = 0
    for first, stop in regions(rng, len(starts) - 1):
        a, b = _word_start(text, starts[first]), _word_start(text, starts[stop])
        parts += [{"type": "text", "text": text[at:a]}, {"type": "memory", "text": text[a:b]}]
        at = b
    parts.append({"type": "text", "text": text[at:]})
    parts = [part for part in parts if part["text"]]
    covered = sum(len(part["text"]) for part in parts if part["type"] == "memory")
    if covered < MIN_COVERED * len(text):
        parts = [{"type": "memory", "text": text}]
    return {"role": message["role"], "content": parts}


def _word_start(text: str, at: int) -> int:
    """Move a cut back to the start of its word."""
    word = at
    while 0 < word < len(text) and not text[word].isspace() and not text[word - 1].isspace():
        word -= 1
    return word


def _beginning(
    maker: ExampleMaker, messages: tuple[Mapping[str, Any], ...], most: int
) -> list[Mapping[str, Any]]:
    """Return the first messages, up to an answer, that have at most `most` tokens together."""
    total, kept = 0, 0
    for i, message in enumerate(messages):
        total += num_tokens(maker.prompts, _text(message))
        if total > most:
            break
        if message["role"] == "assistant":
            kept = i + 1
    return list(messages[:kept])


def _text(message: Mapping[str, Any]) -> str:
    content = message["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _has_span(message: Mapping[str, Any]) -> bool:
    content = message["content"]
    return not isinstance(content, str) and any(part["type"] == "memory" for part in content)
