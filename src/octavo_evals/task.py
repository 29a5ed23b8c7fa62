"""What a task is: a maker of items, each with its context apart from the question, and a scorer.

    {before}{context}{after}   ->  the user's turn; `context` alone is what methods compress
    {prefix}                   ->  the beginning of the assistant's turn, put into its mouth

A task is one short file in `tasks/`, and one line in its table; `docs/evaluation.md` shows how.
"""

import difflib
import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from octavo.errors import EvaluationError
from octavo.records import read_dataset, stream_hub

Metrics = Mapping[str, float]


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """What a method said about an item, as scorers see it."""

    text: str = ""
    """The continuation of the item's prefix."""
    token_nats: tuple[float, ...] = ()
    """Of each token of the target: its loss, in nats."""
    token_hits: tuple[bool, ...] = ()
    """Of each token of the target: whether it was the likeliest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What items are wanted."""

    length: int | None = None
    """Tokens of the whole prompt, answer included, counted with the tested tokenizer; generators
    fit their items to it, and tasks with contexts of their own get None."""
    limit: int | None = None
    """At most so many; None for all that there are (500 for a generator, as RULER has them)."""
    seed: int = 42
    count_tokens: Callable[[str], int]
    """The tested decoder's tokens of a text."""
    max_prompt_tokens: int
    """Positions that the decoder has, for tasks whose own rules cut contexts to fit."""
    data: "DataFiles"


class Task(Protocol):
    """One task. Its class takes no arguments but those bound in the table."""

    name: str
    """Like `ruler/niah_single_1`."""
    has_length: bool
    """Whether items are made to a length, which must then be given."""
    metric: str
    """What `score` is, in a word or two: `match`, `F1`, `accuracy`."""

    def items(self, request: Request) -> Iterator[Item]:
        """Yield items, the same ones for the same request, in an order that `limit` only cuts."""
        ...

    def score(self, item: Item, reply: Reply) -> Metrics:
        """Return `{"score": 0 to 1, …}`; other numbers are shown beside it."""
        ...


TASKS: dict[str, str] = {}
"""Name -> "module:factory(argument)"; filled below. Importing a task imports its libraries."""

GROUPS: dict[str, tuple[str, ...]] = {}
"""Name -> the tasks it stands for."""


def _fill_table() -> None:
    ruler = {
        "needles": (
            "niah_single_1", "niah_single_2", "niah_single_3", "niah_multikey_1",
            "niah_multikey_2", "niah_multikey_3", "niah_multivalue", "niah_multiquery",
        ),
        "variables": ("vt",),
        "words": ("cwe", "fwe"),
        "documents": ("qa_1", "qa_2"),
    }  # fmt: skip
    for module, names in ruler.items():
        TASKS.update({f"ruler/{n}": f"octavo_evals.tasks.ruler_{module}:{n}" for n in names})
    longbench = (
        "narrativeqa", "qasper", "multifieldqa_en", "multifieldqa_zh", "hotpotqa", "2wikimqa",
        "musique", "dureader", "gov_report", "qmsum", "multi_news", "vcsum", "trec", "triviaqa",
        "samsum", "lsht", "passage_count", "passage_retrieval_en", "passage_retrieval_zh", "lcc",
        "repobench-p",
    )  # fmt: skip
    TASKS.update({f"longbench/{n}": f"octavo_evals.tasks.longbench:{n}" for n in longbench})
    TASKS["longbench2"] = "octavo_evals.tasks.longbench2:longbench2"
    TASKS["longhealth"] = "octavo_evals.tasks.longhealth:longhealth"
    TASKS["longhealth5"] = "octavo_evals.tasks.longhealth:longhealth5"
    TASKS["gsm8k/whole"] = "octavo_evals.tasks.gsm8k:whole"
    TASKS["gsm8k/shots"] = "octavo_evals.tasks.gsm8k:shots"
    TASKS["squad"] = "octavo_evals.tasks.questions:squad"
    TASKS["key_value"] = "octavo_evals.tasks.questions:key_value"
    TASKS["lclm_eval"] = "octavo_evals.tasks.lclm_eval:lclm_eval"
    TASKS["reconstruction"] = "octavo_evals.tasks.likelihood:reconstruction"
    TASKS["perplexity"] = "octavo_evals.tasks.likelihood:perplexity"
    for group in ("ruler", "longbench", "gsm8k"):
        GROUPS[group] = tuple(name for name in TASKS if name.startswith(f"{group}/"))
    # The eleven that need no data.
    GROUPS["ruler-offline"] = tuple(name for name in GROUPS["ruler"] if "/qa_" not in name)


_fill_table()


def find_tasks(names: Sequence[str]) -> list[Task]:
    """Return the named tasks, groups unfolded, each once and in the order asked for.

    Raises `EvaluationError` for an unknown name, with the nearest known ones.
    """
    wanted: dict[str, Task] = {}
    for name in names:
        if name not in TASKS and name not in GROUPS:
            known = [*GROUPS, *TASKS]
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
            raise EvaluationError(f"unknown task {name!r}; {hint}")
        for one in GROUPS.get(name, (name,)):
            if one not in wanted:
                module, factory = TASKS[one].split(":")
                wanted[one] = importlib.import_module(module).TASKS[factory]()
    return list(wanted.values())


class DataFiles:
    """Where tasks find their data: what the user named, and nothing else; nothing is fetched."""

    def __init__(self, given: Iterable[str] = ()) -> None:
        """Take `NAME=PATH` or `NAME=hf:DATASET[:CONFIG]:SPLIT` each.

        Raises `EvaluationError` for another form and for a path that is not there.
        """
        self._places: dict[str, str] = {}
        for one in given:
            name, equals, place = one.partition("=")
            if not equals or not name or not place:
                raise EvaluationError(f"--data {one!r} is not NAME=PATH, as in squad=dev.jsonl")
            if not place.startswith("hf:") and not Path(place).expanduser().exists():
                raise EvaluationError(f"--data {one}: there is nothing at {place}; mend the path")
            self._places[name] = place

    @property
    def places(self) -> Mapping[str, str]:
        """Every name with its place."""
        return dict(self._places)

    def has(self, name: str) -> bool:
        """Return whether a place was given."""
        return name in self._places

    def records(self, name: str, what: str) -> Iterator[Any]:
        """Yield the records of a named place: a file, every file of a folder, or a hub dataset.

        A `.txt` file is one record, `{"text": …}`. `what` says what the task expects there, for
        the error when no place was given.
        """
        if name not in self._places:
            raise EvaluationError(
                f"a task needs data: give --data {name}=PATH ({what}), or name other tasks"
            )
        place = self._places[name]
        if place.startswith("hf:"):
            yield from stream_hub(place)
            return
        path = Path(place).expanduser()
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        for file in files:
            if file.suffix == ".txt":
                yield {"text": file.read_text(encoding="utf-8-sig")}
            else:
                yield from read_dataset(file)
