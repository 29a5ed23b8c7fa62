"""A compressed text and a request to write it out again; the copy is scored.

The paper trains on such texts throughout, under 100 prompt templates per source (arXiv 2606.09659,
Tables 2 and 3); the templates below are our own. Two thirds are plain texts, with words after the
span or around it; one third are chats, in which the end of the turn is scored too.
"""

import random
from typing import Any

from octavo.data.builders.text import passage
from octavo.data.builders.words import PHRASES
from octavo.data.examples import Example, ExampleMaker, Part
from octavo.data.sources import Library
from octavo.recipe import MixtureSection

SAY = PHRASES["reconstruction"]
CHATS = 1 / 3
REQUEST_FIRST = 0.25
"""How often a chat's request stands before the span."""


def build(
    rng: random.Random, library: Library, maker: ExampleMaker, mixture: MixtureSection
) -> Example | None:
    """Compress a passage of `copy_tokens`, and ask for it back."""
    document = library.prose(rng)
    text = passage(rng, maker.prompts, document.text, mixture.copy_tokens)
    if not text:
        return None
    if rng.random() < CHATS:
        request = rng.choice(SAY["requests"])
        span = {"type": "memory", "text": text}
        content = [span, {"type": "text", "text": f"\n\n{request}"}]
        if rng.random() < REQUEST_FIRST:
            content = [{"type": "text", "text": f"{request}\n\n"}, span]
        messages: list[dict[str, Any]] = [
            {"role": "user", "content": content},
            {"role": "assistant", "content": text},
        ]
        return maker.from_chat("reconstruction", messages, document.origin)
    before, after = rng.choice(SAY["plain"])
    parts: list[Part] = [("span", text), ("given", after), ("scored", text)]
    if before:
        parts.insert(0, ("given", before))
    return maker.from_parts("reconstruction", parts, document.origin)
