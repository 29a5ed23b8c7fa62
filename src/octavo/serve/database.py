"""What the server remembers between requests and restarts: responses, files, who owns a context.

One SQLite file in WAL mode: a kill at any moment leaves it valid. Every row belongs to the key that
made it, and no other key finds it.
"""

import json
import sqlite3
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

Kind = Literal["response", "file", "context"]
MAX_ROWS = {"response": 10_000, "file": 10_000, "context": 100_000}
"""Of one kind, over all keys; responses give way to newer ones, the other kinds are refused."""


class Database:
    """Rows `(kind, id, owner) -> body, data`; calls may come from any thread."""

    def __init__(self, path: Path) -> None:
        """Open or make the file, for this user alone."""
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.touch(mode=0o600)
        self._lock = threading.Lock()
        self._link = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._link.execute("PRAGMA journal_mode=WAL")
        self._link.execute("PRAGMA busy_timeout=10000")
        self._link.execute(
            "CREATE TABLE IF NOT EXISTS objects (seq INTEGER PRIMARY KEY AUTOINCREMENT, "
            "kind TEXT, id TEXT, owner TEXT, created REAL, body TEXT, data BLOB, "
            "UNIQUE (kind, id, owner))"
        )

    def _run(self, sql: str, *values: Any) -> list[Any]:
        # Half a surrogate pair, out of somebody's JSON, names nothing here.
        known = [v.encode("utf-8", "replace").decode() if type(v) is str else v for v in values]
        with self._lock:
            return self._link.execute(sql, known).fetchall()

    def put(self, kind: Kind, id: str, owner: str, body: Any, data: bytes | None = None) -> None:
        """Write a row, in place of an older one of the same name."""
        self._run(
            "INSERT OR REPLACE INTO objects (kind, id, owner, created, body, data) "
            "VALUES (?, ?, ?, ?, ?, ?)",
            kind, id, owner, time.time(), json.dumps(body), data,
        )  # fmt: skip
        if kind == "response":
            self._run(
                "DELETE FROM objects WHERE kind = ? AND seq <= (SELECT seq FROM objects "
                "WHERE kind = ? ORDER BY seq DESC LIMIT 1 OFFSET ?)",
                kind, kind, MAX_ROWS[kind],
            )  # fmt: skip

    def get(self, kind: Kind, id: str, owner: str) -> Any | None:
        """Return a row's body, or None where this owner has none of that name."""
        found = self._run(
            "SELECT body FROM objects WHERE kind = ? AND id = ? AND owner = ?", kind, id, owner
        )
        return json.loads(found[0][0]) if found else None

    def data(self, kind: Kind, id: str, owner: str) -> bytes | None:
        """Return a row's bytes."""
        found = self._run(
            "SELECT data FROM objects WHERE kind = ? AND id = ? AND owner = ?", kind, id, owner
        )
        return found[0][0] if found else None

    def page(
        self, kind: Kind, owner: str, *, after: str | None, limit: int, is_newest_first: bool
    ) -> tuple[Sequence[Any], bool]:
        """Return the bodies that follow a row, and whether there are more."""
        order, than = ("DESC", "<") if is_newest_first else ("ASC", ">")
        where, values = "kind = ? AND owner = ?", [kind, owner]
        if after is not None:
            where += (
                f" AND seq {than} (SELECT seq FROM objects WHERE kind = ? AND id = ? AND owner = ?)"
            )
            values += [kind, after, owner]
        found = self._run(
            f"SELECT body FROM objects WHERE {where} ORDER BY seq {order} LIMIT ?",
            *values, limit + 1,
        )  # fmt: skip
        return [json.loads(body) for (body,) in found[:limit]], len(found) > limit

    def delete(self, kind: Kind, id: str, owner: str) -> bool:
        """Remove a row; return whether there was one."""
        sql = "DELETE FROM objects WHERE kind = ? AND id = ? AND owner = ? RETURNING id"
        return bool(self._run(sql, kind, id, owner))

    def count(self, kind: Kind, id: str | None = None) -> int:
        """Count the rows of a kind, or of one name, over all owners."""
        if id is None:
            return int(self._run("SELECT COUNT(*) FROM objects WHERE kind = ?", kind)[0][0])
        sql = "SELECT COUNT(*) FROM objects WHERE kind = ? AND id = ?"
        return int(self._run(sql, kind, id)[0][0])

    def close(self) -> None:
        """Let go of the file."""
        self._link.close()
