"""A whole prompt compressed, and its answer scored: the paper's "SFT with compressed prompt".

Source: arXiv 2606.09659, Table 2. A row of the released code's format keeps the spans it came with:
a chat whose answer is the target, or one text with spans of which everything outside is scored.
"""

import random

from octavo.data.documents import CONTINUAL
from octavo.data.examples import Example, ExampleMaker, Part
from octavo.data.sources import Library
from octavo.recipe import MixtureSection


def build(
    rng: random.Random, library: Library, maker: ExampleMaker, mixture: MixtureSection
) -> Example | None:
    """Return one pair; None for a prompt that compresses more than `context_tokens` allows."""
    document = library.pairs(rng)
    prompt = list(document.messages) or [
        {"role": "user", "content": [{"type": "memory", "text": document.prompt}]}
    ]
    if document.target == CONTINUAL:
        parts: list[Part] = [
            ("span" if part["type"] == "memory" else "scored", part["text"])
            for part in prompt[0]["content"]
            if part["text"]
        ]
        example = maker.from_parts("pairs", parts, document.origin)
    else:
        answer = {"role": "assistant", "content": document.target}
        example = maker.from_chat("pairs", [*prompt, answer], document.origin, only_last=True)
    if example and sum(map(len, example.spans)) > mixture.context_tokens[1]:
        return None
    return example
