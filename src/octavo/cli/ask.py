"""`octavo ask`: the passages that answer a question, then what the model makes of them."""

import functools
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from octavo.cli.inputs import Misuse, check_single_stdin, echo, read_question
from octavo.cli.options import (
    SHIPPED,
    AsJson,
    ModelChoice,
    bars,
    chooses_model,
    open_model,
)
from octavo.errors import InputError, OctavoError, StoreError
from octavo.text import visible

if TYPE_CHECKING:
    from octavo.ask.answer import PassageAnswer
    from octavo.ask.sources import FoundPassage, TextSource
    from octavo.ingest import DocumentText
    from octavo.store import Store, StoreEntry

UNSURE = "the model is not sure; the passages above are what the text says"
UNMEASURED = (
    "how far this model can be trusted was never measured (octavo agent --calibrate); the passages "
    "above are what the text says"
)


@chooses_model
def ask(
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="- reads it from stdin.")],
    places: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FILE|NAME]...",
            help="Files, folders, patterns, and names or ids in the store; by default all of it.",
        ),
    ] = None,
    passages: Annotated[
        int, typer.Option(min=1, metavar="N", help="Show at most so many passages.")
    ] = 3,
    budget: Annotated[
        int,
        typer.Option(min=1, metavar="TOKENS", help="Of passages that the model reads."),
    ] = 256,
    raw: Annotated[
        bool, typer.Option("--raw", help="Let the model read the whole text instead of passages.")
    ] = False,
    no_answer: Annotated[
        bool, typer.Option("--no-answer", help="Show passages alone; loads no model.")
    ] = False,
    choice: ModelChoice = SHIPPED,
    as_json: AsJson = False,
) -> None:
    """Find the passages that answer a question, in files or in the store.

    The passages come first, each with its file, line, heading and characters. Then comes the
    model's answer with its confidence, if the model is sure of it.
    """
    places = places or []
    check_single_stdin(question, *places)
    question = read_question(question)
    if raw and no_answer:
        raise Misuse("--raw is about the answer; drop it or --no-answer")
    from octavo.ask.answer import answer_from, check_question
    from octavo.ask.sources import find_passages

    check_question(question, budget)
    sources = _sources(places)
    # Passages are of about 64 tokens; the model may read more of them than are shown.
    found = find_passages(question, sources, max(passages, budget // 16))
    if not found:
        raise InputError(
            f"no passage of {_count(len(sources), 'text')} holds a word of the question; ask in "
            "words that the text may use"
        )
    shown = found[:passages]
    if not as_json:
        _show(shown)
        sys.stdout.flush()
    answer = None
    if not no_answer:
        with bars() as report:
            loaded = open_model(choice, report)
            report("answering", 0, 0)
            read = _whole(sources, found) if raw else found
            answer = answer_from(loaded, question, read, budget=budget)
    if as_json:
        echo(json.dumps(_to_dict(question, shown, answer)))
    elif answer is not None:
        _say(answer)


def _say(answer: "PassageAnswer") -> None:
    """Print an answer with its confidence, or that there is none to trust."""
    if answer.is_sure:
        echo(f"{answer.text}  ({answer.confidence:.0%} sure)")
    else:
        echo(UNMEASURED if answer.confidence is None else UNSURE)
    usage, timings = answer.completion.usage, answer.completion.timings
    echo(
        f"prompt {usage.prompt_tokens:,}, answer {usage.completion_tokens:,} tokens; "
        f"total {timings.total_seconds:.2f} s",
        err=True,
    )


def _show(found: "Sequence[FoundPassage]") -> None:
    """Print passages with their places and the question's words marked."""
    bold = ("\033[1m", "\033[0m") if sys.stdout.isatty() and "NO_COLOR" not in os.environ else None
    for one in found:
        place = one.passage
        under = f"  {place.heading}" if place.heading else ""
        echo(f"{one.title}:{place.line}  [{place.start}-{place.end}]{under}")
        lines = _marked(one, bold or ("**", "**")).strip("\n").splitlines()
        typer.echo("".join(f"    {line.rstrip()}\n" for line in lines if line.strip()))


def _marked(one: "FoundPassage", mark: tuple[str, str]) -> str:
    """Return a passage's text, made harmless to terminals, with marks around the words."""
    pieces, at = [], 0
    for start, end in one.marks:
        pieces += [visible(one.text[at:start]), mark[0], visible(one.text[start:end]), mark[1]]
        at = end
    return "".join([*pieces, visible(one.text[at:])])


def _to_dict(
    question: str, found: "Sequence[FoundPassage]", answer: "PassageAnswer | None"
) -> dict[str, Any]:
    values: dict[str, Any] = {
        "question": question,
        "passages": [
            {
                "source": one.title,
                "line": one.passage.line,
                "heading": one.passage.heading,
                "start": one.passage.start,
                "end": one.passage.end,
                "score": one.score,
                "text": one.text,
                "marks": [list(mark) for mark in one.marks],
            }
            for one in found
        ],
        "answer": None,
    }
    if answer is not None:
        values["answer"] = {
            "text": answer.text,
            "confidence": answer.confidence,
            "is_sure": answer.is_sure,
            "usage": answer.completion.to_dict()["usage"],
            "timings": answer.completion.to_dict()["timings"],
        }
    return values


# -- where to look ---------------------------------------------------------------------------------


def _sources(places: Sequence[str]) -> "list[TextSource]":
    """Return what the places name, each text once; without places, the whole store."""
    store, problem = open_store()
    if not places:
        if store is None:
            raise problem or StoreError("there is no store")
        found = _in_store(store)
        if not found:
            raise StoreError(
                f"the store {store.folder} is empty; name a file to ask about, or add some with "
                "octavo store add"
            )
        return found
    found = []
    for place in places:
        found += _named(place, store)
    return found


def open_store() -> "tuple[Store | None, OctavoError | None]":
    """Return the store, or what is wrong with it: files can be read without it."""
    from octavo.store import Store

    try:
        return Store(), None
    except OctavoError as error:
        return None, error


def _named(place: str, store: "Store | None") -> "Iterator[TextSource]":
    """Yield the texts of one place."""
    from octavo.ask.sources import TextSource
    from octavo.ingest import DocumentText

    for title, found in look_up(place, store):
        if isinstance(found, DocumentText):
            yield _of_text(found, title, store)
        elif store is not None:
            read = functools.partial(store.text, found.id)
            yield TextSource(title=title, index=store.index(found.id), read=read)


def look_up(place: str, store: "Store | None") -> "Iterator[tuple[str, DocumentText | StoreEntry]]":
    """Yield what a place names with its title: a file, a folder, a pattern, stdin, or an entry."""
    import glob

    from octavo.ingest import find_files, read_document, read_stream

    path = Path(place).expanduser()
    if place == "-":
        yield "stdin", read_stream(sys.stdin.buffer, "stdin")
    elif path.exists() or glob.has_magic(place) or store is None:
        is_many = not path.is_file()
        skipped = 0
        for file in find_files([place]):
            try:
                document = read_document(file)
            except OctavoError:
                if not is_many:
                    raise
                skipped += 1
                continue
            yield str(file), document
        if skipped:
            echo(f"{place}: {_count(skipped, 'file')} could not be read as text", err=True)
    else:
        try:
            entry = store.entry(place)
        except StoreError as error:
            raise InputError(f"{error}; nor is there a file of that name") from error
        yield entry.title, entry


def _of_text(document: Any, title: str, store: "Store | None") -> "TextSource":
    from octavo.ask.index import PassageIndex
    from octavo.ask.passages import cut_passages
    from octavo.ask.sources import TextSource

    text, kind = document.text, document.kind
    try:
        index = store.index_of(text, kind) if store is not None else None
    except OctavoError:  # a full disk: the index is made, not kept
        index = None
    index = index or PassageIndex.build(text, cut_passages(text, kind=kind))
    return TextSource(title=title, index=index, read=lambda: text)


def _in_store(store: "Store") -> "list[TextSource]":
    """Return every text of the store, once however often it was folded."""
    from octavo.ask.sources import TextSource

    seen: set[str] = set()
    found = []
    for entry in store.list():
        if not entry.has_text or entry.text_sha256 in seen:
            continue
        seen.add(entry.text_sha256)
        try:
            index = store.open_index(entry)
        except OctavoError:
            index = store.index(entry.id)  # made anew where it is damaged
        found.append(
            TextSource(title=entry.title, index=index, read=lambda key=entry.id: store.text(key))  # type: ignore[misc]
        )
    return found


def _whole(
    sources: "Sequence[TextSource]", found: "Sequence[FoundPassage]"
) -> "list[FoundPassage]":
    """Return the whole text of the best passage's source, as one passage."""
    from dataclasses import replace

    best = found[0]
    return [replace(best, text=sources[best.source].read())]


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
