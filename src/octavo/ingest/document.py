"""One document as text: decoded strictly, or extracted by a process that may fail."""

import codecs
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from octavo.errors import InputError
from octavo.ingest.child import extract

Kind = Literal["prose", "markdown", "code"]
MAX_BYTES = 1 << 30
_PIECE_BYTES = 1 << 20
_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
EXTRACTED = {".pdf": "pdf", ".html": "html", ".htm": "html", ".xhtml": "html", ".docx": "docx"}
"""Suffixes of what is not text itself, by who reads them."""
MARKDOWN = frozenset({".md", ".markdown", ".mdx"})
CODE = frozenset(
    ".py .pyi .pyx .js .mjs .cjs .jsx .ts .tsx .java .kt .kts .scala .groovy .c .h .cc "
    ".cpp .cxx .hh .hpp .cu .cuh .cs .fs .go .rs .rb .php .pl .pm .lua .r .jl .swift .m "
    ".mm .dart .ex .exs .erl .hs .ml .mli .clj .lisp .el .sh .bash .zsh .fish .ps .sql "
    ".vim .zig .nim .v .sv .vhd .tf .proto .css .scss .less .vue .svelte .toml .ini .cfg "
    ".conf .yaml .yml .json .jsonl .xml .tex .cmake .mk .gradle".split()
)
PROSE = frozenset({".txt", ".text", ".rst", ".adoc", ".org", ".log", ".csv", ".tsv", ".srt", ""})


@dataclass(frozen=True, kw_only=True, slots=True)
class DocumentText:
    """A text and what it is."""

    text: str
    kind: Kind
    source: str
    """The file it was read from; empty for a stream."""


def read_document(path: str | Path) -> DocumentText:
    """Read one file as text, by its suffix.

    PDF, HTML and docx are read by a child process with limits on time and memory. Raises
    `InputError` for what cannot be read or holds no text, and `MissingExtraError`.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise InputError(f"{path} is a folder; give a file, or add the folder's files")
    suffix = path.suffix.lower()
    if suffix in EXTRACTED:
        if not path.is_file():
            raise InputError(f"no file {path}; check the path")
        text = extract(path, EXTRACTED[suffix])
        return DocumentText(text=text, kind="prose", source=str(path))
    try:
        with path.open("rb") as file:
            text = _decode(_read(file, str(path)), str(path))
    except FileNotFoundError:
        raise InputError(f"no file {path}; check the path") from None
    except (OSError, ValueError) as error:  # the latter for a NUL byte in the name
        if isinstance(error, InputError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read {path}: {reason}; check its name and rights") from error
    return DocumentText(text=text, kind=kind_of(path), source=str(path))


def read_stream(file: IO[bytes], name: str, kind: Kind = "prose") -> DocumentText:
    """Read a stream such as stdin as text."""
    return DocumentText(text=_decode(_read(file, name), name), kind=kind, source="")


def kind_of(path: Path) -> Kind:
    """Return how a text file is cut into passages, by its suffix."""
    suffix = path.suffix.lower()
    if suffix in MARKDOWN:
        return "markdown"
    return "code" if suffix in CODE else "prose"


def _read(file: IO[bytes], name: str) -> bytes:
    pieces: list[bytes] = []
    size = 0
    while piece := file.read(_PIECE_BYTES):
        pieces.append(piece)
        size += len(piece)
        if size > MAX_BYTES:
            raise InputError(f"{name} is larger than {MAX_BYTES >> 30} GiB; split it")
        if len(pieces) == 1 and b"\0" in piece and not piece.startswith(_wide_marks()):
            raise InputError(f"{name} looks binary (it holds a NUL byte); give a text")
    return b"".join(pieces)


def _wide_marks() -> tuple[bytes, ...]:
    return tuple(mark for mark, encoding in _BOMS if encoding != "utf-8")


def _decode(data: bytes, name: str) -> str:
    """Decode by the byte order mark, or strictly as UTF-8; an encoding is never guessed."""
    mark, encoding = next((one for one in _BOMS if data.startswith(one[0])), (b"", "utf-8"))
    try:
        text = data[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{name} is not {encoding.upper()} (byte 0x{data[len(mark) + error.start]:02x} at "
            f"offset {len(mark) + error.start}); convert it first, for example: iconv -f "
            "ISO-8859-1 -t UTF-8 FILE"
        ) from error
    if "\0" in text:
        raise InputError(f"{name} looks binary (it holds a NUL character); give a text")
    if not text.strip():
        raise InputError(f"{name} is empty or holds only white space; there is nothing to read")
    return text
