"""`octavo compress` and `octavo generate`: texts in, contexts and answers out."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from octavo.cli.inputs import (
    STDIN,
    check_contexts_exist,
    check_output,
    check_single_stdin,
    echo,
    format_bytes,
    read_question,
    read_text,
)
from octavo.cli.options import (
    SHIPPED,
    AsJson,
    Contexts,
    Files,
    MaxNewTokens,
    ModelChoice,
    Quiet,
    Ratio,
    Seed,
    Temperature,
    bars,
    chooses_model,
    open_model,
    say_limits,
)
from octavo.progress import Progress

if TYPE_CHECKING:
    from octavo.completion import Completion
    from octavo.context import CompressedContext
    from octavo.ingest import DocumentText
    from octavo.model import Model


@chooses_model
def compress(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE|-",
            help="A UTF-8 text; - is stdin. PDF, HTML and docx with octavo[documents].",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="OUT.safetensors",
            help="Where the context goes; by default into the store.",
        ),
    ] = None,
    split: Annotated[
        bool,
        typer.Option(
            "--split",
            help="Write a text that does not fit as parts that do: OUT-1.safetensors and so on.",
        ),
    ] = False,
    ratio: Ratio = None,
    choice: ModelChoice = SHIPPED,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Fold a text into latents, saved as a context.

    An existing file at OUT is replaced, in one step, once the new one is whole. Without OUT the
    store keeps it (octavo store list), in parts where it is long, and folds no text twice.
    """
    if output is None:
        _compress_into_store(file, choice, ratio, as_json)
        return
    check_output(output, file)
    document = _read_document(file)
    with bars() as report:
        loaded = open_model(choice, report, ratio)
        pieces = _pieces(loaded, document, ratio) if split else [document.text]
        for number, piece in enumerate(pieces, start=1):
            place = output
            if len(pieces) > 1:
                place = output.with_name(f"{output.stem}-{number}{output.suffix}")
                check_output(place, file)
            started = time.perf_counter()
            context = _compress(loaded, piece, ratio, report)
            context.save(place)
            _say_compressed(context, place, time.perf_counter() - started, as_json)


def _pieces(model: "Model", document: "DocumentText", ratio: int | None) -> list[str]:
    from octavo.ask.passages import cut_passages
    from octavo.generate import served_ratio
    from octavo.store.folder import pieces_that_fit

    passages = cut_passages(document.text, kind=document.kind)
    used = served_ratio(model.engine, ratio)
    return list(pieces_that_fit(model, document.text, passages, used))


def _say_compressed(
    context: "CompressedContext", place: Path, seconds: float, as_json: bool
) -> None:
    """Print what was written, as a line and, if wanted, as a JSON object."""
    size = place.stat().st_size
    line = (
        f"{place}: {context.source_tokens:,} tokens -> {context.num_latents:,} latents "
        f"({context.ratio}x), {format_bytes(size)}, {context.compress_seconds:.1f} s"
    )
    echo(line, err=as_json)
    if as_json:
        _echo_json(
            {
                "text": "",
                "path": str(place),
                "usage": {
                    "source_tokens": context.source_tokens,
                    "latents": context.num_latents,
                    "ratio": context.ratio,
                    "prompt_tokens": 0,
                    "completion_tokens": 0,
                    "cached_tokens": 0,
                },
                "timings": {
                    "compress_seconds": context.compress_seconds,
                    "ttft_seconds": 0.0,
                    "total_seconds": seconds,
                },
                "bytes": size,
                "fingerprint": context.fingerprint,
            }
        )


def _read_document(file: str) -> "DocumentText":
    """Read a file as text, by its suffix; strictly as UTF-8 where it is text itself."""
    from octavo.ingest import EXTRACTED, DocumentText, kind_of, read_document

    if Path(file).suffix.lower() in EXTRACTED:
        return read_document(file)
    is_file = file != STDIN
    kind = kind_of(Path(file)) if is_file else "prose"
    return DocumentText(text=read_text(file), kind=kind, source=file if is_file else "")


