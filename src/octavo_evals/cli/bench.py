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
    from octavo_evals.bench.summary import BenchSummary

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
    tables = _tables(about["batch"], peaks)
    for place in dict.fromkeys((one.shape, one.length) for one in summaries):
        own = [one for one in summaries if (one.shape, one.length) == place]
        rows = [one for one in own if one.rows]
        for title, columns in tables.items():
            lines += ["", f"{place[0]}, {place[1]:,} tokens: {title}"]
            header = ("method", *(name.strip() for name in columns))
            cells = [(one.label, *(cell(one) for cell in columns.values())) for one in rows]
            lines += _aligned([header, *cells])
        lines += [f"{one.label} was skipped: {one.skipped}" for one in own if one.skipped]
    return "\n".join([*lines, "", _LEGEND])


def _tables(batch: int, peaks: "Peaks") -> "dict[str, dict[str, Callable[[BenchSummary], str]]]":
    """Return title -> column -> what it shows of a summary; spaces tell like columns apart."""
    tables: dict[str, dict[str, Callable[[BenchSummary], str]]] = {
        "times": {
            "first s": lambda one: _spread(one, "first"),
            "x": lambda one: _gain(one, "first"),
            "next s": lambda one: _spread(one, "next"),
            "x ": lambda one: _gain(one, "next"),
            "tok/s": lambda one: _short(one.median("decode")),
            "compress": lambda one: (
                _short(one.median("compress")) if one.spread("compress") else "-"
            ),
        },
        f"{batch} questions, answers included": {
            "one call s": lambda one: _spread(one, "batch"),
            "one by one s": lambda one: _spread(one, "alone"),
            "x of raw's": lambda one: _gain(one, "batch"),
        },
        "memory, and questions until it has paid off": {
            "KV cache": lambda one: _size(one, "cache_bytes"),
            "latents": lambda one: _size(one, "context_bytes"),
            "peak": lambda one: _size(one, "peak_bytes"),
            "anew": lambda one: _even(one, "break_even"),
            "kept": lambda one: _even(one, "break_even_kept"),
        },
        "the least it must cost, against the peak": {
            "TFLOP": lambda one: f"{one.count('flops') / 1e12:.3g}",
            "TFLOP/s": lambda one: f"{one.rates.tflops:.3g}",
            "of peak": lambda one: _share(one.rates.tflops, peaks.tflops),
            "GB/token": lambda one: f"{one.count('decode_bytes') / 1e9:.3g}",
            "GB/s": lambda one: f"{one.rates.gbps:.3g}",
            "of peak ": lambda one: _share(one.rates.gbps, peaks.gbps),
        },
    }
    return {title: one for title, one in tables.items() if batch or "one call s" not in one}


def _spread(one: "BenchSummary", name: str) -> str:
    spread = one.spread(name)
    if spread is None:
        return "-"
    return f"{_short(spread.median)} ±{(spread.high - spread.low) / 2 / spread.median:.0%}"


def _short(value: float) -> str:
    """Return three digits of a number, or all of a large one."""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


def _size(one: "BenchSummary", name: str) -> str:
    return format_bytes(one.count(name)) if one.count(name) else "-"


def _gain(one: "BenchSummary", name: str) -> str:
    return f"{one.speedups[name]:.2f}" if name in one.speedups else "-"


def _even(one: "BenchSummary", name: str) -> str:
    return str(one.speedups[name] or "never") if one.speedups else "-"


def _share(rate: float | None, peak: float | None) -> str:
    return f"{rate / peak:.1%}" if rate and peak else "-"


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Pad the cells of a table: the method to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = ([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in lines)
    return ["  ".join(cells).rstrip() for cells in padded]
