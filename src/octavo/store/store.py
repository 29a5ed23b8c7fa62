"""`Store`: texts in, contexts out, on disk, for many processes at once.

    store/
      store.json           the format and the size limit
      catalogue.sqlite     what is listed and searched; made again from the folders if need be
      entries/ab/abcd.../  one folder an entry (`entry.py`), put in place by one rename
      indexes/             of files that were asked about but not added; may be deleted at any time
      locks/

An entry is written, renamed and then listed; it is renamed away and then struck off. Whatever kill
comes between leaves a folder without a row, which is whole and is listed by the next to touch it,
or a row without a folder, which counts for nothing.
"""

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from octavo.errors import ContextError, StoreError
from octavo.files import new_folder, remove_folder, replace_folder, write_text
from octavo.home import check_local, home, make_private
from octavo.ingest import DocumentText, read_document
from octavo.store.archive import pack, unpack
from octavo.store.catalogue import Catalogue
from octavo.store.entry import (
    ENTRY_FILE,
    INDEX_FILE,
    TEXT_FILE,
    StoreEntry,
    check_encodable,
    check_label,
    describe,
    id_of,
    read_entry,
)
from octavo.store.locks import locked, stripe_of
from octavo.store.upkeep import Swept, Verdict, holds_something_else, sweep, verify
from octavo.text import sha256_of

if TYPE_CHECKING:
    from octavo.ask.index import PassageIndex
    from octavo.ask.passages import Kind
    from octavo.context import CompressedContext
    from octavo.model import Model

    Contexts = list[CompressedContext]

Entries = list[StoreEntry]  # the class has a `list` of its own
_ABOUT, _LOCK = "store.json", "store.lock"
_FORMAT = "octavo-store"
_VERSION = 1
_USED_SECONDS = 60.0
"""An entry that was read so lately is not noted again, since every note waits for the disk."""


