"""The rows of an evaluation: one JSON line per answer, appended durably, never counted twice.

A folder holds `rows.jsonl`, `run.json` (what all its rows share) and `rows.lock`. Any number of
processes may write to one folder: each claims the context it works on by a lock that ends with the
process, and what is done already is never done again. A line cut off by a crash is removed before
the next one is written.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from octavo.errors import EvaluationError
from octavo.files import write_text

try:
    import fcntl
except ImportError:  # Windows: one process at a time, which nothing checks there
    fcntl = None  # type: ignore[assignment]

FORMAT = "octavo-rows"


class Key(NamedTuple):
    """What a row is about: no two rows of a folder share it."""

    task: str
    length: int | None
    id: str
    method: str
    ratio: int | None

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "Key":
        """Return a row's key."""
        return cls(*(row[name] for name in cls._fields))


class Rows:
    """The rows of one folder, open for appending."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], command: str = "") -> None:
        """Open a folder, made if it is not there, for rows with these settings.

        `settings["data"]` names data files by their hash: further ones may be added later. The
        command is kept beside those that wrote here before. Raises `EvaluationError` when the
        folder's rows were made with other settings.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "rows.jsonl"
        self._lock: IO[bytes] = (folder / "rows.lock").open("ab")
        self._done: set[Key] = set()
        self._read = 0
        try:
            with self._locked(0):
                self._check_settings(folder / "run.json", settings, command)
                self._catch_up()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of every claim."""
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
            with self._locked(0):
                self._catch_up()
            yield [key for key in keys if key not in self._done]
        finally:
            self._release(offset)

    def append(self, rows: Iterable[Mapping[str, Any]]) -> int:
        """Write rows that are not there yet, and return how many; they survive a crash."""
        with self._locked(0):
            self._catch_up()
            fresh: dict[Key, str] = {}
            for row in rows:
                if (key := Key.of(row)) not in self._done:
                    fresh.setdefault(key, json.dumps(row, ensure_ascii=False) + "\n")
            if fresh:
                with self.path.open("ab") as file:
                    file.write("".join(fresh.values()).encode("utf-8"))
                    file.flush()
                    os.fsync(file.fileno())
                    self._read = file.tell()
                self._done.update(fresh)
        return len(fresh)

    def _catch_up(self) -> None:
        """Learn of rows that other processes wrote, and remove a line that one left unfinished."""
        if not self.path.exists():
            return
        with self.path.open("r+b") as file:
            file.seek(self._read)
            new = file.read()
            whole = new[: new.rfind(b"\n") + 1]
            if len(whole) < len(new):
                file.truncate(self._read + len(whole))
        for line in whole.decode("utf-8").split("\n")[:-1]:
            try:
                self._done.add(Key.of(json.loads(line)))
            except (ValueError, KeyError, TypeError) as error:
                raise EvaluationError(
                    f"{self.path} holds a line that is no row ({error}): {line[:60]!r}; mend or "
                    "remove it, or write to another folder with -o"
                ) from error
        self._read += len(whole)

    def _check_settings(self, path: Path, settings: Mapping[str, Any], command: str) -> None:
        """Write the settings, or compare them with those of the rows that are there."""
        commands = [command] if command else []
        merged = {"format": FORMAT, "version": 1, **settings, "commands": commands}
        if path.exists():
            before = json.loads(path.read_text(encoding="utf-8"))
            merged["commands"] = list(dict.fromkeys([*before.pop("commands", []), *commands]))
            merged["data"] = {**before.get("data", {}), **settings.get("data", {})}
            for name, value in _flat(before):
                now = dict(_flat(merged)).get(name)
                if now != value:
                    raise EvaluationError(
                        f"{path.parent} holds rows made with {name} = {value!r}, and this run has "
                        f"{now!r}; use the same, or write to another folder with -o"
                    )
        write_text(path, json.dumps(merged, indent=2, sort_keys=True) + "\n")

    @contextlib.contextmanager
    def _locked(self, offset: int) -> Iterator[None]:
        self._take(offset, wait=True)
        try:
            yield
        finally:
            self._release(offset)

    def _take(self, offset: int, wait: bool) -> bool:
        """Lock one byte of the lock file, which stands for one piece of work."""
        if fcntl is None:
            return True
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, offset)
        except BlockingIOError:
            return False
        return True

    def _release(self, offset: int) -> None:
        if fcntl is not None and not self._lock.closed:
            fcntl.lockf(self._lock, fcntl.LOCK_UN, 1, offset)


def _flat(settings: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every leaf with its dotted name."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value
