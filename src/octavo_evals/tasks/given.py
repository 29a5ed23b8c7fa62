"""What tasks over given records share: checked fields, and contexts cut from the middle to fit."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from octavo.errors import EvaluationError
from octavo_evals.task import Request

TEMPLATE_TOKENS = 64
"""Room left for the chat template around a prompt that is cut to fit."""


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a data file, and how to complain about it."""

    index: int
    fields: Mapping[str, Any]
    name: str
    """Of the data, as `--data` gives it."""
    expected: str
    """What a record looks like, for errors."""

    @property
    def id(self) -> str:
        """Its place in the file: the id of the item made of it."""
        return f"{self.index:04d}"

    def text(self, key: str) -> str:
        """Return a field that must be a text."""
        value = self.fields.get(key)
        if not isinstance(value, str):
            raise self.refuse(f"has no text {key!r}")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """Return a field that must be one or more texts."""
        value = self.fields.get(key)
        if isinstance(value, str):
            return (value,)
        if not isinstance(value, list) or not value or not all(isinstance(v, str) for v in value):
            raise self.refuse(f"has no texts {key!r}")
        return tuple(value)

    def refuse(self, problem: str) -> EvaluationError:
        """Return the error that says what is wrong with this record."""
        return EvaluationError(
            f"record {self.index + 1} of --data {self.name} {problem}; expected {self.expected}"
        )


def check(raw: Iterable[Any], name: str, expected: str) -> Iterator[Record]:
    """Yield the records of a data file in order.

    Raises `EvaluationError` for one that is no object, and where there is none at all.
    """
    index = -1
    for index, fields in enumerate(raw):
        record = Record(index, fields if isinstance(fields, Mapping) else {}, name, expected)
        if not isinstance(fields, Mapping):
            raise record.refuse("is no object")
        yield record
    if index < 0:
        raise EvaluationError(f"--data {name} holds no record; expected {expected}")


def read(request: Request, name: str, expected: str) -> Iterator[Record]:
    """Yield the records that the user named."""
    return check(request.data.records(name, expected), name, expected)


def fit_context(
    request: Request, before: str, context: str, after: str, max_new_tokens: int
) -> tuple[str, int]:
    """Cut a context so that the prompt, its template and the answer fit the decoder.

    Returns what is left of it and how many tokens were dropped. LongBench cuts the middle out of
    the whole prompt; here only the context loses its middle, so that instructions and question
    stay whole and every method reads the same ones. Nothing of the context is left where they
    fill the decoder on their own.
    """
    count = request.count_tokens
    total = count(context)
    around = count(before) + count(after) + max_new_tokens + TEMPLATE_TOKENS
    room = request.max_prompt_tokens - around
    if total <= room:
        return context, 0
    kept = cut_middle(context, room, count)
    return kept, total - count(kept)


def cut_middle(text: str, room: int, count: Callable[[str], int]) -> str:
    """Return the longest beginning and end of a text that are `room` tokens together."""
    total = count(text)
    if total <= room:
        return text
    allowed = room
    while allowed > 0:
        guess = len(text) * allowed // (2 * total)
        head = _longest(lambda n: count(text[:n]), allowed - allowed // 2, guess, len(text))
        tail = _longest(lambda n: count(text[-n:]), allowed // 2, guess, len(text))
        kept = text[:head] + text[len(text) - tail :]
        over = count(kept) - room  # where the ends meet, letters may need other tokens
        if over <= 0:
            return kept
        allowed -= over
    return ""


def _longest(tokens: Callable[[int], int], most: int, guess: int, end: int) -> int:
    """Return how many letters are `most` tokens, looking near the guess first.

    `tokens` counts those of so many letters, which takes a while; all `end` letters are too many.
    """
    low, high, step = 0, end, 32
    probe = min(max(guess, 1), end - 1)
    while low < probe < high:
        if tokens(probe) <= most:
            low, probe = probe, probe + step
        else:
            high, probe = probe, probe - step
        step *= 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if tokens(middle) <= most else (low, middle)
    return low