def _compress_into_store(file: str, choice: ModelChoice, ratio: int | None, as_json: bool) -> None:
    from octavo.cli.store import line_of
    from octavo.store import Store

    document = _read_document(file)
    opened = Store()
    with bars() as report:
        loaded = open_model(choice, report, ratio)
        entry = opened.add(
            document,
            model=loaded,
            ratio=ratio,
            on_tokens=lambda done, total: report("compressing", done, total),
        )
    if as_json:
        _echo_json(entry.to_dict())
    else:
        echo(line_of(entry))


@chooses_model
def generate(
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="- reads it from stdin.")],
    context: Contexts = None,
    file: Files = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Put the uncompressed text in the prompt: the baseline.")
    ] = False,
    ratio: Ratio = None,
    max_new_tokens: MaxNewTokens = None,
    temperature: Temperature = 0.0,
    seed: Seed = None,
    stop: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="Ends the answer, and is left out of it; repeatable."),
    ] = None,
    no_stream: Annotated[
        bool, typer.Option("--no-stream", help="Print the answer once it is whole.")
    ] = False,
    choice: ModelChoice = SHIPPED,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Answer a question about contexts and texts.

    In the prompt contexts come first, then files, then the question. Neither is needed. The answer
    goes to stdout as it is made, and its account to stderr, unless --quiet.
    """
    places, files = context or [], file or []
    check_single_stdin(question, *files)
    check_contexts_exist(places)
    question = read_question(question)
    texts = [read_text(one) for one in files]
    with bars() as report:
        loaded = open_model(choice, report, ratio)
        contexts, seconds = gather(loaded, places, texts, None if raw else report, ratio)
    options: dict[str, Any] = {
        "raw": raw, "ratio": ratio, "max_new_tokens": max_new_tokens,
        "temperature": temperature, "seed": seed, "stop": stop,
    }  # fmt: skip
    if as_json or no_stream:
        completion = loaded.generate(question, contexts, **options)
    else:
        stream = loaded.stream(question, contexts, **options)
        for piece in stream:
            echo(piece, nl=False, exact=True)
        echo()
        assert stream.completion is not None
        completion = stream.completion
    completion = _with_compression(completion, seconds)
    if as_json:
        _echo_json(completion.to_dict())
        return
    if no_stream:
        echo(completion.text, exact=True)
    if not quiet:
        echo(_account(completion), err=True)
        say_limits(loaded, contexts)


def gather(
    model: "Model", places: list[Path], texts: list[str], report: Progress | None, ratio: int | None
) -> tuple[list["CompressedContext | str"], float]:
    """Load contexts and compress texts; without a `report`, texts stay raw. Also the seconds."""
    contexts: list[CompressedContext | str] = [model.load_context(place) for place in places]
    if report is None:
        return [*contexts, *texts], 0.0
    fresh = [_compress(model, text, ratio, report) for text in texts]
    return [*contexts, *fresh], sum(one.compress_seconds for one in fresh)


def _compress(
    model: "Model", text: str, ratio: int | None, report: Progress
) -> "CompressedContext":
    return model.compress(
        text, ratio, on_tokens=lambda done, total: report("compressing", done, total)
    )


def _with_compression(completion: "Completion", seconds: float) -> "Completion":
    """Count the compression that we did ourselves, so that it could show a bar."""
    timings = replace(
        completion.timings,
        compress_seconds=completion.timings.compress_seconds + seconds,
        ttft_seconds=completion.timings.ttft_seconds + seconds,
        total_seconds=completion.timings.total_seconds + seconds,
    )
    return replace(completion, timings=timings)


def _account(completion: "Completion") -> str:
    usage, timings = completion.usage, completion.timings
    folded = ""
    if usage.latents:
        folded = f"{usage.source_tokens:,} tokens -> {usage.latents:,} latents ({usage.ratio}x); "
    return (
        f"{folded}prompt {usage.prompt_tokens:,}, answer {usage.completion_tokens:,} tokens; "
        f"first token {timings.ttft_seconds:.2f} s, total {timings.total_seconds:.2f} s"
    )


def _echo_json(values: dict[str, Any]) -> None:
    echo(json.dumps(values))
