"""Cut stretches out of documents by tokens, and put sentences into them."""

import random
import re
from collections.abc import Sequence
from typing import NamedTuple

from octavo.prompt import PromptEncoder

_CHARS_BEFORE_END = 5
"""A stretch begins this many characters a token before the end of its document, or earlier:
English has four to five characters a token."""
_CHARS_A_TOKEN = 12
"""A window of this many characters a token holds enough tokens, but for padding-like text."""
_SENTENCE_END = re.compile(r"[.!?]['\"’”)\]]*\s+(?=\S)")


class Stretch(NamedTuple):
    """A stretch of a document, with the character at which each of its tokens starts."""

    text: str
    starts: list[int]
    """Characters; one more than there are tokens: the last is the end of the text."""

    @property
    def num_tokens(self) -> int:
        """How many of the encoder's tokens it has."""
        return len(self.starts) - 1

    def cut(self, lengths: Sequence[int]) -> list[str]:
        """Cut it into consecutive pieces of so many tokens each; the lengths make up the whole."""
        pieces, first = [], 0
        for length in lengths:
            pieces.append(self.text[self.starts[first] : self.starts[first + length]])
            first += length
        return pieces


def log_uniform(rng: random.Random, bounds: Sequence[int]) -> int:
    """Draw a length whose logarithm is uniform: short ones are cheap and teach as much."""
    low, high = bounds
    return min(high, int(low * ((high + 1) / low) ** rng.random()))


def num_tokens(prompts: PromptEncoder, text: str) -> int:
    """Return how many tokens the encoder reads for a text."""
    return len(prompts.source(text).ids)


def stretch(
    rng: random.Random, prompts: PromptEncoder, text: str, wanted: int, least: int
) -> Stretch | None:
    """Cut `wanted` tokens from a random place, beginning with a word; fewer in a short document.

    None when there are fewer than `least`.
    """
    first = rng.randrange(max(1, len(text) - _CHARS_BEFORE_END * wanted + 1))
    if first and (space := re.compile(r"\s+(?=\S)").search(text, first)):
        first = space.end()
    window = text[first : first + _CHARS_A_TOKEN * wanted]
    starts = [start for start, _ in prompts.source(window).offsets]
    if len(starts) <= wanted and first:  # the document ends too soon here, or its tokens are short
        window = text[: _CHARS_A_TOKEN * wanted]
        starts = [start for start, _ in prompts.source(window).offsets]
    if not least <= len(starts) or not starts:
        return None
    end = starts[wanted] if len(starts) > wanted else len(window)
    starts = [0, *starts[1:wanted]]  # white space before the first token belongs to it
    return Stretch(window[:end], [*starts, end])


def whole_words(piece: str) -> str:
    """Drop the word that a cut by tokens may have broken at the end, if others remain."""
    shorter = re.sub(r"\s+\S*$", "", piece)
    return shorter if len(shorter) * 2 > len(piece) else piece


def passage(
    rng: random.Random, prompts: PromptEncoder, text: str, bounds: Sequence[int]
) -> str | None:
    """Cut whole words of a length within `bounds`; None when the document is too short."""
    found = stretch(rng, prompts, text, log_uniform(rng, bounds), bounds[0])
    return found and (whole_words(found.text).strip() or None)


def hide(
    rng: random.Random,
    prompts: PromptEncoder,
    text: str,
    sentences: Sequence[str],
    bounds: Sequence[int],
    *,
    in_order: bool,
) -> str | None:
    """Put sentences into a passage of a document, together of a length within `bounds`.

    None when the document is too short, or the sentences are too long.
    """
    taken = num_tokens(prompts, " ".join(sentences)) + len(sentences)  # cut words cost a little
    low, high = (max(1, bound - taken) for bound in bounds)
    haystack = passage(rng, prompts, text, (low, high))
    whole = haystack and insert(rng, haystack, sentences, in_order=in_order)
    return whole if whole and num_tokens(prompts, whole) <= bounds[1] else None


def insert(rng: random.Random, haystack: str, sentences: Sequence[str], *, in_order: bool) -> str:
    """Put sentences between those of a text or at its ends; several at one place if need be."""
    places = [0, *(m.end() for m in _SENTENCE_END.finditer(haystack)), len(haystack)]
    places *= -(-len(sentences) // len(places))
    chosen = sorted(rng.sample(places, len(sentences)))
    ordered = list(sentences)
    if not in_order:
        rng.shuffle(ordered)
    for place, sentence in reversed(list(zip(chosen, ordered, strict=True))):
        before, after = haystack[:place], haystack[place:]
        gap = " " if before and not before[-1].isspace() else ""
        tail = " " if after and not after[0].isspace() else ""
        haystack = f"{before}{gap}{sentence}{tail}{after}"
    return haystack
