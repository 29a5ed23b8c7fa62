"""Read the rows of evaluations into one checked table: what clashes is refused, not averaged.

A row's key is (model, fingerprint, task, length, id, method, ratio). A key may come again only with
exactly the same content, and then counts once.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from octavo.errors import EvaluationError
from octavo_evals.methods import OLD_NAMES, label
from octavo_evals.rows import ANSWER, read_rows

KEY = ["model", "fingerprint", *ANSWER.key]
_EMPTY: dict[tuple[type, ...], Any] = {(str,): "", (bool,): False, (dict,): {}, (list,): []}
_UNSEEN = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)
"""Control characters, what turns the direction of text, and halves of characters."""


@dataclass(slots=True)
class Evaluation:
    """Every row that counts, and what else a reader should know."""

    rows: Any = None
    """A data frame, sorted by key: a row's fields, `label`, `context` (the text that items share)
    and `run` (its folder: what was timed together). No length and no ratio are 0."""
    runs: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)
    """Each folder's name with its `run.json`."""
    notes: list[str] = field(default_factory=list)


def read(folders: Sequence[Path]) -> Evaluation:
    """Read every file of rows in the folders.

    An unfinished last line, as a killed writer leaves it, is left out and noted. Raises
    `EvaluationError` for a missing folder, one without rows, a damaged line, a row that is
    incomplete, clashing rows, and rows of different seeds.
    """
    found = Evaluation()
    kept: dict[tuple[Any, ...], tuple[dict[str, Any], Path]] = {}
    seeds: dict[Any, Path] = {}
    num_rows = 0
    for folder in dict.fromkeys(one.expanduser().resolve() for one in folders):
        for row, file in _read_folder(folder, found):
            num_rows += 1
            key = tuple(row.get(name) or 0 for name in KEY)
            known, where = kept.setdefault(key, ({**row, "run": folder.name}, file))
            if known != {**row, "run": known["run"]}:
                raise EvaluationError(
                    f"{where} and {file} both hold {row['task']} {row['id']} by "
                    f"{label(row['method'], row.get('ratio'))} of {row.get('model')}, with "
                    "different content; remove one, or report them apart"
                )
            seeds.setdefault(row.get("seed"), file)
    if len(seeds) > 1:
        named = " and ".join(f"{seed} ({file})" for seed, file in seeds.items())
        raise EvaluationError(f"rows of different seeds: {named}; report one seed at a time")
    if num_rows > len(kept):
        found.notes.append(f"{num_rows - len(kept)} rows came twice, exactly alike: counted once.")
    found.rows = _to_frame([row for row, _ in kept.values()])
    return found


def _to_frame(rows: Sequence[Mapping[str, Any]]) -> Any:
    import pandas as pd

    columns: dict[str, Any] = {"run": [row["run"] for row in rows], "context": _contexts(rows)}
    for name, types in {**ANSWER.needed, **ANSWER.others}.items():
        empty = _EMPTY.get(types, float("nan"))
        values = (row.get(name) for row in rows)
        columns[name] = [empty if value is None else value for value in values]
    frame = pd.DataFrame(columns).fillna({"ratio": 0.0, "length": 0}).astype({"length": int})
    frame["label"] = [label(row["method"], row.get("ratio")) for row in rows]
    return frame.sort_values(KEY, kind="stable", ignore_index=True)


def _contexts(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what names the context of each row.

    Rows say `context_id`. Older ones say only that a context was held already: then it is that of
    the last row before them, by the same method, that had to read it.
    """
    found: dict[tuple[Any, ...], str] = {}
    opened: dict[tuple[Any, ...], tuple[Any, ...]] = {}
    items = [(row["task"], row.get("length"), row["id"]) for row in rows]
    how = ("task", "length", "method", "ratio", "run", "context_tokens")
    for row, item in zip(rows, items, strict=True):
        key = tuple(row.get(name) for name in how)
        if row.get("context_id"):
            found[item] = row["context_id"]
        elif row.get("is_reused") and key in opened:
            found[item] = found[opened[key]]
        else:
            opened[key] = item
            found.setdefault(item, row["id"])
    return [found[item] for item in items]


def _read_folder(folder: Path, found: Evaluation) -> Iterator[tuple[dict[str, Any], Path]]:
    """Yield the rows of a folder, each with its file, and keep what its `run.json` says."""
    if not folder.is_dir():
        raise EvaluationError(f"no folder {folder}; name one that `octavo eval` wrote")
    num_rows = 0
    files = [file for file in sorted(folder.glob("*.jsonl")) if _holds_rows(file)]
    for file in files:
        if not file.read_bytes().endswith(b"\n"):
            found.notes.append(f"{file.name}: the unfinished last line was left out.")
        for row in read_rows(file, ANSWER):
            score, skipped = row.get("score"), row.get("skipped")
            if (score is None) == (skipped is None) or not 0 <= (score or 0) <= 1:
                raise EvaluationError(
                    f"{file}: {row['task']} {row['id']} by {row['method']} has score {score} and "
                    f"skipped {skipped}; a row has a score from 0 to 1, or a reason for none"
                )
            num_rows += 1
            yield _visible(row | {"method": OLD_NAMES.get(row["method"], row["method"])}), file
    if not num_rows:
        raise EvaluationError(f"no rows in {folder}; name a folder that `octavo eval` wrote")
    settings = folder / "run.json"
    try:
        content = json.loads(settings.read_text("utf-8")) if settings.is_file() else {}
    except ValueError as error:
        raise EvaluationError(f"{settings} is not JSON ({error}); correct or remove it") from error
    found.runs.append((_visible(folder.name), _visible(content)))


def _holds_rows(file: Path) -> bool:
    """Return whether a file is one of rows, or another that happens to lie beside it."""
    with file.open("rb") as lines:
        first = lines.readline()
    try:
        return file.name == "rows.jsonl" or ANSWER.problem_of(json.loads(first)) is None
    except ValueError:
        return False


def _visible(value: Any) -> Any:
    """Return a JSON value whose texts can be shown: they come from data that others made."""
    if isinstance(value, str):
        return _UNSEEN.sub(lambda one: " " if one[0].isspace() else "�", value)
    if isinstance(value, dict):
        return {_visible(key): _visible(one) for key, one in value.items()}
    return [_visible(one) for one in value] if isinstance(value, list) else value