class Store:
    """A folder of contexts. May be used from any thread and any number of processes."""

    def __init__(self, folder: str | Path | None = None) -> None:
        """Open a store, or make one that only its owner may enter; by default the user's own.

        Raises `StoreError` for a folder that holds something else or lies on a network.
        """
        self.folder = Path(folder).expanduser() if folder is not None else home() / "store"
        if not (self.folder / _ABOUT).is_file():
            self._make()
        self._catalogue = Catalogue(self.folder)
        self.max_bytes = self._read_limit()

    def _make(self) -> None:
        """Make the folders and the table; several processes may do so at once."""
        if holds_something_else(self.folder):
            raise StoreError(
                f"{self.folder} is not a store and not empty; give a folder of its own"
            )
        make_private(self.folder.parent)
        make_private(self.folder)
        check_local(self.folder)
        for name in ("entries", "indexes", "locks"):
            (self.folder / name).mkdir(mode=0o700, exist_ok=True)
        with self._alone():
            if not (self.folder / _ABOUT).is_file():
                Catalogue(self.folder).make()
                self._write_about(None)

    def _read_limit(self) -> int | None:
        try:
            about = json.loads((self.folder / _ABOUT).read_text(encoding="utf-8"))
            limit: int | None = about["max_bytes"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{self.folder / _ABOUT} is damaged ({error}); delete it") from error
        if about["format"] != _FORMAT or about["version"] > _VERSION:
            raise StoreError(f"{self.folder} was made by a newer octavo; upgrade to use it")
        return limit

    def _write_about(self, max_bytes: int | None) -> None:
        about = {"format": _FORMAT, "version": _VERSION, "max_bytes": max_bytes}
        write_text(self.folder / _ABOUT, json.dumps(about))

    def limit(self, max_bytes: int | None) -> None:
        """Set how large the store may grow, for all processes; None lets it grow without end."""
        if max_bytes is not None and max_bytes < 1:
            raise StoreError(f"the limit is {max_bytes} bytes, expected at least 1, or None")
        with self._alone():
            self._write_about(max_bytes)
        self.max_bytes = max_bytes
        self._evict()

    # -- in --------------------------------------------------------------------------------------

    def add(
        self,
        text: str | Path | DocumentText,
        *,
        model: "Model | None",
        ratio: int | None = None,
        name: str | None = None,
        tags: Iterable[str] = (),
        kind: "Kind | None" = None,
        source: str = "",
        keep_text: bool = True,
        precision: Literal["full", "int8"] = "full",
        on_tokens: Callable[[int, int], None] | None = None,
    ) -> StoreEntry:
        """Fold a text and keep it, or find it here already; the same text is never folded twice.

        A `Path` is read as a document. Without a `model` the text is indexed only. A text longer
        than the decoder holds is kept in parts. `name` and `tags` are added to what the entry has;
        a name that another entry had is now this one's. What is here already keeps its precision.
        Raises what `Model.compress` raises, `StoreError`, and `WriteError` on a full disk.
        """
        if isinstance(text, Path):
            text = read_document(text)
        if isinstance(text, DocumentText):
            kind, source, text = kind or text.kind, source or text.source, text.text
        names = (check_label(name, "name"),) if name is not None else ()
        labels = tuple(check_label(tag, "tag") for tag in tags)
        if not isinstance(text, str) or not text.strip():
            raise StoreError("the text is empty; there is nothing to keep")
        check_encodable(text)
        ratio = 0 if model is None else ratio or model.config.compression_ratio
        fingerprint = model.fingerprint if model is not None else ""
        identity = id_of(fingerprint, ratio, sha256_of(text))
        with self._entry_lock(identity):
            entry = self._known(identity)
            if entry is None:
                from octavo.store.folder import write_folder

                with new_folder(self._place(identity)) as place:
                    entry = write_folder(
                        place, text, model=model, ratio=ratio, kind=kind or "prose", source=source,
                        keep_text=keep_text, precision=precision, names=names, tags=labels,
                        on_tokens=on_tokens,
                    )  # fmt: skip
                self._catalogue.put(entry)
            elif not set(names) <= set(entry.names) or not set(labels) <= set(entry.tags):
                self._catalogue.label(identity, names, labels)
                self._note(self.entry(identity))
        self._evict(besides=identity)
        return self.entry(identity)

    def _known(self, identity: str) -> StoreEntry | None:
        """Return an entry whose folder is here, listing it where a kill kept it from being so."""
        place = self._place(identity)
        found = self._catalogue.find_id(identity)
        if not place.is_dir():
            if found is not None:  # else a kill would leave it as the row of another folder
                self._catalogue.drop(identity)
            return None
        if found is None:
            found = read_entry(place)
            self._catalogue.put(found)
        return found

    def _note(self, entry: StoreEntry) -> None:
        """Write names and tags into the folder too, from which the table can be made again."""
        write_text(self._place(entry.id) / ENTRY_FILE, describe(entry))

    # -- out -------------------------------------------------------------------------------------

    def entry(self, key: str) -> StoreEntry:
        """Return the entry of a name, an id or the beginning of one; raises `StoreError`."""
        found = self._catalogue.find(key)
        found = [one for one in found if self._place(one.id).is_dir()]
        if len(found) == 1:
            return found[0]
        if found:
            ids = ", ".join(one.id for one in found[:4])
            raise StoreError(f"{key!r} may be any of {len(found)} entries ({ids}); give more of it")
        raise StoreError(
            f"no entry {key!r} in {self.folder}; `octavo store list` shows what is there"
        )

    def list(self, *, tag: str | None = None, fingerprint: str | None = None) -> Entries:
        """Return the entries, the newest first."""
        return [
            one
            for one in self._catalogue.all()
            if (tag is None or tag in one.tags)
            and (fingerprint is None or fingerprint == one.fingerprint)
        ]

    def context(self, key: str) -> "CompressedContext":
        """Return the context of an entry; raises `ContextError` if it has parts, or none."""
        contexts = self.contexts(key)
        if len(contexts) != 1:
            raise ContextError(
                f"{key} is in {len(contexts)} parts, as it is longer than the decoder; take them "
                "one by one with Store.contexts"
            )
        return contexts[0]

    def contexts(self, key: str) -> "Contexts":
        """Return the contexts of an entry's parts, in order, with their text if it was kept."""
        from octavo.store.latents import load_parts

        entry = self._use(key)
        if not entry.parts:
            raise ContextError(f"{key} was indexed, not compressed; add it again with a model")
        text = self.text(entry.id) if entry.has_text else None
        return load_parts(self._place(entry.id), entry, text)

    def text(self, key: str) -> str:
        """Return the text of an entry; raises `StoreError` if it was not kept or is damaged."""
        entry = self._use(key)
        if not entry.has_text:
            raise StoreError(f"{key} was kept without its text; add it again with its text")
        place = self._place(entry.id) / TEXT_FILE
        try:
            text = place.read_bytes().decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise StoreError(f"cannot read {place}: {error}; add the text again") from error
        if sha256_of(text) != entry.text_sha256:
            raise StoreError(
                f"{place} does not match its sha256; remove the entry and add it again"
            )
        return text

    def index(self, key: str) -> "PassageIndex":
        """Return the index of an entry's passages; one that cannot be read is made anew."""
        from octavo.ask.index import PassageIndex

        entry = self._use(key)
        place = self._place(entry.id) / INDEX_FILE
        try:
            return PassageIndex.load(place)
        except ContextError:
            if not entry.has_text:
                raise
        kind: Kind = entry.kind  # type: ignore[assignment]
        return self.index_of(self.text(entry.id), kind)

    def open_index(self, entry: StoreEntry) -> "PassageIndex":
        """Return the index of an entry that was just listed, without looking it up again."""
        from octavo.ask.index import PassageIndex

        return PassageIndex.load(self._place(entry.id) / INDEX_FILE)

    def index_of(self, text: str, kind: "Kind") -> "PassageIndex":
        """Return the index of a text that need not be here; it is kept for the next time."""
        from octavo.ask.index import PassageIndex
        from octavo.ask.passages import cut_passages

        place = self.folder / "indexes" / f"{sha256_of(text)}-{kind}.safetensors"
        try:
            index = PassageIndex.load(place)
            os.utime(place)
        except (ContextError, OSError):
            index = PassageIndex.build(text, cut_passages(text, kind=kind))
            index.save(place)
        return index

    def _use(self, key: str) -> StoreEntry:
        """Return an entry and note that it is read."""
        entry = self.entry(key)
        if time.time() - entry.used > _USED_SECONDS:
            self._catalogue.use(entry.id, time.time())
        return entry

    # -- upkeep ----------------------------------------------------------------------------------

    def remove(self, key: str) -> StoreEntry:
        """Remove an entry; returns what it was."""
        entry = self.entry(key)
        self._remove(entry.id)
        return entry

    def _remove(self, identity: str) -> None:
        with self._entry_lock(identity):
            remove_folder(self._place(identity))
            self._catalogue.drop(identity)

    def _evict(self, besides: str = "") -> None:
        """Remove what was read longest ago until the rest fits the limit."""
        if self.max_bytes is None:
            return
        rows = self._catalogue.oldest()
        total = sum(num_bytes for _, num_bytes in rows)
        for identity, num_bytes in rows:
            if total <= self.max_bytes:
                return
            if identity != besides:
                self._remove(identity)
                total -= num_bytes

    def gc(self) -> Swept:
        """Clean up after kills, drop what nothing uses, and keep to the limit.

        Waits until no other process adds or removes anything.
        """
        with self._alone():
            swept = sweep(self.folder, self._catalogue)
        before = len(self._catalogue.oldest())
        self._evict()
        return replace(swept, evicted=before - len(self._catalogue.oldest()))

    def verify(self) -> Verdict:
        """Read every file and compare it with its sha256; changes nothing."""
        with self._shared():
            return verify(self.folder, self._catalogue)

    def export(self, keys: Sequence[str], path: str | Path) -> Entries:
        """Write entries into one file, which `import_` reads anywhere."""
        entries = [self.entry(key) for key in keys]
        with self._shared():
            pack([(entry, self._place(entry.id)) for entry in entries], Path(path))
        return entries

    def import_(self, path: str | Path) -> Entries:
        """Read entries that `export` wrote, all of them or, from a damaged file, none."""
        names = []
        with unpack(Path(path), self.folder) as found:
            for entry, unpacked in found:
                with self._entry_lock(entry.id):
                    if self._known(entry.id) is None:
                        place = self._place(entry.id)
                        place.parent.mkdir(mode=0o700, exist_ok=True)
                        replace_folder(unpacked, place)
                        self._catalogue.put(replace(entry, used=time.time()))
                    else:
                        self._catalogue.label(entry.id, entry.names, entry.tags)
                names.append(entry.id)
        self._evict()
        return [entry for entry in map(self._catalogue.find_id, names) if entry is not None]

    # -- places and locks ------------------------------------------------------------------------

    def _place(self, identity: str) -> Path:
        return self.folder / "entries" / identity[:2] / identity

    @contextmanager
    def _entry_lock(self, identity: str) -> Iterator[None]:
        """Be the only one to change an entry, while nobody sweeps the whole store."""
        with (
            locked(self.folder / "locks" / stripe_of(identity)),
            self._shared(),
        ):
            yield

    @contextmanager
    def _shared(self) -> Iterator[None]:
        with locked(self.folder / "locks" / _LOCK, is_shared=True):
            yield

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with locked(self.folder / "locks" / _LOCK):
            yield
