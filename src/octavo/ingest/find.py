"""Find the documents that a list of files, folders and patterns names."""

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from octavo.errors import InputError
from octavo.ingest.document import CODE, EXTRACTED, MARKDOWN, PROSE

MAX_FILES = 100_000
_SKIPPED = frozenset("node_modules __pycache__ venv site-packages dist build target".split())
_KNOWN = frozenset({*EXTRACTED, *MARKDOWN, *CODE, *PROSE} - {"", ".json", ".jsonl", ".csv", ".tsv"})
"""Suffixes that are taken out of a folder; tables and data are taken when they are named."""


def find_files(places: Sequence[str | Path]) -> list[Path]:
    """Return files as they were named, those that a pattern matches, and the documents of folders.

    Each stands once, those of one folder in the order of their names; hidden ones, links and what
    tools generate are left out of folders. Raises `InputError` for a place that names nothing.
    """
    found: dict[Path, None] = {}
    for place in places:
        named = list(_named(Path(place).expanduser()))
        if not named:
            raise InputError(f"{place} names no document; check the path, or quote the pattern")
        found.update(dict.fromkeys(named))
        if len(found) > MAX_FILES:
            raise InputError(f"more than {MAX_FILES:,} documents are named; name fewer")
    return list(found)


def _named(place: Path) -> Iterator[Path]:
    if place.is_dir():
        yield from _in_folder(place)
    elif place.exists():
        yield place
    elif glob.has_magic(str(place)):
        for one in sorted(glob.glob(str(place), recursive=True)):
            if os.path.isfile(one):
                yield Path(one)


def _in_folder(folder: Path) -> Iterator[Path]:
    for above, folders, files in os.walk(folder):
        folders[:] = sorted(n for n in folders if not n.startswith(".") and n not in _SKIPPED)
        for name in sorted(files):
            path = Path(above, name)
            is_document = path.suffix.lower() in _KNOWN and not name.startswith(".")
            if is_document and not path.is_symlink():
                yield path
