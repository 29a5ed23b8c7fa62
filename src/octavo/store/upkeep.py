"""Check a store and clean it up: what kills left behind, what nothing uses any more."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from octavo.errors import StoreError
from octavo.files import remove_leftovers
from octavo.store.catalogue import Catalogue
from octavo.store.entry import digest_of_file, is_id, read_entry

_INDEX_DAYS = 30
"""An index of a file that was not asked about for so long is dropped; it is made in a moment."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Swept:
    """What a clean-up did."""

    listed: int
    """Entries that were whole but not listed: a process was killed before it could."""
    struck: int
    """Rows without a folder: a process was killed while it removed them."""
    indexes: int
    """Indexes of files that were not asked about for a month."""
    evicted: int
    """Entries removed to keep to the limit."""
    was_remade: bool
    """Whether the table was damaged and was made anew."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What a check found."""

    entries: int
    problems: tuple[str, ...]
    """Damage: what is there and is not what was put there."""
    unfinished: int
    """What kills left behind, which is no damage: `gc` takes care of it."""


def sweep(folder: Path, catalogue: Catalogue) -> Swept:
    """Clean up; the caller holds the store's lock alone."""
    for shard in (folder, folder / "indexes", *_shards(folder)):
        remove_leftovers(shard)
    here = {place.name: place for place in _places(folder)}
    was_remade = not catalogue.is_sound()
    if was_remade:
        catalogue.remake([])
    rows = {identity for identity, _ in catalogue.oldest()}
    listed = 0
    for identity in here.keys() - rows:
        try:
            catalogue.put(read_entry(here[identity]))
        except StoreError:  # damaged: `verify` tells of it
            continue
        listed += 1
    struck = rows - here.keys()
    for identity in struck:
        catalogue.drop(identity)
    old = time.time() - _INDEX_DAYS * 86400
    stale = [one for one in (folder / "indexes").iterdir() if one.stat().st_mtime < old]
    for one in stale:
        one.unlink(missing_ok=True)
    catalogue.compact()
    return Swept(
        listed=listed,
        struck=len(struck),
        indexes=len(stale),
        evicted=0,
        was_remade=was_remade,
    )


def verify(folder: Path, catalogue: Catalogue) -> Verdict:
    """Compare every file with its sha256, and every folder with its row; changes nothing."""
    problems: list[str] = []
    rows: set[str] = set()
    if catalogue.is_sound():
        rows = {identity for identity, _ in catalogue.oldest()}
    else:
        problems.append("the table is damaged; `octavo store gc` makes it anew")
    here = {place.name: place for place in _places(folder)}
    for place in here.values():
        problems += _problems_of(place)
    leftovers = sum(1 for shard in _shards(folder) for _ in shard.glob(".octavo-*"))
    return Verdict(
        entries=len(here),
        problems=tuple(problems),
        unfinished=len(rows ^ here.keys()) + leftovers if rows or not problems else leftovers,
    )


def _problems_of(place: Path) -> Iterator[str]:
    try:
        entry = read_entry(place)
    except StoreError as error:
        yield str(error)
        return
    if entry.id != place.name:
        yield f"{place} holds the entry {entry.id}"
    for name, digest in entry.digests.items():
        try:
            is_same = digest_of_file(place / name) == digest
        except OSError as error:
            yield f"{place / name}: {error.strerror}"
            continue
        if not is_same:
            yield f"{place / name} does not match its sha256"


def _shards(folder: Path) -> list[Path]:
    return sorted(one for one in (folder / "entries").iterdir() if one.is_dir())


def _places(folder: Path) -> Iterator[Path]:
    """Yield the folders of entries."""
    for shard in _shards(folder):
        yield from (one for one in shard.iterdir() if is_id(one.name) and one.is_dir())


def holds_something_else(folder: Path) -> bool:
    """Whether a folder has files that are not those of a store being made."""
    known = ("entries", "indexes", "locks", "store.json", "catalogue.sqlite", ".octavo-")
    try:
        names = [one.name for one in folder.iterdir()]
    except FileNotFoundError:
        return False
    except OSError as error:
        raise StoreError(f"cannot read {folder}: {error.strerror}; choose another") from error
    return any(not name.startswith(known) for name in names)
