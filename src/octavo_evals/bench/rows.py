"""Keep rows in a JSON-lines file: durable one by one, and gone on with after an interruption."""

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from octavo.errors import EvaluationError
from octavo.files import WriteError

Row = dict[str, Any]


class Rows:
    """The rows of one bench, in a file if there is one; use as a context manager."""

    def __init__(self, path: Path | None, settings: Mapping[str, Any]) -> None:
        """Read what `path` holds already; every row of one file has the same `settings`.

        A last line that a killed run left unfinished is dropped. Raises `EvaluationError` for a
        file that is no bench's, one with other settings, and one that another process writes.
        """
        self.rows: list[Row] = []
        self._path, self._settings = path, dict(settings)
        self._file: IO[bytes] | None = None
        if path is None:
            return
        try:
            self._file = path.open("a+b")
        except OSError as error:
            raise _refusal(path, error) from error
        try:
            self._lock()
            self._read()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "Rows":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, values: Mapping[str, Any]) -> None:
        """Keep a row, on the disk before this returns."""
        row = {**values, **self._settings}
        if self._file is not None:
            assert self._path is not None
            try:
                self._file.write(json.dumps(row).encode() + b"\n")
                self._file.flush()
                os.fsync(self._file.fileno())
            except OSError as error:
                raise _refusal(self._path, error) from error
        self.rows.append(row)

    def _lock(self) -> None:
        assert self._file is not None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise EvaluationError(
                f"another process is measuring into {self._path}; wait for it: two at once would "
                "slow each other down"
            ) from error

    def _read(self) -> None:
        assert self._file is not None
        self._file.seek(0)
        data = self._file.read()
        whole = data[: data.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                row = json.loads(line)
                is_row = isinstance(row, dict) and "first_seconds" in row
            except ValueError:
                is_row = False
            if not is_row:
                raise EvaluationError(
                    f"line {number} of {self._path} is no row of a bench; give -o another file"
                )
            self._check(row)
            self.rows.append(row)
        if len(whole) < len(data):
            self._file.truncate(len(whole))

    def _check(self, row: Row) -> None:
        for name, value in self._settings.items():
            if row.get(name) != value:
                raise EvaluationError(
                    f"the rows of {self._path} were measured with {name} {_shown(row.get(name))}, "
                    f"not {_shown(value)}; give -o another file, or the same settings to go on"
                )


def _shown(value: Any) -> str:
    return json.dumps(value) if isinstance(value, list | dict) or value is None else str(value)


def _refusal(path: Path, error: OSError) -> WriteError:
    reason = error.strerror or str(error)
    return WriteError(f"cannot write {path}: {reason}; choose another place for -o")
