"""What a store knows of one text in it, and the folder that holds it.

A folder is written elsewhere and put in its place by one rename; it is whole or it is not there:

    entry.json             what is below, with the sha256 of every other file
    passages.safetensors   the passages and their index
    text.txt               the raw text, unless it was not to be kept
    0.safetensors ...      the latents of each part
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from octavo.errors import StoreError

ENTRY_FILE, TEXT_FILE, INDEX_FILE = "entry.json", "text.txt", "passages.safetensors"
FORMAT_VERSION = 1
_ID_LENGTH = 16
_MAX_LABEL = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreEntry:
    """One text in a store, folded by one compressor at one ratio, or only indexed."""

    id: str
    """Made of the compressor, the ratio and the text: the same of all three is one entry."""
    text_sha256: str
    """Of the text as UTF-8."""
    fingerprint: str
    """Which compressor folded it; empty for a text that was only indexed."""
    model: str
    """The compressor's name."""
    ratio: int
    """Source tokens per latent; 0 for a text that was only indexed."""
    kind: str
    """prose, markdown or code: how it was cut into passages."""
    characters: int
    passages: int
    source_tokens: int
    latents: int
    parts: int
    """How many contexts hold it: more than one where it is longer than the decoder."""
    precision: str
    """Of the latents: full or int8."""
    loss: float
    """What int8 took from the latents: the error's root mean square, relative to theirs."""
    source: str
    """The file it came from; empty for a text that came from none."""
    num_bytes: int
    """Of all its files but `entry.json`."""
    created: float
    """Seconds since 1970."""
    digests: dict[str, str] = field(default_factory=dict)
    """The sha256 of every file but `entry.json`."""
    names: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    used: float = 0.0
    """When it was last read, in seconds since 1970."""

    @property
    def has_text(self) -> bool:
        """Whether the raw text is kept."""
        return TEXT_FILE in self.digests

    @property
    def title(self) -> str:
        """What people may call it by: a name, its file, or its id."""
        return next(iter(self.names), "") or self.source or self.id

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return asdict(self)


def id_of(fingerprint: str, ratio: int, text_sha256: str) -> str:
    """Return the id of a text folded by a compressor at a ratio."""
    key = json.dumps([fingerprint, ratio, text_sha256])
    return hashlib.sha256(key.encode()).hexdigest()[:_ID_LENGTH]


def is_id(name: str) -> bool:
    """Whether a name could be an id."""
    return len(name) == _ID_LENGTH and set(name) <= set("0123456789abcdef")


def part_file(number: int) -> str:
    """Return the file of a part's latents."""
    return f"{number}.safetensors"


def describe(entry: StoreEntry) -> str:
    """Return what `entry.json` holds."""
    return json.dumps({"format_version": FORMAT_VERSION, **entry.to_dict()}, indent=1)


def read_entry(folder: Path) -> StoreEntry:
    """Read what a folder holds; raises `StoreError` for a damaged description."""
    try:
        about = json.loads((folder / ENTRY_FILE).read_text(encoding="utf-8"))
        version = about.pop("format_version")
        if type(version) is not int or version > FORMAT_VERSION:
            raise StoreError(f"{folder} was written by a newer octavo; upgrade to read it")
        entry = _checked(entry_of(about))
    except StoreError:
        raise
    except Exception as error:  # JSON may hold anything
        raise StoreError(
            f"{folder / ENTRY_FILE} is damaged ({type(error).__name__}: {error}); remove the entry "
            "and add the text again"
        ) from error
    return entry


def entry_of(values: dict[str, Any], **others: Any) -> StoreEntry:
    """Build an entry of plain values that were checked before, and of `others` in their place."""
    labels = {"names": tuple(values["names"]), "tags": tuple(values["tags"])}
    return StoreEntry(**{**values, **labels, **others})


def _checked(entry: StoreEntry) -> StoreEntry:
    """Return an entry; raises `StoreError` for what cannot be right."""
    wanted_kinds: dict[Any, Any] = {str: str, int: int, float: (int, float)}
    kinds = {one.name: one.type for one in fields(StoreEntry)}
    for name, kind in kinds.items():
        value = getattr(entry, name)
        wanted = wanted_kinds.get(kind, (dict, tuple))
        if not isinstance(value, wanted) or isinstance(value, bool):
            raise StoreError(f"the {name} of an entry is {value!r:.80}")
    if entry.id != id_of(entry.fingerprint, entry.ratio, entry.text_sha256):
        raise StoreError(f"the id {entry.id!r:.40} is not that of its text")
    allowed = {TEXT_FILE, INDEX_FILE, *map(part_file, range(entry.parts))}
    if not set(entry.digests) <= allowed or not {
        INDEX_FILE, *map(part_file, range(entry.parts))
    } <= set(entry.digests):  # fmt: skip
        raise StoreError(f"entry {entry.id} lists the files {', '.join(entry.digests)[:200]}")
    if not all(
        isinstance(one, str) for one in (*entry.names, *entry.tags, *entry.digests.values())
    ):
        raise StoreError(f"the names, tags or digests of entry {entry.id} are no text")
    return entry


def digest_of_file(path: Path) -> str:
    """Return the hex sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_encodable(text: str) -> None:
    """Refuse half a surrogate pair, which no file of text can hold."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise StoreError(
            f"the text holds half a surrogate pair at character {error.start:,}; take it out or "
            "write the whole pair"
        ) from error


def check_label(label: str, what: str) -> str:
    """Return a name or a tag; raises `StoreError` for one that cannot be."""
    try:
        label.encode("utf-8")
    except UnicodeEncodeError as error:
        raise StoreError(f"the {what} {label!r:.80} is not valid UTF-8; choose another") from error
    if not 0 < len(label) <= _MAX_LABEL or not label.isprintable() or label != label.strip():
        raise StoreError(
            f"the {what} {label!r:.80} cannot be used; give 1 to {_MAX_LABEL} printable characters "
            "without spaces around them"
        )
    return label
