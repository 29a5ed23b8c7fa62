"""What a task is: a maker of items, each with its context apart from the question, and a scorer.

    {before}{context}{after}   ->  the user's turn; `context` alone is what methods compress
    {prefix}                   ->  the beginning of the assistant's turn, put into its mouth

A task is one short class in `tasks/`, and one line in its table; `docs/evaluation.md` shows how.
"""

import tomllib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any

from octavo.errors import EvaluationError
from octavo.records import read_dataset, stream_hub

Metrics = Mapping[str, float]


def read_asset(name: str) -> str:
    """Return the text of a file in `assets/`."""
    return resources.files("octavo_evals").joinpath("assets", name).read_text(encoding="utf-8")


@cache
def prompts() -> Mapping[str, Mapping[str, str]]:
    """Return every task's texts around a context, `before`, `after` and `prefix`, by its name."""
    return tomllib.loads(read_asset("prompts.toml"))


def fill(name: str, **fields: str) -> dict[str, Any]:
    """Return a task's texts around a context, with the fields that they name."""
    return {place: text.format(**fields) for place, text in prompts()[name].items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One question, the same for every method."""

    id: str
    """Unique within its task and length, and the same in every run: seeds and limits only decide
    which items there are."""
    before: str = ""
    context: str
    """What methods compress, shorten or drop."""
    after: str = ""
    prefix: str = ""
    """How the answer begins; methods continue it."""
    references: tuple[str, ...] = ()
    max_new_tokens: int = 128
    stop: tuple[str, ...] = ()
    """Strings that end the answer."""
    is_chat: bool = True
    """Whether the prompt is a user's turn; otherwise it is bare text to be continued."""
    target: str | None = None
    """If given, nothing is generated: methods say how likely each of its tokens is to follow."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """What the scorer needs besides, and facts worth a column; plain JSON values."""

    @property
    def text(self) -> str:
        """The whole prompt, without a chat template."""
        return self.before + self.context + self.after + self.prefix


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """What a method said about an item, as scorers see it."""

    text: str = ""
    """The continuation of the item's prefix."""
    token_nats: tuple[float, ...] = ()
    """Of each token of the target: its loss, in nats."""
    token_hits: tuple[bool, ...] = ()
    """Of each token of the target: whether it was the most likely."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What items are wanted."""

    length: int | None = None
    """Tokens of the whole prompt, answer included, counted with the tested tokenizer; only for
    tasks that make their items to a length."""
    limit: int | None = None
    """At most so many; None for all that there are (500 for a generator, as RULER has them)."""
    seed: int = 42
    count_tokens: Callable[[str], int]
    """The tested decoder's tokens of a text."""
    max_prompt_tokens: int
    """Positions that the decoder has, for tasks whose own rules cut contexts to fit."""
    data: "DataFiles"

    @property
    def room(self) -> int:
        """The length, for tasks that have one."""
        assert self.length is not None, "Task.items refuses a request without it"
        return self.length


class Task(ABC):
    """One task. Items that share a context stand together: they are asked about it in a row."""

    name: str
    """Like `ruler/niah_single_1`."""
    metric: str
    """What `score` is, in a word or two: `match`, `F1`, `accuracy`."""
    has_length = False
    """Whether items are made to a length, which must then be given."""

    def items(self, request: Request) -> Iterator[Item]:
        """Yield the wanted items; raises `EvaluationError` where a length is missing."""
        if self.has_length and request.length is None:
            raise EvaluationError(f"{self.name} makes items to a length; give --length 1024")
        return islice(self.make(request), request.limit)

    @abstractmethod
    def make(self, request: Request) -> Iterator[Item]:
        """Yield items one by one, the same for the same request whatever its limit."""

    @abstractmethod
    def score(self, item: Item, reply: Reply) -> Metrics:
        """Return `{"score": 0 to 1, …}`; other numbers are shown beside it."""


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a data file, with checked fields."""

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


class MissingData(EvaluationError):
    """A task reads data that nobody named."""


class DataFiles:
    """Where tasks find their data: what the user named, and nothing else; nothing is fetched."""

    def __init__(self, given: Iterable[str] = ()) -> None:
        """Take `NAME=PATH` or `NAME=hf:DATASET[:CONFIG]:SPLIT` each.

        Raises `EvaluationError` for another form and for a path that is not there.
        """
        self.places: dict[str, str] = {}
        for one in given:
            name, equals, place = one.partition("=")
            if not equals or not name or not place:
                raise EvaluationError(f"--data {one!r} is not NAME=PATH, as in squad=dev.jsonl")
            if not place.startswith("hf:") and not Path(place).expanduser().exists():
                raise EvaluationError(f"--data {one}: there is nothing at {place}; fix the path")
            self.places[name] = place

    def read(self, name: str, expected: str) -> Iterator[Record]:
        """Yield the records of a named place: a file, every file of a folder, or a hub dataset.

        `SET.PART` is also found where `SET` is: the folder's file PART, the dataset's config PART.
        A `.txt` file is one record, `{"text": …}`. `expected` says what a record looks like.
        Raises `EvaluationError` without a place or a record, and for one that is no object.
        """
        index = -1
        for index, fields in enumerate(self._raw(name, expected)):
            record = Record(index, fields if isinstance(fields, Mapping) else {}, name, expected)
            if not isinstance(fields, Mapping):
                raise record.refuse("is no object")
            yield record
        if index < 0:
            raise EvaluationError(f"--data {name} holds no record; expected {expected}")

    def _raw(self, name: str, expected: str) -> Iterator[Any]:
        whole, _, part = name.partition(".")
        if name in self.places:
            place, part = self.places[name], ""
        elif part and whole in self.places:
            place = self.places[whole]
        else:
            raise MissingData(
                f"a task needs data: give --data {name}=PATH ({expected}), or name other tasks"
            )
        if place.startswith("hf:"):
            dataset, _, split = place.rpartition(":")
            yield from stream_hub(f"{dataset}:{part}:{split}" if part else place)
            return
        path = Path(place).expanduser()
        found = sorted(p for p in path.rglob(f"{part}.*" if part else "*") if p.is_file())
        if part and not found:
            raise EvaluationError(
                f"--data {whole}={place} holds no {part}.jsonl; name the folder that does, or the "
                f"file itself with --data {name}=PATH"
            )
        for file in found if path.is_dir() else [path]:
            yield from read_dataset(file)
