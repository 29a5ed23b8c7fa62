"""The rows of evaluations and benches: what is in them, and their durable files of JSON lines.

A file takes rows of one kind, each key once. Any number of processes may append to it: each claims
what it works on by a lock that ends with the process, and what is done is never done again. A line
cut off by a crash is removed before the next one is written. An evaluation's folder holds
`rows.jsonl`, `run.json` (what all its rows share) and `rows.lock`; a bench's file stands alone, its
settings in every row.
"""

import contextlib
import hashlib
import json
import os
import platform
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import octavo
from octavo.errors import EvaluationError
from octavo.files import WriteError, write_text
from octavo.settings import flatten, refuse_change
from octavo_evals.methods import OLD_NAMES

try:
    import fcntl
except ImportError:  # Windows: one process at a time, which nothing checks there
    fcntl = None  # type: ignore[assignment]

FORMAT = "octavo-evaluation"
OLD_FORMAT = "octavo-rows"
"""What `run.json` called it before the name was left to the rows that models are trained on."""
Row = dict[str, Any]
Key = tuple[Hashable, ...]
Types = Mapping[str, tuple[type, ...]]

_TEXT, _COUNT, _NUMBER, _BOOL, _TABLE = (str,), (int,), (int, float), (bool,), (dict,)


@dataclass(frozen=True, slots=True)
class RowKind:
    """A kind of rows."""

    name: str
    key: tuple[str, ...]
    """The columns in which two rows differ."""
    needed: Types
    """Columns that every row has, and their types."""
    others: Types
    """Columns that may be null or missing: not measured, or not known to an older octavo."""

    def key_of(self, row: Mapping[str, Any]) -> Key:
        """Return what a row is about: no two rows of a file share it."""
        values = {**row, "method": OLD_NAMES.get(row["method"], row["method"])}
        return tuple(values.get(name) for name in self.key)

    def problem_of(self, row: Any) -> str | None:
        """Return what keeps an object from being a row of this kind."""
        if not isinstance(row, dict):
            return "it is no object"
        for name, types in (*self.needed.items(), *self.others.items()):
            value = row.get(name)
            if value is None and name in self.others:
                continue
            is_odd_bool = isinstance(value, bool) and bool not in types
            if is_odd_bool or not isinstance(value, types) or value != value:
                return f"{name} is {value!r}, not {' or '.join(kind.__name__ for kind in types)}"
        return None


ANSWER = RowKind(
    name="an evaluation",
    key=("task", "length", "id", "method", "ratio"),
    needed={
        "task": _TEXT, "id": _TEXT, "method": _TEXT,
    },
    others={
        "length": _COUNT, "ratio": _NUMBER, "score": _NUMBER, "skipped": _TEXT, "answer": _TEXT,
        "references": (list,), "metrics": _TABLE, "metric": _TEXT, "about": _TABLE,
        "notes": _TABLE, "logprob": _NUMBER,
        "seed": _COUNT, "model": _TEXT, "fingerprint": _TEXT, "device": _TEXT, "dtype": _TEXT,
        "machine": _TEXT, "versions": _TABLE, "threads": _COUNT, "is_reused": _BOOL,
        "is_masked": _BOOL, "context_id": _TEXT, "context_tokens": _COUNT, "prompt_tokens": _COUNT,
        "new_tokens": _COUNT, "latents": _COUNT, "compress_seconds": _NUMBER,
        "ttft_seconds": _NUMBER, "decode_seconds": _NUMBER, "context_bytes": _NUMBER,
        "cache_bytes": _NUMBER, "peak_bytes": _NUMBER,
    },
)  # fmt: skip
"""A row of `octavo eval`: one method's answer to one item."""

MEASUREMENT = RowKind(
    name="a bench",
    key=("shape", "length", "method", "ratio", "repeat"),
    needed={"shape": _TEXT, "length": _COUNT, "method": _TEXT},
    others={
        "ratio": _COUNT, "repeat": _COUNT, "skipped": _TEXT, "source_tokens": _COUNT,
        "latents": _COUNT, "prompt_tokens": _COUNT, "kept_positions": _COUNT,
        "compress_seconds": _NUMBER, "first_seconds": _NUMBER, "next_seconds": _NUMBER,
        "decode_seconds": _NUMBER, "decode_tokens": _COUNT, "batch_seconds": _NUMBER,
        "alone_seconds": _NUMBER, "cache_bytes": _COUNT, "context_bytes": _COUNT,
        "peak_bytes": _COUNT, "flops": _COUNT, "compress_flops": _COUNT, "next_flops": _COUNT,
        "decode_bytes": _COUNT, "weight_bytes": _COUNT,
    },
)  # fmt: skip
"""A row of `octavo bench`: one method at one length, once; or why it was skipped."""


def describe_run(*packages: str) -> Row:
    """Return what rows say of their origin: the machine, and the versions of what is installed."""
    import torch  # here: a report reads rows without it

    from octavo.machine import describe_machine

    versions = {"octavo": octavo.__version__, "python": platform.python_version()}
    for name in ("torch", "transformers", *packages):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    threads = torch.get_num_threads()
    return {"versions": versions, "machine": describe_machine(), "threads": threads}


