"""Look for the passages that answer a question in many texts at once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from octavo.ask.index import PassageIndex, search_all
from octavo.ask.passages import Passage
from octavo.ask.terms import find_marks


@dataclass(frozen=True, kw_only=True, slots=True)
class TextSource:
    """A text that is searched by its index, and read only where something is found."""

    title: str
    """What people call it: a file, or a name."""
    index: PassageIndex
    read: Callable[[], str]


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundPassage:
    """A passage that a question found, with its place."""

    source: int
    """Which of the sources, from 0."""
    title: str
    """Of its source."""
    passage: Passage
    score: float
    text: str
    marks: tuple[tuple[int, int], ...]
    """Where words of the question stand in `text`."""


def find_passages(question: str, sources: Sequence[TextSource], k: int) -> list[FoundPassage]:
    """Return the `k` passages of all sources that promise most, or fewer: the best first."""
    found = []
    texts: dict[int, str] = {}
    for which, hit in search_all([source.index for source in sources], question, k):
        if which not in texts:
            texts[which] = sources[which].read()
        text = texts[which][hit.passage.start : hit.passage.end]
        found.append(
            FoundPassage(
                source=which,
                title=sources[which].title,
                passage=hit.passage,
                score=hit.score,
                text=text,
                marks=tuple(find_marks(text, question)),
            )
        )
    return found


def join_passages(chosen: Mapping[tuple[int, int], str]) -> str:
    """Join passages by `(text, passage)` as they stand in their texts, gaps as empty lines."""
    joined, before = "", None
    for which, index in sorted(chosen):
        is_next = before is None or before == (which, index - 1)
        joined += chosen[which, index] if is_next else "\n\n" + chosen[which, index]
        before = which, index
    return joined.strip()
