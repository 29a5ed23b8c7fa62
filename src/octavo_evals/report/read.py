"""Read the rows of evaluations into one checked table: what clashes is refused, not averaged.

A row's key is (task, length, id, method, ratio) within its (model, fingerprint). A key may come
again only with exactly the same content, and then counts once.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from octavo.errors import EvaluationError

NUMBER = (int, float)
_REQUIRED: dict[str, tuple[type, ...]] = {
    "task": (str,), "id": (str,), "method": (str,), "metrics": (dict,), "seed": (int,),
    "model": (str,),
}  # fmt: skip
_OPTIONAL: dict[str, tuple[type, ...]] = {
    "length": (int,), "ratio": NUMBER, "score": NUMBER, "skipped": (str,), "answer": (str,),
    "fingerprint": (str,), "metric": (str,), "device": (str,), "dtype": (str,), "machine": (str,),
    "versions": (dict,), "is_reused": (bool,), "is_masked": (bool,), "prompt_tokens": (int,),
    "new_tokens": (int,), "compress_seconds": NUMBER, "ttft_seconds": NUMBER,
    "decode_seconds": NUMBER, "context_bytes": NUMBER, "cache_bytes": NUMBER, "peak_bytes": NUMBER,
}  # fmt: skip
_MARKS = ("task", "id", "method")
"""What tells a file of rows from other JSON lines in the folder."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One answer, as far as a report needs it."""

    task: str
    length: int | None
    id: str
    method: str
    ratio: float | None
    score: float | None
    """None where the row was skipped."""
    skipped: str | None
    metrics: Mapping[str, float]
    content: Mapping[str, Any]
    """The whole row."""
    run: str
    """The name of the folder it comes from: what was timed together."""

    @property
    def label(self) -> str:
        """The method with its ratio."""
        return self.method if self.ratio is None else f"{self.method}@{self.ratio:g}"

    @property
    def is_likelihood(self) -> bool:
        """Whether it says how likely a given text is, and holds no answer."""
        return "nats" in self.metrics

    def number(self, name: str) -> float | None:
        """Return a measurement, None if it was not taken."""
        value = self.content.get(name)
        return None if value is None else float(value)


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """Every row that counts, and what else a reader should know."""

    models: Mapping[tuple[str, str], Sequence[Row]]
    """Rows by model name and fingerprint, in an order that does not depend on the files'."""
    seed: int
    runs: Sequence[tuple[str, Mapping[str, Any]]]
    """Each folder's name with its `run.json`."""
    notes: Sequence[str]