class RowFile:
    """A file of rows of one kind, open for appending; without a path, rows held in memory."""

    def __init__(self, path: Path | None, kind: RowKind, *, keeps: bool = False) -> None:
        """Read what is there, and with `keeps` hold it in `rows`.

        Raises `EvaluationError` for a line that is no such row, `WriteError` for a place that
        cannot be written.
        """
        self.path, self.kind = path, kind
        self.rows: list[Row] = []
        self._keeps, self._done, self._read = keeps or path is None, set[Key](), 0
        self._lock: IO[bytes] | None = None
        if path is None:
            return
        try:
            self._lock = path.with_suffix(".lock").open("ab")
            with self.locked():
                pass
        except OSError as error:
            self.close()
            raise _refusal(path, error) from error
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "RowFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of every claim."""
        if self._lock is not None:
            self._lock.close()

    def is_done(self, key: Key) -> bool:
        """Return whether a row was there when last looked."""
        return key in self._done

    @contextlib.contextmanager
    def claim(self, keys: Sequence[Key], *, wait: bool = False) -> Iterator[list[Key] | None]:
        """Claim the work of some keys; yield those still to be done, or None if it is taken.

        With `wait`, wait for whoever has claimed it instead.
        """
        name = hashlib.sha256(repr(list(keys)).encode()).digest()[:7]
        offset = 1 + int.from_bytes(name, "big")
        if not self._take(offset, wait):
            yield None
            return
        try:
            with self.locked():
                pass
            yield [key for key in keys if key not in self._done]
        finally:
            self._release(offset)

    def append(self, rows: Iterable[Row]) -> int:
        """Write rows that are not there yet, and return how many; they survive a crash."""
        with self.locked():
            fresh: dict[Key, Row] = {}
            for row in rows:
                problem = self.kind.problem_of(row)
                assert problem is None, problem
                if (key := self.kind.key_of(row)) not in self._done:
                    fresh.setdefault(key, row)
            if fresh and self.path is not None:
                lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in fresh.values()]
                try:
                    with self.path.open("ab") as file:
                        file.write("".join(lines).encode("utf-8"))
                        file.flush()
                        os.fsync(file.fileno())
                        self._read = file.tell()
                except OSError as error:
                    raise _refusal(self.path, error) from error
            for row in fresh.values():
                self._note(row)
        return len(fresh)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from writing while the block runs, knowing all that they wrote."""
        self._take(0, wait=True)
        try:
            self._catch_up()
            yield
        finally:
            self._release(0)

    def _note(self, row: Row) -> None:
        self._done.add(self.kind.key_of(row))
        if self._keeps:
            self.rows.append(row)

    def _catch_up(self) -> None:
        """Learn of rows that other processes wrote, and remove a line that one left unfinished."""
        if self.path is None or not self.path.exists():
            return
        with self.path.open("r+b") as file:
            file.seek(self._read)
            new = file.read()
            whole = new[: new.rfind(b"\n") + 1]
            for row in _rows_in(whole, self.path, self.kind, len(self._done)):
                self._note(row)
            if len(whole) < len(new):
                if not (self._done or new.startswith(b"{")):
                    raise _no_row(self.path, self.kind, "not JSON", new.decode(errors="replace"))
                file.truncate(self._read + len(whole))
        self._read += len(whole)

    def _take(self, offset: int, wait: bool) -> bool:
        """Lock one byte of the lock file, which stands for one piece of work."""
        if fcntl is None or self._lock is None:
            return True
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, offset)
        except BlockingIOError:
            return False
        return True

    def _release(self, offset: int) -> None:
        if fcntl is not None and self._lock is not None and not self._lock.closed:
            fcntl.lockf(self._lock, fcntl.LOCK_UN, 1, offset)


def open_folder(folder: Path, settings: Mapping[str, Any], command: str = "") -> RowFile:
    """Open an evaluation's folder, made if it is not there, for rows with these settings.

    `settings["data"]` names data files by their hash: further ones may be added later. The command
    is kept beside those that wrote here before. Raises `EvaluationError` when the folder's rows
    were made with other settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = RowFile(folder / "rows.jsonl", ANSWER)
    try:
        with rows.locked():
            _keep_settings(folder / "run.json", settings, [command] if command else [])
    except BaseException:
        rows.close()
        raise
    return rows


def _keep_settings(path: Path, settings: Mapping[str, Any], commands: list[str]) -> None:
    """Write the settings, or compare them with those of the rows that are there."""
    merged = {"format": FORMAT, "version": 1, **settings, "commands": commands}
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        merged["commands"] = list(dict.fromkeys([*before.pop("commands", []), *commands]))
        merged["data"] = {**before.get("data", {}), **settings.get("data", {})}
        if before.get("format") == OLD_FORMAT:
            before["format"] = FORMAT
        known = flatten(before)
        refuse_change(
            before,
            merged,
            EvaluationError,
            what=f"the rows in {path.parent} were made",
            cure="use the same, or write to another folder with -o",
            may_change=lambda name: name not in known,
        )
    write_text(path, json.dumps(merged, indent=2, sort_keys=True) + "\n")


def read_rows(path: Path, kind: RowKind) -> list[Row]:
    """Return the whole rows of a file; an unfinished last line is left out."""
    data = path.read_bytes()
    return list(_rows_in(data[: data.rfind(b"\n") + 1], path, kind))


def _rows_in(lines: bytes, path: Path, kind: RowKind, known: int = 0) -> Iterator[Row]:
    """Yield the rows of some lines, before which `known` rows were read."""
    for number, line in enumerate(lines.decode("utf-8", "replace").split("\n")[:-1], known + 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise _no_row(path, kind, f"line {number}: {error}", line) from error
        if problem := kind.problem_of(row):
            raise _no_row(path, kind, f"line {number}: {problem}", line)
        yield row


def _no_row(path: Path, kind: RowKind, problem: str, line: str) -> EvaluationError:
    return EvaluationError(
        f"{path} holds a line that is no row of {kind.name} ({problem}): {line[:60]!r}; fix or "
        "remove it, or write to another place with -o"
    )


def _refusal(path: Path, error: OSError) -> WriteError:
    return WriteError(
        f"cannot write {path}: {error.strerror or error}; choose another place with -o"
    )
