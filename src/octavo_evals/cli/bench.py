"""`octavo bench`: time compression and raw prefill with random weights of a given shape."""

import json
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from octavo.cli.inputs import Misuse, format_bytes
from octavo.cli.options import AsJson, Device, Dtype, bars

if TYPE_CHECKING:
    from octavo.costs import Peaks
    from octavo_evals.bench.summary import BenchSummary, Measured, Quartiles

_UNITS = {"k": 1 << 10, "m": 1 << 20}
_LEGEND = (
    "first: from the context to the first token, compression included\n"
    "next: from a later question to its first token; x: times as fast as raw\n"
    "tok/s: tokens of an answer; compress: context tokens a second\n"
    "latents: bytes to store; peak: memory above the weights\n"
    "anew, kept: questions, answers included, after which a method has cost no more\n"
    "than raw that reads the context anew for each, or keeps its KV cache"
)


def bench(
    shape: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SHAPE",
            help="smol, paper-0.6b-4b, tiny, or a checkpoint folder whose sizes count; repeatable.",
        ),
    ] = None,
    length: Annotated[
        list[str] | None,
        typer.Option(
            metavar="N",
            help="Tokens of a context, 4k is 4096 and 1M 1048576; repeatable. By default 1k, 4k.",
        ),
    ] = None,
    ratio: Annotated[
        list[int] | None,
        typer.Option("--ratio", "-r", min=1, metavar="R", help="Repeatable; by default 4, 8, 16."),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METHOD",
            help="raw, octavo, or of kvpress: expected-attention, snapkv, knorm, streaming-llm, "
            "tova; repeatable. By default raw, octavo.",
        ),
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
    attention: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="sdpa, eager, flash_attention_2, …; by default sdpa.",
        ),
    ] = None,
    repeats: Annotated[
        int, typer.Option(min=1, metavar="N", help="Counted rounds; one more warms up.")
    ] = 3,
    new_tokens: Annotated[
        int, typer.Option(min=2, metavar="N", help="Tokens of the answer to the first question.")
    ] = 32,
    questions: Annotated[
        int, typer.Option(min=2, metavar="N", help="Questions about each context.")
    ] = 3,
    batch: Annotated[
        int,
        typer.Option(min=0, metavar="N", help="Also time so many questions in one call."),
    ] = 0,
    question_tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="Tokens of a question.")
    ] = 64,
    chunk: Annotated[
        int, typer.Option(min=1, metavar="N", help="Positions the decoder reads at once.")
    ] = 8192,
    encode_batch: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Tokens the encoder reads at once; by device."),
    ] = None,
    peak_tflops: Annotated[
        float | None,
        typer.Option(min=0.0, metavar="X", help="What the device could do; known for H100, H200."),
    ] = None,
    peak_gbps: Annotated[
        float | None,
        typer.Option(min=0.0, metavar="X", help="Its memory bandwidth in GB/s; likewise."),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="SEED", help="Draws weights and ids.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="ROWS.jsonl", help="Where rows go; a run goes on where it ended."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Time compression against raw prefill, with random weights of a given shape.

    Prints medians with quartiles, and as the last line a JSON object of speed-ups over raw.
    """
    lengths = tuple(_length(one) for one in length or ())
    from octavo.costs import find_peaks
    from octavo.machine import find_device, parse_dtype
    from octavo_evals.bench import Settings, run
    from octavo_evals.bench.summary import speedups, summarise

    given: dict[str, Any] = {
        "shapes": tuple(shape or ()), "lengths": lengths, "methods": tuple(method or ()),
        "ratios": tuple(ratio or ()), "encode_batch": encode_batch,
    }  # fmt: skip
    settings = Settings(
        **{name: value for name, value in given.items() if value}, attention=attention,
        device=device, dtype=dtype, repeats=repeats, questions=questions, batch=batch, chunk=chunk,
        question_tokens=question_tokens, new_tokens=new_tokens, seed=seed,
    )  # fmt: skip
    try:
        with bars() as show:
            rows = run(settings, out.expanduser() if out else None, show)
    except KeyboardInterrupt:
        kept = f"the rows so far are in {shlex.quote(str(out))}" if out else "no rows were kept"
        hint = "the same command goes on" if out else "give -o to keep them"
        raise KeyboardInterrupt(f"interrupted; {kept}, {hint}") from None
    found = summarise(rows)
    if not as_json:
        kind = parse_dtype(rows[0]["dtype"])
        peaks = find_peaks(find_device(device), kind, peak_tflops, peak_gbps)
        typer.echo(report_of(found, rows[0], peaks))
    typer.echo(json.dumps(speedups(found)))


def _length(text: str) -> int:
    unit = _UNITS.get(text[-1:].lower(), 1)
    number = text[:-1] if unit > 1 else text
    if not number.isdecimal() or int(number) < 1:
        raise Misuse(f"--length {text!r} is no number of tokens; give one like 4096, 4k or 1M")
    return int(number) * unit


def report_of(summaries: Sequence["BenchSummary"], about: dict[str, Any], peaks: "Peaks") -> str:
    """Return tables of each shape and length, within 80 columns for times below an hour."""
    versions = about["versions"]
    lines = [
        f"{about['device']}, {about['dtype']}, {about['attention']}, {about['threads']} threads, "
        f"torch {versions['torch']}",
        f"transformers {versions['transformers']}, "
        f"medians of {about['repeats']}, ± half the quartile range",
    ]
    for place in dict.fromkeys((one.shape, one.length) for one in summaries):
        own = [one for one in summaries if (one.shape, one.length) == place]
        tables = [_times(own), _memory(own), _floors(own, peaks)]
        if any(one.measured and one.measured.batch for one in own):
            tables.insert(1, _batches(own, about["batch"]))
        for (title,), *table in tables:
            lines += ["", f"{place[0]}, {place[1]:,} tokens: {title}", *_aligned(table)]
        lines += [f"{one.label} was skipped: {one.skipped}" for one in own if one.skipped]
    return "\n".join([*lines, "", _LEGEND])


def _spread(spread: "Quartiles | None", scale: float = 1.0) -> str:
    if spread is None:
        return "-"
    half = (spread.high - spread.low) / 2 / spread.median
    return f"{_short(spread.median * scale)} ±{half:.0%}"


def _short(value: float) -> str:
    """Return three digits of a number, or all of a large one."""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _size(count: int | None) -> str:
    return format_bytes(count) if count else "-"


_Line = tuple[str, ...]


def _rows_of(
    summaries: Sequence["BenchSummary"], cells: "Callable[[BenchSummary, Measured], _Line]"
) -> list[_Line]:
    return [(one.label, *cells(one, one.measured)) for one in summaries if one.measured is not None]


def _gain(one: "BenchSummary", name: str) -> str:
    return f"{one.speedups[name]:.2f}" if name in one.speedups else "-"


def _even(one: "BenchSummary", name: str) -> str:
    return str(one.speedups[name] or "never") if one.speedups else "-"


def _times(summaries: Sequence["BenchSummary"]) -> list[_Line]:
    return [
        ("times",),
        ("method", "first s", "x", "next s", "x", "tok/s", "compress"),
        *_rows_of(
            summaries,
            lambda one, done: (
                _spread(done.first), _gain(one, "first"), _spread(done.next), _gain(one, "next"),
                _short(done.decode.median), _short(done.compress.median) if done.compress else "-",
            ),
        ),
    ]  # fmt: skip


def _batches(summaries: Sequence["BenchSummary"], count: int) -> list[_Line]:
    return [
        (f"{count} questions, answers included",),
        ("method", "one call s", "one by one s", "x of raw's"),
        *_rows_of(
            summaries,
            lambda one, done: (_spread(done.batch), _spread(done.alone), _gain(one, "batch")),
        ),
    ]


def _memory(summaries: Sequence["BenchSummary"]) -> list[_Line]:
    return [
        ("memory, and questions until it has paid off",),
        ("method", "KV cache", "latents", "peak", "anew", "kept"),
        *_rows_of(
            summaries,
            lambda one, done: (
                _size(done.row["cache_bytes"]), _size(done.row["context_bytes"]),
                _size(done.peak_bytes), _even(one, "break_even"), _even(one, "break_even_kept"),
            ),
        ),
    ]  # fmt: skip


def _floors(summaries: Sequence["BenchSummary"], peaks: "Peaks") -> list[_Line]:
    def cells(one: "BenchSummary", done: "Measured") -> _Line:
        first, decode = done.of_peak(peaks)
        return (
            f"{done.row['flops'] / 1e12:.3g}", f"{done.first_tflops:.3g}", _share(first),
            f"{done.row['decode_bytes'] / 1e9:.3g}", f"{done.decode_gbps:.3g}", _share(decode),
        )  # fmt: skip

    return [
        ("the least it must cost, against the peak",),
        ("method", "TFLOP", "TFLOP/s", "of peak", "GB/token", "GB/s", "of peak"),
        *_rows_of(summaries, cells),
    ]


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Pad the cells of a table: the method to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
