"""Spread a budget of latents over texts: more where a text is dense, fewer where it repeats itself.

Density is measured in bits a token: the bytes that DEFLATE needs for a stretch when the 32 kB
before it are its dictionary (RFC 1951's whole window), times eight, over its source tokens.
Boilerplate and what was said before cost little, figures, names and new words much. It takes
milliseconds, needs no model, and knows nothing of meaning: a rare word is dense, whether it matters
or not.

A latent at ratio R then carries `density x R` bits. The budget is spent by easing, step by step,
the stretch whose latents carry most, until nothing more fits: latents end up about equally full.
"""

import heapq
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from octavo.errors import ContextError, InputError

if TYPE_CHECKING:
    from octavo.prompt import PromptEncoder

STRETCH_TOKENS = 256
"""A stretch has one ratio; a window of the encoder holds several of the same ratio."""
_DICTIONARY_BYTES = 32_768


@dataclass(frozen=True, kw_only=True, slots=True)
class DenseStretch:
    """A part of a text with a density of its own."""

    start: int
    """Characters `[start, stop)` of the text."""
    stop: int
    num_tokens: int
    density: float
    """Bits a token."""


def measure(
    text: str, prompts: "PromptEncoder", *, tokens: int = STRETCH_TOKENS
) -> list[DenseStretch]:
    """Cut a text into stretches of so many source tokens and measure each; they cover all of it."""
    offsets = prompts.source(text).offsets
    if not offsets:
        raise InputError("the text is empty; there is nothing to measure")
    firsts = range(0, len(offsets), tokens)
    starts = [0, *(offsets[first][0] for first in firsts[1:])]
    stretches, before = [], b""
    for at, start in enumerate(starts):
        stop = starts[at + 1] if at + 1 < len(starts) else len(text)
        count = min(tokens, len(offsets) - firsts[at])
        data = text[start:stop].encode("utf-8")
        packer = zlib.compressobj(9, wbits=-15, zdict=before[-_DICTIONARY_BYTES:])
        bits = 8 * len(packer.compress(data) + packer.flush())
        stretches.append(
            DenseStretch(start=start, stop=stop, num_tokens=count, density=bits / count)
        )
        before = (before + data)[-_DICTIONARY_BYTES:]
    return stretches


def spread(
    texts: Sequence[str], prompts: "PromptEncoder", ratios: Sequence[int], budget: int
) -> list[list[tuple[str, int]]]:
    """Return each text as consecutive `(stretch, ratio)`, together at most `budget` latents.

    Neighbours of one ratio are one stretch. Raises `ContextError` for a budget that even the
    highest ratio does not keep to.
    """
    steps = sorted(ratios, reverse=True)
    found = [measure(text, prompts) for text in texts]
    flat = [(which, stretch) for which, one in enumerate(found) for stretch in one]
    levels = [0] * len(flat)

    def cost(at: int, level: int) -> int:
        return -(-flat[at][1].num_tokens // steps[level])

    spent = sum(cost(at, 0) for at in range(len(flat)))
    if spent > budget:
        raise ContextError(
            f"the texts make {spent:,} latents at ratio {steps[0]}, the highest of this model, but "
            f"the budget is {budget:,}; raise it, or give less text"
        )
    fullest = [(-stretch.density * steps[0], at) for at, (_, stretch) in enumerate(flat)]
    heapq.heapify(fullest)
    while fullest:
        _, at = heapq.heappop(fullest)
        level = levels[at] + 1
        if level == len(steps) or spent + cost(at, level) - cost(at, level - 1) > budget:
            continue
        spent += cost(at, level) - cost(at, level - 1)
        levels[at] = level
        heapq.heappush(fullest, (-flat[at][1].density * steps[level], at))
    parts: list[list[tuple[str, int]]] = [[] for _ in texts]
    for (which, stretch), level in zip(flat, levels, strict=True):
        piece, own = texts[which][stretch.start : stretch.stop], parts[which]
        if own and own[-1][1] == steps[level]:
            piece = own.pop()[0] + piece
        own.append((piece, steps[level]))
    return parts
