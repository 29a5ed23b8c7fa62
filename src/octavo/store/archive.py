"""Entries in one file: an uncompressed zip of their folders, checked in full before use."""

import shutil
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from octavo.errors import StoreError
from octavo.files import temporary_folder, write_file
from octavo.store.entry import (
    ENTRY_FILE,
    INDEX_FILE,
    TEXT_FILE,
    StoreEntry,
    digest_of_file,
    is_id,
    read_entry,
)

_MAX_ABOUT_BYTES = 16 << 20


def pack(entries: Sequence[tuple[StoreEntry, Path]], path: Path) -> None:
    """Write entries and their folders into one file, whole or not at all."""

    def write(place: Path) -> None:
        with zipfile.ZipFile(place, "w", zipfile.ZIP_STORED, strict_timestamps=False) as archive:
            for entry, folder in entries:
                for name in (ENTRY_FILE, *sorted(entry.digests)):
                    archive.write(folder / name, f"{entry.id}/{name}")

    write_file(path, write)


@contextmanager
def unpack(path: Path, beside: Path) -> Iterator[list[tuple[StoreEntry, Path]]]:
    """Yield the entries of a file with the folders they were unpacked to, which then vanish.

    Raises `StoreError` for a file that is damaged, or holds anything but whole entries.
    """
    with temporary_folder(beside) as place:
        yield _unpack(path, place)


def _unpack(path: Path, place: Path) -> list[tuple[StoreEntry, Path]]:
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                _take(archive, info, place)
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError) as error:
        raise StoreError(f"cannot read {path} ({error}); export it again") from error
    found = []
    for folder in sorted(place.iterdir()):
        entry = read_entry(folder)
        names = {one.name for one in folder.iterdir()}
        if entry.id != folder.name or names != {ENTRY_FILE, *entry.digests}:
            raise StoreError(f"{path} lacks files of entry {folder.name}; export it again")
        for name, digest in entry.digests.items():
            if digest_of_file(folder / name) != digest:
                raise StoreError(f"{folder.name}/{name} in {path} is damaged; export it again")
        found.append((entry, folder))
    return found


def _take(archive: zipfile.ZipFile, info: zipfile.ZipInfo, place: Path) -> None:
    """Unpack one file of an entry; refuse names that lead elsewhere, and packed bytes."""
    identity, _, name = info.filename.partition("/")
    is_ours = name in (ENTRY_FILE, TEXT_FILE, INDEX_FILE) or (
        name.removesuffix(".safetensors").isdecimal() and name.isascii()
    )
    too_large = name == ENTRY_FILE and info.file_size > _MAX_ABOUT_BYTES
    if not is_id(identity) or not is_ours or too_large or info.compress_type != zipfile.ZIP_STORED:
        raise StoreError(f"{archive.filename} holds {info.filename!r:.80}, which no export has")
    (place / identity).mkdir(mode=0o700, exist_ok=True)
    with archive.open(info) as source, (place / identity / name).open("xb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
