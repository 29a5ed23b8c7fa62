"""What a user gives to the command line and is shown: texts, questions, places to write to."""

import codecs
import os
import sys
from pathlib import Path
from typing import IO

import typer

from octavo.errors import ContextError, InputError, OctavoError
from octavo.files import WriteError
from octavo.text import visible

STDIN = "-"
MAX_BYTES = 1 << 30
"""Far above what any decoder holds; keeps an endless stream from filling the memory."""
_PIECE_BYTES = 1 << 20


class Misuse(OctavoError):
    """A command line that contradicts itself; exit code 2."""


def echo(message: object = "", *, nl: bool = True, err: bool = False, exact: bool = False) -> None:
    """Write a line, on stdout or stderr, that cannot act on a terminal, whoever wrote it.

    What is `exact` goes to files and pipes as it is.
    """
    is_exact = exact and not sys.stdout.isatty()
    typer.echo(message if is_exact else visible(str(message)), nl=nl, err=err)


def one_line(text: str) -> str:
    """Return a message without line breaks, and with what is not UTF-8 (file names) escaped."""
    return " ".join(text.encode("utf-8", "backslashreplace").decode("utf-8").split())


def read_text(place: str) -> str:
    """Read a text strictly as UTF-8, without its byte order mark; `-` is stdin.

    Raises `InputError` for whatever is not a text with something in it.
    """
    if place == STDIN:
        return _decode(_read(sys.stdin.buffer, "stdin"), "stdin")
    path = Path(place).expanduser()
    if path.is_dir():
        raise InputError(f"{place} is a folder; give a text file")
    try:
        with path.open("rb") as file:
            data = _read(file, place)
    except FileNotFoundError:
        raise InputError(f"no file {place}; check the path, or give - to read stdin") from None
    except (OSError, ValueError) as error:  # the latter for a NUL byte in the name
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read {place}: {reason}; check its name and rights") from error
    return _decode(data, place)


def _read(file: IO[bytes], name: str) -> bytes:
    """Read all bytes, stopping at the first sign that they are no text or too many."""
    pieces: list[bytes] = []
    size = 0
    while piece := file.read(_PIECE_BYTES):
        if not pieces and piece.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise InputError(f"{name} is UTF-16, not UTF-8; {_conversion(name, 'UTF-16')}")
        if (at := piece.find(b"\0")) >= 0:
            raise InputError(
                f"{name} looks binary (a NUL byte at offset {size + at}); give a plain text file"
            )
        pieces.append(piece)
        size += len(piece)
        if size > MAX_BYTES:
            raise InputError(f"{name} is larger than {format_bytes(MAX_BYTES)}; split it")
    return b"".join(pieces)


def _decode(data: bytes, name: str) -> str:
    try:
        text = data.removeprefix(codecs.BOM_UTF8).decode("utf-8")
    except UnicodeDecodeError as error:
        skipped = len(codecs.BOM_UTF8) if data.startswith(codecs.BOM_UTF8) else 0
        raise InputError(
            f"{name} is not UTF-8 (byte 0x{error.object[error.start]:02x} at offset "
            f"{error.start + skipped}); {_conversion(name, 'ISO-8859-1')}"
        ) from error
    if not text:
        raise InputError(f"{name} is empty; give a text with something in it")
    if text.isspace():
        raise InputError(f"{name} holds only white space; give a text with something in it")
    return text


def _conversion(name: str, encoding: str) -> str:
    file = "FILE" if name == "stdin" else name
    return f"convert it first, for example: iconv -f {encoding} -t UTF-8 {file}"


def read_question(question: str) -> str:
    """Return the question, from stdin for `-`; refuse one that asks nothing."""
    if question == STDIN:
        return read_text(STDIN).strip()
    if not question.strip():
        raise Misuse("the question is empty; say what to answer")
    try:
        question.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            "the question is not valid UTF-8; check the terminal's encoding"
        ) from error
    return question


def check_name(path: Path) -> None:
    """Refuse a context's file name that safetensors cannot open."""
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError as error:
        raise ContextError(f"{path} is not UTF-8; give the context a name in UTF-8") from error


def check_contexts_exist(places: list[Path]) -> None:
    """Refuse missing context files before a model is loaded for them."""
    for place in places:
        check_name(place)
        if not place.is_file():
            raise ContextError(f"no context at {place}; give a file that `octavo compress` wrote")


def check_single_stdin(*places: str) -> None:
    """Refuse a line that would read stdin twice."""
    if places.count(STDIN) > 1:
        raise Misuse("stdin can be read only once; give - in one place and files elsewhere")


def check_output(output: Path, source: str) -> None:
    """Refuse, before any work, a place that the context could not be written to."""
    if str(output) == STDIN:
        raise Misuse("a context is not written to stdout; give -o a file name")
    check_name(output)
    if source != STDIN and output.exists() and output.samefile(Path(source).expanduser()):
        raise Misuse(f"-o {output} is the text itself; give another name")
    if output.is_dir():
        raise WriteError(f"cannot write {output}: it is a folder; give a file name")
    folder = output.parent
    if not folder.is_dir():
        raise WriteError(f"cannot write {output}: the folder {folder} does not exist; create it")
    if not os.access(folder, os.W_OK):
        raise WriteError(f"cannot write {output}: no permission in {folder}; choose another place")


def format_bytes(count: int) -> str:
    """Return a size for people: `1.2 MB`."""
    size = float(count)
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
