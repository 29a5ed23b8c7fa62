"""The passages that an answer rests on, and their places."""

from collections.abc import Sequence
from dataclasses import dataclass

from octavo.ask.index import PassageIndex, search_all
from octavo.ask.passages import cut_passages

NUM_CITED = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Citation:
    """A passage that the answer rests on, and its place."""

    context: int
    """Which of the contexts, from 0."""
    number: int
    """Of the part, as the model saw it; of the passage, where it saw none."""
    start: int
    """Characters `[start, end)` of the context's text."""
    end: int
    line: int
    heading: str | None
    text: str
    holds_answer: bool
    """Whether the words of the answer stand in it, whatever their case."""


def cite(texts: Sequence[str], question: str, answer: str) -> tuple[Citation, ...]:
    """Return the passages closest to a question and its answer, those that hold the answer first.

    An answer that none of them holds is not in the text in those words.
    """
    indexes = [PassageIndex.build(text, cut_passages(text)) for text in texts]
    found = []
    for which, hit in search_all(indexes, f"{question} {answer}", NUM_CITED):
        place = hit.passage
        text = texts[which][place.start : place.end]
        found.append(
            Citation(
                context=which, number=place.index, start=place.start, end=place.end,
                line=place.line, heading=place.heading, text=text,
                holds_answer=holds(text, answer),
            )
        )  # fmt: skip
    return tuple(sorted(found, key=lambda one: not one.holds_answer))


def holds(text: str, answer: str) -> bool:
    """Whether the words of an answer stand in a text, whatever their case and spaces."""
    words = " ".join(answer.casefold().split()).strip(" .\"'")
    return bool(words) and words in " ".join(text.casefold().split())
