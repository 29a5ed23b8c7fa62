"""The terms by which passages are found: words, their parts and their stems, in any script.

A term never depends on what stands around its word, so that a question and a text that use the same
word have the same term, and a word of the question can be marked where it stands in the text.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unicodedata import normalize

import regex

TERMS_VERSION = 1
"""Indexes made of other terms are made anew; raise it with every change to what terms are."""
_MAX_WORD = 64
"""Longer runs without a space are data rather than words; they are found by their first part."""

_BIGRAMS = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}ー"
_TRIGRAMS = r"\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_CJK = regex.compile(f"[{_BIGRAMS}]")
_WORD = regex.compile(
    # Scripts without spaces between words; numbers with their marks; names like C++ and C#; words.
    rf"[{_BIGRAMS}]+|[{_TRIGRAMS}]+|\p{{N}}+(?:[.,:]\p{{N}}+)+(?![\p{{L}}_])"
    rf"|(?:(?![{_BIGRAMS}{_TRIGRAMS}])[\p{{L}}\p{{N}}\p{{M}}_]"
    rf"|(?<=\p{{L}})['’](?=\p{{L}}))+(?:\+\+|\#)?(?![\p{{L}}\p{{N}}])?"
)
_PART = regex.compile(r"\p{Lu}+(?!\p{Ll})|\p{Lu}?[\p{Ll}\p{Lo}\p{Lt}\p{Lm}\p{M}'’]+|\p{N}+|\p{L}")
_STOPWORDS = frozenset(
    "a about an and any are as at be been but by can could did do does for from had has "
    "have he her him his how i if in into is it its me my of on or our she should so some "
    "than that the their them then there these they this those to us was we were what when "
    "where which who whom whose why will with would you your".split()
)
"""English words that a question is made of rather than about."""


@dataclass(frozen=True, slots=True)
class Word:
    """A word where it stands in a text, with the terms it is found by."""

    start: int
    end: int
    terms: tuple[str, ...]


def find_words(text: str) -> Iterator[Word]:
    """Yield the words of a text in order; every two characters are one in scripts without spaces.

    Linear in the length of the text: about a second per two megabytes.
    """
    for match in _WORD.finditer(text):
        start, end = match.span()
        first = text[start]
        if _CJK.match(first):
            yield from _runs(text, start, end, 2)
        elif regex.match(f"[{_TRIGRAMS}]", first):
            yield from _runs(text, start, end, 3)
        else:
            yield Word(start, end, terms_of_word(match[0]))


def _runs(text: str, start: int, end: int, length: int) -> Iterator[Word]:
    for at in range(start, max(start + 1, end - length + 1)):
        run = text[at : min(at + length, end)]
        yield Word(at, at + len(run), (normalize("NFKC", run),))


@functools.lru_cache(maxsize=1 << 16)
def terms_of_word(word: str) -> tuple[str, ...]:
    """Return the stem of a word, and those of its parts where it is a name like `readFile_v2`."""
    # Compatible forms are one: ligatures, full width, half a surrogate pair as the sign for it.
    whole = normalize("NFKC", word[:_MAX_WORD].encode("utf-8", "replace").decode("utf-8"))
    whole = whole.replace("’", "'").strip("'_")
    parts = _PART.findall(whole)
    found = [_stem(whole.casefold())]
    if parts != [whole]:
        found += [_stem(part.casefold().strip("'")) for part in parts]
    return tuple(dict.fromkeys(term for term in found if term))


def _stem(word: str) -> str:
    stem: str = _stemmer().stemWord(word)
    return stem


@functools.cache
def _stemmer() -> Any:
    import Stemmer

    return Stemmer.Stemmer("english")


def terms_of(text: str) -> list[str]:
    """Return the terms of a text, in order and as often as they occur."""
    return [term for word in find_words(text) for term in word.terms]


def terms_of_question(question: str) -> list[str]:
    """Return the different terms of a question, without the words that every question is made of.

    They stay where there are no others.
    """
    words = list(find_words(question))
    telling = [one for one in words if question[one.start : one.end].casefold() not in _STOPWORDS]
    return list(dict.fromkeys(term for word in telling or words for term in word.terms))


def find_marks(text: str, question: str) -> list[tuple[int, int]]:
    """Return where words of the question stand in a text, as runs of characters that do not meet.

    A word is one if any of its terms is the question's.
    """
    wanted = set(terms_of_question(question))
    marks: list[tuple[int, int]] = []
    for word in find_words(text):
        if wanted.isdisjoint(word.terms):
            continue
        if marks and word.start <= marks[-1][1]:  # runs of two characters overlap
            marks[-1] = (marks[-1][0], max(word.end, marks[-1][1]))
        else:
            marks.append((word.start, word.end))
    return marks
