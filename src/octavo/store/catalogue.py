"""The table of a store: one SQLite file in WAL mode, which can be made again from the folders.

Every call opens the file and closes it: a connection that outlives a fork or a thread corrupts.
"""

import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from octavo.errors import StoreError
from octavo.files import WriteError
from octavo.store.entry import StoreEntry, entry_of

FILE = "catalogue.sqlite"
_WAIT_SECONDS = 60.0
_MAX_WAL_BYTES = 16 << 20
_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
  id TEXT PRIMARY KEY, about TEXT NOT NULL, fingerprint TEXT NOT NULL, ratio INTEGER NOT NULL,
  num_bytes INTEGER NOT NULL, created REAL NOT NULL, used REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS names (
  name TEXT PRIMARY KEY, id TEXT NOT NULL REFERENCES entries(id) ON DELETE CASCADE) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS tags (
  id TEXT NOT NULL REFERENCES entries(id) ON DELETE CASCADE, tag TEXT NOT NULL,
  PRIMARY KEY (id, tag)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS names_of ON names(id);
CREATE INDEX IF NOT EXISTS oldest ON entries(used);
"""
_ROWS = """
SELECT e.id, e.about, e.used,
  (SELECT json_group_array(n.name) FROM names n WHERE n.id = e.id),
  (SELECT json_group_array(t.tag) FROM tags t WHERE t.id = e.id)
FROM entries e
"""


class Catalogue:
    """The rows of a store."""

    def __init__(self, folder: Path) -> None:
        """Name the table of a folder."""
        self._path = folder / FILE

    def make(self) -> None:
        """Make the table, or what of it is missing; the caller holds the store's lock alone."""
        with closing(self._connect()) as connection:
            mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
            if mode != "wal":
                raise StoreError(
                    f"the file system of {self._path} cannot share a table among processes (it "
                    f"offers {mode}, not WAL); choose a local folder (OCTAVO_HOME)"
                )
            connection.executescript(_SCHEMA)

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=_WAIT_SECONDS, isolation_level=None)
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute(
            "PRAGMA synchronous = FULL"
        )  # an acknowledged entry outlives a power cut
        connection.execute(f"PRAGMA journal_size_limit = {_MAX_WAL_BYTES}")
        return connection

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        """Yield a connection within a transaction that is the only one to write, from its begin."""
        try:
            with closing(self._connect()) as connection:
                connection.execute("BEGIN IMMEDIATE")
                try:
                    yield connection
                    connection.execute("COMMIT")
                except BaseException:
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
                    raise
        except sqlite3.DatabaseError as error:
            raise WriteError(
                f"cannot write {self._path}: {error}; free some space, or try again"
            ) from error

    def put(self, entry: StoreEntry) -> None:
        """Add a row, or replace what it says."""
        with self._change() as connection:
            connection.execute(
                "INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT(id) DO UPDATE SET "
                "about = excluded.about, num_bytes = excluded.num_bytes, used = excluded.used",
                (
                    entry.id,
                    json.dumps({**entry.to_dict(), "names": [], "tags": []}),
                    entry.fingerprint,
                    entry.ratio,
                    entry.num_bytes,
                    entry.created,
                    entry.used or entry.created,
                ),
            )
            _label(connection, entry.id, entry.names, entry.tags)

    def label(self, identity: str, names: Iterable[str], tags: Iterable[str]) -> None:
        """Give an entry more names and tags; a name that another had is now this one's."""
        with self._change() as connection:
            _label(connection, identity, names, tags)

    def use(self, identity: str, now: float) -> None:
        """Note that an entry was read."""
        with self._change() as connection:
            connection.execute("UPDATE entries SET used = ? WHERE id = ?", (now, identity))

    def drop(self, identity: str) -> None:
        """Remove a row; removing what is not there does nothing."""
        with self._change() as connection:
            connection.execute("DELETE FROM entries WHERE id = ?", (identity,))

    def find(self, key: str) -> list[StoreEntry]:
        """Return the entry of a name or an id, or those whose ids begin so."""
        by_name = self._select("JOIN names k ON k.id = e.id WHERE k.name = ?", (key,))
        by_name = by_name or self._select("WHERE e.id = ?", (key,))
        if by_name or not key or not set(key) <= set("0123456789abcdef"):
            return by_name
        return self._select("WHERE e.id >= ? AND e.id < ?", (key, key + "g"))

    def find_id(self, identity: str) -> StoreEntry | None:
        """Return the entry of an id, if it is listed."""
        return next(iter(self._select("WHERE e.id = ?", (identity,))), None)

    def all(self) -> list[StoreEntry]:
        """Return every entry, the newest first."""
        return self._select("ORDER BY e.created DESC, e.id", ())

    def oldest(self) -> list[tuple[str, int]]:
        """Return ids with their bytes, what was read longest ago first."""
        return self._fetch("SELECT id, num_bytes FROM entries ORDER BY used")

    def compact(self) -> None:
        """Write the log back into the table; the caller holds the store's lock alone."""
        with closing(self._connect()) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def is_sound(self) -> bool:
        """Whether SQLite finds its file in order."""
        try:
            with closing(self._connect()) as connection:
                found = connection.execute("PRAGMA quick_check").fetchone()
        except sqlite3.DatabaseError:
            return False
        return bool(found == ("ok",))

    def _fetch(self, query: str, values: tuple[str, ...] = ()) -> list[Any]:
        """Read rows at once, so that no reader keeps the log from being written back."""
        try:
            with closing(self._connect()) as connection:
                return connection.execute(query, values).fetchall()
        except sqlite3.DatabaseError as error:
            raise StoreError(
                f"{self._path} cannot be read ({error}); `octavo store gc` makes it anew from the "
                "entries themselves"
            ) from error

    def remake(self, entries: Iterable[StoreEntry]) -> None:
        """Make the table anew; the caller holds the store's lock alone."""
        for left in self._path.parent.glob(f"{FILE}*"):
            left.unlink()
        self.make()
        for entry in sorted(entries, key=lambda one: one.created):
            self.put(entry)

    def _select(self, condition: str, values: tuple[str, ...]) -> list[StoreEntry]:
        rows = self._fetch(_ROWS + condition, values)
        return [
            entry_of(
                json.loads(about)
                | {"used": used, "names": sorted(json.loads(names)), "tags": json.loads(tags)}
            )
            for _, about, used, names, tags in rows
        ]


def _label(
    connection: sqlite3.Connection, identity: str, names: Iterable[str], tags: Iterable[str]
) -> None:
    for name in names:
        connection.execute("INSERT OR REPLACE INTO names VALUES (?, ?)", (name, identity))
    for tag in tags:
        connection.execute("INSERT OR IGNORE INTO tags VALUES (?, ?)", (identity, tag))
