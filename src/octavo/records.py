"""Read the records of a file, plain or compressed, or stream them from a hub dataset.

Formats: .jsonl and .json (a list, or an object), each also as .zst, .parquet, and .txt, which is
one record, `{"text": …}`. A record is whatever JSON holds; what it means is for the caller to say.
"""

import contextlib
import importlib
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from octavo.errors import InputError, MissingExtraError, OctavoError

_WINDOW_BYTES = 2**31
"""How far back a .zst may refer: `zstd --long=31` writes such files, and decoders refuse them."""
MAX_RECORD_CHARS = 1 << 28
"""Longer lines, and longer .txt and .json files, are refused: no one text comes near, while a line
without an end, or a small .zst that unpacks to it, would fill the memory."""
_LATER = "surrogateescape"
"""How bytes that are no UTF-8 are read: as half pairs, refused with the line they stand in."""
_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]")


def read_dataset(path: Path) -> Iterator[Any]:
    """Yield the records of one file.

    Raises `InputError` for a file that is missing, damaged or of an unknown format, and
    `MissingExtraError` where a library is needed to open it.
    """
    name = path.name.removesuffix(".zst")
    try:
        if path.suffix == ".txt":
            with path.open(encoding="utf-8-sig") as file:
                yield {"text": _bounded(file, str(path))}
        elif name.endswith(".parquet"):
            yield from _parquet_rows(path)
        elif name.endswith(".jsonl"):
            # Not splitlines(): U+2028 inside a text is no end of line.
            for number, line in enumerate(_lines_of(path), 1):
                if line.strip():
                    yield _json(line, f"{path}, line {number},")
        elif name.endswith(".json"):
            with _open_text(path) as file:
                value = _json(_bounded(file, str(path)), str(path))
            yield from value if isinstance(value, list) else [value]
        else:
            raise InputError(
                f"{path} has an unknown format; use .txt, .json, .jsonl, .jsonl.zst or .parquet"
            )
    except OctavoError:
        raise
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or no parquet file
        raise InputError(f"cannot read {path}: {error}; fix it or remove it") from error


def stream_hub(name: str) -> Iterator[Any]:
    """Yield the records of `hf:NAME:SPLIT` or `hf:NAME:CONFIG:SPLIT` as they arrive.

    Raises `InputError` for a malformed name and for whatever keeps the hub from answering.
    """
    _, *fields = name.split(":")
    if len(fields) not in (2, 3) or not all(fields):
        raise InputError(f"{name!r} is not hf:NAME:SPLIT or hf:NAME:CONFIG:SPLIT")
    dataset, config, split = fields[0], fields[1] if fields[2:] else None, fields[-1]
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as error:
        raise _missing(f"reading {name}", "datasets") from error
    try:
        yield from datasets.load_dataset(dataset, config, split=split, streaming=True)
    except Exception as error:  # no network, no such name, no access: each has a class of its own
        raise InputError(
            f"cannot stream {name}: {type(error).__name__}: {error}; check the name and the "
            "network, or download the dataset and name its files"
        ) from error


def _json(text: str, where: str) -> Any:
    """Return what a text holds; half a surrogate pair, which nothing can encode, is refused."""
    try:
        value = json.loads(text)
        if _HALF_PAIR.search(text):  # written as an escape, or left of a byte that is no UTF-8
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON ({error}); fix it or remove it") from error


def _lines_of(path: Path) -> Iterator[str]:
    """Yield the lines of a file, refusing one that is far too long before it is whole."""
    with _open_text(path) as file:
        number = 0
        while line := file.readline(MAX_RECORD_CHARS + 1):
            number += 1
            if len(line) > MAX_RECORD_CHARS:
                raise _too_long(f"{path}, line {number},")
            yield line


def _bounded(file: TextIO, where: str) -> str:
    text = file.read(MAX_RECORD_CHARS + 1)
    if len(text) > MAX_RECORD_CHARS:
        raise _too_long(where)
    return text


def _too_long(where: str) -> InputError:
    return InputError(
        f"{where} has more than {MAX_RECORD_CHARS:,} characters; split it into several records"
    )


@contextlib.contextmanager
def _open_text(path: Path) -> Iterator[TextIO]:
    """Open a plain or compressed file."""
    if path.suffix != ".zst":
        with path.open(encoding="utf-8-sig", errors=_LATER, newline="\n") as plain:
            yield plain
        return
    try:
        import zstandard
    except ImportError as error:
        raise _missing("reading .zst", "zstandard") from error
    try:
        with path.open("rb") as packed:
            decompressor = zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES)
            stream = decompressor.stream_reader(packed, read_across_frames=True)
            yield io.TextIOWrapper(stream, "utf-8-sig", _LATER, newline="\n")
    except zstandard.ZstdError as error:
        raise OSError(f"not a zstandard file ({error})") from error


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise _missing("reading .parquet", "pyarrow") from error
    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches():
            yield from batch.to_pylist()


def _missing(what: str, package: str) -> MissingExtraError:
    return MissingExtraError(f"{what} needs {package}: pip install 'octavo[data]'")
