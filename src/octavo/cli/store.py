"""`octavo store`: keep texts and their contexts, find them again, move them, clean up."""

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from octavo.cli.inputs import Misuse, check_single_stdin, echo, format_bytes
from octavo.cli.options import (
    SHIPPED,
    AsJson,
    ModelChoice,
    Ratio,
    bars,
    chooses_model,
    open_model,
)
from octavo.errors import OctavoError, StoreError

if TYPE_CHECKING:
    from octavo.ingest import DocumentText
    from octavo.store import StoreEntry

store = typer.Typer(help="Keep contexts and their texts, found by name or content.")
_UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}

Tags = Annotated[list[str] | None, typer.Option("--tag", metavar="TAG", help="Repeatable.")]
Keys = Annotated[list[str], typer.Argument(metavar="NAME|ID...", help="An id may be shortened.")]


@store.command()
@chooses_model
def add(
    places: Annotated[
        list[str],
        typer.Argument(metavar="FILE|FOLDER|PATTERN|-...", help="Documents; - is stdin."),
    ],
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="What to call it; for one document.")
    ] = None,
    tag: Tags = None,
    int8: Annotated[
        bool,
        typer.Option("--int8", help="Keep latents in a byte a number: a quarter of the space."),
    ] = False,
    no_text: Annotated[
        bool, typer.Option("--no-text", help="Keep no raw text: it can then not be quoted.")
    ] = False,
    index_only: Annotated[
        bool, typer.Option("--index-only", help="Fold nothing; loads no model.")
    ] = False,
    ratio: Ratio = None,
    choice: ModelChoice = SHIPPED,
    as_json: AsJson = False,
) -> None:
    """Fold documents and keep them; what is there already is found, not folded again.

    Text, Markdown and code are read directly; PDF, HTML and docx with octavo[documents]. Out of
    folders, files that are no documents are left out.
    """
    check_single_stdin(*places)
    from octavo.store import Store

    opened = Store()
    documents, skipped = _documents(places)
    if name is not None and len(documents) > 1:
        raise Misuse(f"--name names one document, but {len(documents)} are given; use --tag")
    if skipped:
        shown = ", ".join(skipped[:3]) + (", …" if len(skipped) > 3 else "")
        echo(f"not readable as text, and left out: {shown} ({len(skipped):,})", err=True)
    loaded = None
    entries = []
    with bars() as report:
        if not index_only:
            loaded = open_model(choice, report, ratio)
        for document in documents:
            what = Path(document.source).name or "stdin"
            entries.append(
                opened.add(
                    document, model=loaded, ratio=ratio, name=name, tags=tag or (),
                    keep_text=not no_text, precision="int8" if int8 else "full",
                    on_tokens=lambda done, total, what=what: report(what, done, total),  # type: ignore[misc]
                )
            )  # fmt: skip
    _show(entries, as_json)


@store.command("list")
def list_entries(tag: Tags = None, as_json: AsJson = False) -> None:
    """List what is kept, the newest first."""
    from octavo.store import Store

    entries = [one for one in Store().list() if set(tag or ()) <= set(one.tags)]
    _show(entries, as_json)
    if not entries:
        tagged = f" tagged {' and '.join(tag)}" if tag else ""
        echo(f"nothing is kept{tagged}; `octavo store add FILE` keeps a text", err=True)


@store.command()
def show(key: Annotated[str, typer.Argument(metavar="NAME|ID")], as_json: AsJson = False) -> None:
    """Show one entry."""
    from octavo.store import Store

    values = Store().entry(key).to_dict()
    if as_json:
        echo(json.dumps(values))
        return
    for name, value in values.items():
        if name in ("created", "used"):
            value = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(value))
        elif name == "digests":
            name, value = "files", ", ".join(value)
        elif isinstance(value, tuple | list):
            value = ", ".join(value)
        if value != "":
            echo(f"{name.replace('_', ' '):<16} {value}")


@store.command()
def rm(keys: Keys, as_json: AsJson = False) -> None:
    """Remove entries."""
    from octavo.store import Store

    opened = Store()
    entries = [opened.entry(key) for key in keys]  # all are there, or none is removed
    for entry in entries:
        opened.remove(entry.id)
    _show(entries, as_json)


