"""`octavo bench`: time compression and raw prefill with random weights of a given shape."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from octavo.cli.inputs import Misuse, format_bytes
from octavo.cli.options import AsJson, Device, Dtype, bars

if TYPE_CHECKING:
    from octavo.costs import Peaks
    from octavo_evals.bench.summary import Spread, Summary

_UNITS = {"k": 1 << 10, "m": 1 << 20}
_LEGEND = (
    "first: from the context to the first token, compression included; next: of a later question\n"
    "x: times as fast as raw; latents: bytes to store; peak: memory above the weights\n"
    "break-even: questions, answers included, after which a method has cost no more than raw that\n"
    "reads the context anew for each (anew) or keeps its KV cache (kept)"
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
            help="sdpa, sdpa-lower-right, eager, flash_attention_2; by default by device.",
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
    question_tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="Tokens of a question.")
    ] = 64,
    chunk: Annotated[
        int, typer.Option(min=1, metavar="N", help="Positions the decoder reads at once.")
    ] = 8192,
    encode_batch: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Tokens the encoder reads at once; 16384."),
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
        device=device, dtype=dtype, repeats=repeats, questions=questions, chunk=chunk, seed=seed,
        question_tokens=question_tokens, new_tokens=new_tokens,
    )  # fmt: skip
    try:
        with bars() as report:
            rows = run(settings, out.expanduser() if out else None, report)
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


def report_of(summaries: Sequence["Summary"], about: dict[str, Any], peaks: "Peaks") -> str:
    """Return two tables a shape: what was measured, and how it compares with the floor."""
    versions = about["versions"]
    lines = [
        f"{about['device']}, {about['dtype']}, {about['attention']}, {about['threads']} threads, "
        f"torch {versions['torch']}, transformers {versions['transformers']}; medians of "
        f"{about['repeats']} (quartiles)"
    ]
    for shape in dict.fromkeys(one.shape for one in summaries):
        own = [one for one in summaries if one.shape == shape]
        lines += ["", shape, *_aligned(_times(own))]
        lines += ["", f"{shape}: the least it costs", *_aligned(_floors(own, peaks))]
        lines += [
            f"{one.length:,} {one.label} was skipped: {one.skipped}" for one in own if one.skipped
        ]
    lines += ["", _LEGEND]
    return "\n".join(lines)


def _spread(spread: "Spread", digits: int = 3) -> str:
    low, median, high = (f"{x:,.{digits}f}" for x in (spread.low, spread.median, spread.high))
    return f"{median} ({low}-{high})"


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _size(count: int | None) -> str:
    return format_bytes(count) if count else "-"


def _times(summaries: Sequence["Summary"]) -> list[tuple[str, ...]]:
    """Return the table of what was measured."""
    lines: list[tuple[str, ...]] = [
        (
            "tokens", "method", "first s", "x", "next s", "x", "decode tok/s", "compress tok/s",
            "KV cache", "latents", "peak", "break-even anew", "kept",
        )
    ]  # fmt: skip
    for one in summaries:
        if (done := one.measured) is None:
            continue
        gain = {name: f"{one.speedups[name]:.2f}" for name in ("first", "next") if one.speedups}
        even = {
            name: str(one.speedups[name] or "never")
            for name in ("break_even", "break_even_kept")
            if one.speedups
        }
        lines.append(
            (
                f"{one.length:,}", one.label, _spread(done.first), gain.get("first", "-"),
                _spread(done.next), gain.get("next", "-"), _spread(done.decode, 1),
                f"{done.compress.median:,.0f}" if done.compress else "-",
                _size(done.row["cache_bytes"]), _size(done.row["context_bytes"]),
                _size(done.peak_bytes), even.get("break_even", "-"),
                even.get("break_even_kept", "-"),
            )
        )  # fmt: skip
    return lines


def _floors(summaries: Sequence["Summary"], peaks: "Peaks") -> list[tuple[str, ...]]:
    """Return the table of what it had to cost, and how near to the device's peak that was done."""
    lines: list[tuple[str, ...]] = [
        (
            "tokens", "method", "first TFLOP", "TFLOP/s", "of peak", "GB/token", "GB/s", "of peak",
        )
    ]  # fmt: skip
    for one in summaries:
        if (done := one.measured) is None:
            continue
        first, decode = done.of_peak(peaks)
        lines.append(
            (
                f"{one.length:,}", one.label, f"{done.row['flops'] / 1e12:.3g}",
                f"{done.first_tflops:.3g}", _share(first),
                f"{done.row['decode_bytes'] / 1e9:.3g}", f"{done.decode_gbps:.3g}",
                _share(decode),
            )
        )  # fmt: skip
    return lines


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Pad the cells of a table: the method to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if at == 1 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