@dataclass(slots=True)
class _Rows:
    """What was read so far."""

    rows: dict[tuple[Any, ...], tuple[Row, str]] = field(default_factory=dict)
    seeds: dict[int, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    num_doubled: int = 0

    def add(self, row: Row, place: str) -> None:
        content = row.content
        model = (content["model"], content.get("fingerprint") or "")
        key = (*model, row.task, row.length or 0, row.id, row.method, row.ratio or 0.0)
        known = self.rows.get(key)
        if known is not None and dict(known[0].content) != dict(content):
            raise EvaluationError(
                f"{known[1]} and {place} both hold {row.task} {row.id} by {row.label} of "
                f"{model[0]}, with different content; remove one, or report them apart"
            )
        if known is not None:
            self.num_doubled += 1
            return
        self.rows[key] = (row, place)
        self.seeds.setdefault(content["seed"], place)
        if len(self.seeds) > 1:
            told = " and ".join(f"{seed} ({where})" for seed, where in self.seeds.items())
            raise EvaluationError(f"rows of different seeds: {told}; report one seed at a time")


def read(folders: Sequence[Path]) -> Reading:
    """Read every file of rows in the folders.

    An unfinished last line, as a killed writer leaves it, is left out and noted. Raises
    `EvaluationError` for a missing folder, one without rows, a damaged line, a row that is
    incomplete, clashing rows, and rows of different seeds.
    """
    if not folders:
        raise EvaluationError("no folder of rows was given; name one that `octavo eval` wrote")
    found = _Rows()
    runs: list[tuple[str, Mapping[str, Any]]] = []
    for folder in dict.fromkeys(one.expanduser().resolve() for one in folders):
        runs.append(_read_folder(folder, found))
    if found.num_doubled:
        found.notes.append(f"{found.num_doubled} rows came twice, exactly alike: counted once.")
    models: dict[tuple[str, str], list[Row]] = {}
    for key in sorted(found.rows):
        models.setdefault((key[0], key[1]), []).append(found.rows[key][0])
    return Reading(models=models, seed=next(iter(found.seeds)), runs=runs, notes=found.notes)


def _read_folder(folder: Path, found: _Rows) -> tuple[str, Mapping[str, Any]]:
    if not folder.is_dir():
        raise EvaluationError(f"no folder {folder}; name one that `octavo eval` wrote")
    num_before = len(found.rows) + found.num_doubled
    files = sorted(p for p in folder.glob("*.jsonl") if p.is_file() and p.name[0] != ".")
    for file in files:
        for number, content in _read_lines(file, found.notes):
            place = f"{file.parent.name}/{file.name}:{number}"
            found.add(_check(content, place, folder.name), place)
    if len(found.rows) + found.num_doubled == num_before:
        there = f"has no rows in {', '.join(p.name for p in files)}" if files else "has no .jsonl"
        raise EvaluationError(f"{folder} {there}; name a folder that `octavo eval` wrote")
    settings = folder / "run.json"
    if not settings.is_file():
        return folder.name, {}
    try:
        told = json.loads(settings.read_text(encoding="utf-8"))
    except ValueError as error:
        raise EvaluationError(
            f"{settings} is not JSON ({error}); mend it or move it away"
        ) from error
    return folder.name, told if isinstance(told, dict) else {"run": told}


def _read_lines(file: Path, notes: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of a file with their line numbers; nothing of a file of other things."""
    name = f"{file.parent.name}/{file.name}"
    try:
        lines = file.read_bytes().split(b"\n")
    except OSError as error:
        raise EvaluationError(f"cannot read {file}: {error.strerror}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            content = json.loads(line)
        except ValueError as error:
            if number == len(lines):  # no line feed after it
                notes.append(f"{name}: the unfinished last line was left out.")
                return
            raise EvaluationError(
                f"{name}:{number} is damaged ({error}); remove the line and evaluate again, "
                "which makes up for it"
            ) from error
        if number == 1 and not (isinstance(content, dict) and all(m in content for m in _MARKS)):
            if file.name != "rows.jsonl":
                notes.append(f"{name} holds no rows and was not read.")
                return
        if not isinstance(content, dict):
            raise EvaluationError(f"{name}:{number} is no JSON object; a row is one")
        yield number, content


def _check(content: dict[str, Any], place: str, run: str) -> Row:
    """Return the row, or say what is wrong with it."""
    for name, kinds in (_REQUIRED | _OPTIONAL).items():
        value = content.get(name)
        if value is None and name in _OPTIONAL:
            continue
        is_odd_bool = isinstance(value, bool) and bool not in kinds
        if is_odd_bool or not isinstance(value, kinds) or value != value:
            wanted = " or ".join(kind.__name__ for kind in kinds)
            raise EvaluationError(
                f"{place}: {name} is {value!r}, not {wanted}; this is no whole row"
            )
    score, skipped = content.get("score"), content.get("skipped")
    if (score is None) == (skipped is None):
        raise EvaluationError(f"{place}: a row has either a score or a reason why it was skipped")
    if score is not None and not 0 <= score <= 1:
        raise EvaluationError(f"{place}: the score is {score}; scores go from 0 to 1")
    metrics = {
        name: float(value)
        for name, value in content["metrics"].items()
        if isinstance(value, NUMBER) and math.isfinite(value)
    }
    return Row(
        task=content["task"],
        length=content.get("length"),
        id=content["id"],
        method=content["method"],
        ratio=None if content.get("ratio") is None else float(content["ratio"]),
        score=None if score is None else float(score),
        skipped=skipped,
        metrics=metrics,
        content=content,
        run=run,
    )