@store.command()
def gc(
    max_size: Annotated[
        str | None,
        typer.Option(
            "--max-size", metavar="SIZE|none",
            help="From now on, remove what was used longest ago beyond this: 500MB, 2GB.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Clean up after killed processes, and keep to the size limit."""
    from octavo.store import Store

    opened = Store()
    limit = parse_size(max_size) if max_size is not None else None
    if max_size is not None:
        opened.limit(limit)
    swept = opened.gc()
    values = {name: getattr(swept, name) for name in swept.__slots__}
    if as_json:
        echo(json.dumps(values))
        return
    echo(", ".join(f"{name.replace('_', ' ')} {value}" for name, value in values.items()))


@store.command()
def verify(as_json: AsJson = False) -> None:
    """Compare every file with its sha256; exit code 1 if any is damaged."""
    from octavo.store import Store

    verdict = Store().verify()
    if as_json:
        echo(json.dumps({name: getattr(verdict, name) for name in verdict.__slots__}))
    else:
        for problem in verdict.problems:
            echo(problem)
        left = f"; {verdict.unfinished} left by killed processes (octavo store gc)"
        echo(f"{verdict.entries:,} entries, {len(verdict.problems)} problems"
             + (left if verdict.unfinished else ""))  # fmt: skip
    if verdict.problems:
        raise typer.Exit(1)


@store.command("export")
def export_entries(
    file: Annotated[Path, typer.Argument(metavar="FILE.zip", help="Replaced once it is whole.")],
    keys: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME|ID]...", help="By default all.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write entries into one file."""
    from octavo.store import Store

    opened = Store()
    entries = opened.export(keys or [one.id for one in opened.list()], file)
    _show(entries, as_json)


@store.command("import")
def import_entries(
    file: Annotated[Path, typer.Argument(metavar="FILE.zip")], as_json: AsJson = False
) -> None:
    """Read entries that `export` wrote, all of them or none."""
    from octavo.store import Store

    _show(Store().import_(file), as_json)


def parse_size(size: str) -> int | None:
    """Return the bytes of a size such as `2GB`; None for `none`."""
    text = size.strip().lower()
    if text == "none":
        return None
    number = text.rstrip("kmgtb")
    try:
        found = int(float(number) * _UNITS[text[len(number) :].strip()])
    except (ValueError, KeyError, OverflowError):
        raise Misuse(f"--max-size is {size!r}, expected such as 500MB or 2GB, or none") from None
    if found < 1:
        raise Misuse(f"--max-size is {size!r}, expected at least 1 byte, or none")
    return found


def line_of(entry: "StoreEntry") -> str:
    """Return an entry in one line."""
    folded = f"{entry.latents:,} latents ({entry.ratio}x)" if entry.parts else "indexed"
    parts = f" in {entry.parts} parts" if entry.parts > 1 else ""
    lost = f", int8 (error {entry.loss:.1%})" if entry.precision == "int8" and entry.parts else ""
    tags = f"  {' '.join('#' + tag for tag in entry.tags)}" if entry.tags else ""
    return (
        f"{entry.id}  {entry.title}  {entry.characters:,} characters, {folded}{parts}{lost}, "
        f"{format_bytes(entry.num_bytes)}{tags}"
    )


def _show(entries: "list[StoreEntry]", as_json: bool) -> None:
    if as_json:
        values: Any = [one.to_dict() for one in entries]
        echo(json.dumps(values))
        return
    for one in entries:
        echo(line_of(one))


def _documents(places: list[str]) -> "tuple[list[DocumentText], list[str]]":
    """Read what the places name; also name what is no text in folders and patterns."""
    from octavo.ingest import find_files, read_document, read_stream

    documents = []
    skipped: list[str] = []
    for place in places:
        if place == "-":
            documents.append(read_stream(sys.stdin.buffer, "stdin"))
            continue
        is_one = Path(place).expanduser().is_file()
        for file in find_files([place]):
            try:
                documents.append(read_document(file))
            except OctavoError:
                if is_one:
                    raise
                skipped.append(str(file))
    if not documents:
        raise StoreError("none of the files could be read as text; give others")
    return documents, skipped
