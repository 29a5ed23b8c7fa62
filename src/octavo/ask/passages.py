"""Cut a text into passages of a few sentences or lines, losing nothing and joining nothing anew.

text  --marks of structure-->  places to cut, each with a strength  --greedy-->  passages

Passages tile the text: each begins where the one before ends, so `text[p.start:p.end]` of all of
them is the text. They end behind a sentence or a line wherever one ends in time.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, TypeVar

import regex

from octavo.ask.headings import Heading, find_headings

Kind = Literal["prose", "markdown", "code"]
MAX_TOKENS = 64
"""Of a passage. Of 32, 64, 128, 256 and 512, 32 and 64 found the most within a budget of tokens."""

BUDGET = 256
"""Tokens of passages that a model reads: about four hold the answer of nine questions in ten."""
LEAST_ROOM = 8
"""Tokens that hold no passage worth reading."""

# About what a tokenizer makes of a text: a word of the language is one token, a long one several.
_TOKENISH = regex.compile(
    r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
    r"|\p{L}\p{M}*(?:[\p{L}\p{M}]){0,7}|\p{N}|\n+|[^\s\p{L}\p{N}]"
)
_SENTENCE_END = regex.compile(
    # Possessive, and only from the first of several stops: nothing is tried twice.
    r"""(?:(?<![.!?…])[.!?…]++["'”’»)\]]*+(?=\s)|[。！？．｡]+["'”’»」』）)\]]*)"""
    r"[^\S\n]*(?:\n(?!\s*\n))?[^\S\n]*"
)
_ABBREVIATION = regex.compile(
    r"(?:^|[\s(\[\"'“‘])(?:\p{Lu}|(?:Mr|Mrs|Ms|Dr|Prof|Rev|Gen|Col|Capt|Lt|Sgt|St|Mt|Jr|Sr|vs|cf"
    r"|etc|No|Nos|Fig|Figs|Eq|Sec|Vol|pp?|ed|eds|al|e\.g|i\.e|a\.m|p\.m|U\.S|bzw|z\.B|M|Mme))\.$"
)
_PARAGRAPH_END = regex.compile(r"\n[^\S\n]*(?:\n\s*)+|\n+(?=$)")
_LINE_END = regex.compile(r"\n+")
_CLAUSE_END = regex.compile(r"(?:[,;:–—]|--)[\"'”’)]*\s+$")
_GAP = regex.compile(r"\s+")
_GRAPHEME = regex.compile(r"\X")
_LONGEST_GRAPHEME = 64
"""Characters; what claims to be one character and is longer may be cut within."""

# How willingly a passage ends at a place.
_SPACE, _LINE, _SENTENCE, _PARAGRAPH, _HEADING = range(5)


Key = TypeVar("Key")


def fill(sizes: Iterable[tuple[Key, int]], budget: int) -> Iterator[Key]:
    """Yield what fits a budget of tokens, best first: what is too large does not end it.

    `sizes` are keys with their tokens, the best first; they are looked at as long as there is room.
    """
    for key, size in sizes:
        if size <= budget:
            budget -= size
            yield key
        if budget < LEAST_ROOM:
            return


@dataclass(frozen=True, kw_only=True, slots=True)
class Passage:
    """A piece of a text, by its place."""

    index: int
    """Its number among the passages of the text."""
    start: int
    end: int
    """The characters `[start, end)` of the text."""
    line: int
    """Where its first word stands, counted from 1."""
    heading: str | None
    """The headings (of code: the definitions) it stands under, `Chapter > Section`."""


def cut_passages(text: str, *, max_tokens: int = MAX_TOKENS, kind: Kind = "prose") -> list[Passage]:
    """Cut a text into passages of about `max_tokens` tokens at most.

    Tokens are estimated, so that one index serves every model. Linear in the length of the text.
    """
    headings = find_headings(text, kind)
    starts = [0, *_cuts(text, max_tokens, kind, headings)] if text else []
    passages: list[Passage] = []
    line, counted, above = 1, 0, 0
    for index, (start, end) in enumerate(pairwise([*starts, len(text)])):
        first_word = _GAP.match(text, start, end)
        at = first_word.end() if first_word and first_word.end() < end else start
        line, counted = line + text.count("\n", counted, at), at
        while above < len(headings) and headings[above].start < max(at + 1, start + 1):
            above += 1
        heading = headings[above - 1].path if above else None
        passages.append(Passage(index=index, start=start, end=end, line=line, heading=heading))
    return passages


def num_tokens(text: str) -> int:
    """Return about how many tokens a text has."""
    return sum(1 for _ in _TOKENISH.finditer(text))


def _cuts(text: str, max_tokens: int, kind: Kind, headings: list[Heading]) -> Iterator[int]:
    """Yield where passages end, but for the last."""
    places = _places(text, kind, headings)
    size = start = 0
    for (begin, _), (end, strength) in pairwise([(0, _SPACE), *places]):
        count = num_tokens(text[begin:end])
        if size and size + count > max_tokens:
            yield begin
            start, size = begin, 0
        if count > max_tokens:
            for cut in _cuts_within(text, begin, end, max_tokens):
                yield cut
                start = cut
            count = num_tokens(text[start:end])
        size += count
        is_full = strength == _PARAGRAPH and size >= max_tokens // 2
        if size and end < len(text) and (strength == _HEADING or is_full):
            yield end
            start, size = end, 0


def _places(text: str, kind: Kind, headings: list[Heading]) -> list[tuple[int, int]]:
    """Return where a passage may end and how willingly, in order, the end of the text last."""
    found: dict[int, int] = {len(text): _PARAGRAPH}

    def add(at: int, strength: int) -> None:
        if 0 < at < len(text):
            found[at] = max(strength, found.get(at, strength))

    for match in _PARAGRAPH_END.finditer(text):
        # Blank lines go with what stands before them, the indentation of a line with the line.
        add(text.rfind("\n", match.start(), match.end()) + 1, _PARAGRAPH)
    if kind != "prose":
        for match in _LINE_END.finditer(text):
            add(match.end(), _LINE)
    if kind != "code":
        for match in _SENTENCE_END.finditer(text):
            if _is_sentence_end(text, match.start(), match.end()):
                add(match.end(), _SENTENCE)
    for heading in headings:
        add(heading.start, _HEADING if kind != "code" else _PARAGRAPH)
    return sorted(found.items())


def _is_sentence_end(text: str, start: int, end: int) -> bool:
    """Tell the end of a sentence from an abbreviation."""
    if text[start] != ".":
        return True
    if end < len(text) and text[end].islower():
        return False
    return not _ABBREVIATION.search(text[max(0, start - 8) : start + 1])


def _cuts_within(text: str, start: int, end: int, max_tokens: int) -> Iterator[int]:
    """Yield where to cut what is too long and has no sentence in it: between words, or anywhere."""
    size, gap, clause = 0, start, start
    for token in _TOKENISH.finditer(text, start, end):
        at = token.start()
        if at > start and text[at - 1].isspace():
            gap = at
            if size >= max_tokens // 2 and _CLAUSE_END.search(text, max(start, at - 4), at):
                clause = at
        if size >= max_tokens:
            cut = next((one for one in (clause, gap) if one > start), 0)
            yield (start := cut or _between_graphemes(text, start, at))
            size = num_tokens(text[start:at])
        size += 1


def _between_graphemes(text: str, start: int, at: int) -> int:
    """Return the last place up to `at` that lies between what people see as two characters."""
    begin = max(start, at - _LONGEST_GRAPHEME)
    last = begin
    for one in _GRAPHEME.finditer(text, begin, min(len(text), at + _LONGEST_GRAPHEME)):
        if one.start() > at:
            break
        last = one.start()
    return last if last > start else at
