"""`octavo agent`: ask an agent that skims and expands, or calibrate its model."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from octavo.cli.ask import look_up, open_store
from octavo.cli.inputs import Misuse, check_single_stdin, echo, read_question
from octavo.cli.options import (
    SHIPPED,
    AsJson,
    ModelChoice,
    Ratio,
    bars,
    chooses_model,
    open_model,
)
from octavo.progress import Progress

if TYPE_CHECKING:
    from octavo.agent import AgentAnswer
    from octavo.context import CompressedContext
    from octavo.model import Model

SHOWN = 5
"""Passages that are printed, those that hold the answer first."""
MADE_UP = 24
"""Items that a model is calibrated on where none are given."""


@chooses_model
def agent(
    question: Annotated[
        str | None, typer.Argument(metavar="[QUESTION]", help="- reads it from stdin.")
    ] = None,
    places: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FILE|NAME]...",
            help="Files, folders, patterns, saved contexts, and names or ids in the store.",
        ),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(metavar="POLICY", help="model, retrieval, likelihood or hybrid."),
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(metavar="LAYOUT", help="alone, 'in place' or appended: expanded passages."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, metavar="N", help="At most N rounds.")] = 5,
    budget: Annotated[
        int | None,
        typer.Option(min=1, metavar="TOKENS", help="Of expanded passages; by default a tenth."),
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write every round there, as JSON lines.")
    ] = None,
    page: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="Write every round there, to be read.")
    ] = None,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate",
            help="Measure which policy and layout this model is best at, and how far to trust it, "
            'on FILEs of {"context", "question", "answers"} lines, or on made-up facts.',
        ),
    ] = False,
    ratio: Ratio = None,
    choice: ModelChoice = SHIPPED,
    as_json: AsJson = False,
) -> None:
    """Answer a question by skimming texts as latents and expanding passages.

    The passages come first, with their places; then the answer, if the model is sure of it. What it
    cost goes to stderr.
    """
    if calibrate:
        _calibrate(choice, [one for one in (question, *(places or [])) if one], as_json)
        return
    if not question or not places:
        raise Misuse("give a question and at least one text or context to read")
    check_single_stdin(question, *places)
    asked = read_question(question)
    found = list(_find(places))
    settings: dict[str, Any] = {
        "policy": policy, "layout": layout, "max_rounds": rounds, "budget": budget, "ratio": ratio
    }  # fmt: skip
    with bars() as report:
        loaded = open_model(choice, report, ratio)
        answer = _answer(loaded, asked, found, settings, report)
    if trace is not None or page is not None:
        from octavo.agent.trace import write_jsonl, write_page

        if trace is not None:
            write_jsonl(trace, asked, answer)
        if page is not None:
            write_page(page, asked, answer)
    if as_json:
        named = [{**vars_of(one), "file": found[one.context].title} for one in answer.citations]
        echo(json.dumps({**answer.to_dict(), "citations": named}))
        return
    _show(answer, [one.title for one in found])


def vars_of(value: Any) -> dict[str, Any]:
    """Return the fields of a value."""
    return {name: getattr(value, name) for name in value.__slots__}


class _Found(NamedTuple):
    """Something to read: a text, or a context of some model with its text."""

    title: str
    text: str | None
    context: "CompressedContext | Path | None" = None


def _find(places: list[str]) -> Iterator[_Found]:
    """Yield what places name."""
    from octavo.ingest import DocumentText

    store, _ = open_store()
    for place in places:
        if (path := Path(place).expanduser()).suffix == ".safetensors":
            yield _Found(place, None, path)
            continue
        for title, found in look_up(place, store):
            if isinstance(found, DocumentText):
                yield _Found(title, found.text)
            elif store is not None and found.parts == 1:
                context = store.context(found.id)
                yield _Found(title, context.text, context)
            elif store is not None:  # in parts, places would be counted from their beginnings
                yield _Found(title, store.text(found.id))


def _readable(model: "Model", found: _Found) -> "CompressedContext | str":
    """Return a context of this model, or else the text."""
    if isinstance(found.context, Path):
        return model.load_context(found.context)
    if found.context is not None and found.text is not None:
        is_own = found.context.fingerprint == model.fingerprint
        return found.context if is_own else found.text
    return found.context or found.text or ""


def _answer(
    model: "Model",
    question: str,
    found: list[_Found],
    settings: dict[str, Any],
    report: Progress,
) -> "AgentAnswer":
    from octavo.agent import Agent

    contexts = [_readable(model, one) for one in found]
    report("answering", 0, 0)
    return Agent(model, contexts, **settings).ask(question)


def _show(answer: "AgentAnswer", places: list[str]) -> None:
    """Print passages with their places, then the answer or that there is none to trust."""
    for one in answer.citations[:SHOWN]:
        under = f"  {one.heading}" if one.heading else ""
        place = f"{places[one.context]}:{one.line}"
        echo(f"{place}  [{one.start}-{one.end}]{under}")
        echo(f"    {' '.join(one.text.split())}\n")
    if (rest := len(answer.citations) - SHOWN) > 0:
        echo(f"(and {rest} more that were read; --json and --page show them all)\n")
    if answer.is_sure:
        echo(f"{answer.text}  ({answer.confidence:.0%} sure)")
    elif answer.finish == "quoted":
        echo("The model says nothing; the passages above are what the text says.")
    elif answer.citations:
        said = "was not calibrated" if answer.confidence is None else "is not sure"
        echo(f"The model {said}; the passages above are what the text says. It would say:")
        echo(f"    {answer.text}")
    else:
        echo(f"The model has only latents to go by and would say: {answer.text}")
    echo(
        f"{len(answer.rounds)} rounds, {answer.positions:,} positions read and written, "
        f"{answer.cost:.0%} of the {answer.source_tokens:,} tokens of the texts; "
        f"{answer.seconds:.1f} s",
        err=True,
    )


def _calibrate(choice: ModelChoice, files: list[str], as_json: bool) -> None:
    """Measure a model and keep what was found."""
    from octavo.agent.calibrate import calibrate, made_up, read_items
    from octavo.confidence import write_measured
    from octavo.records import read_dataset

    items = [
        item for file in files for item in read_items(read_dataset(Path(file).expanduser()))
    ] or made_up(MADE_UP)
    about = ", ".join(Path(file).name for file in files) or "made-up facts in a story"
    with bars(lines=10) as report:
        loaded = open_model(choice, report)
        measured = calibrate(loaded, items, about=f"{len(items)} items: {about}", progress=report)
    place = write_measured(measured)
    if as_json:
        echo(json.dumps({"path": str(place), "accuracy": dict(measured.accuracy),
                         "policy": measured.policy, "layout": measured.layout}))  # fmt: skip
        return
    for pair, share in measured.accuracy.items():
        echo(f"{pair:<24} {share:.0%} right")
    echo(f"best: {measured.policy}, {measured.layout}; kept in {place}")
    for reading, curve in measured.curves.items():
        told = "-" if curve.auc is None else f"{curve.auc:.2f}"
        echo(f"confidence from {reading}: AUC {told} on {curve.num_items} answers")
