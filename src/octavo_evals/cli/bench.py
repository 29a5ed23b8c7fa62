"""`octavo bench`: time compression and raw prefill with random weights of a given shape."""

import json
import shlex
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from octavo.cli.inputs import Misuse, echo, format_bytes
from octavo.cli.options import AsJson, Device, Dtype, bars
from octavo_evals.cli import Counts, Texts, option

if TYPE_CHECKING:
    from octavo.costs import Peaks
    from octavo_evals.bench.summary import BenchSummary

_Column = tuple[str, Callable[["BenchSummary", str], str], str]
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
        Texts,
        option(
            "SHAPE",
            "smol, paper-0.6b-4b, tiny, or a checkpoint folder whose sizes count; repeatable.",
        ),
    ] = None,
    length: Annotated[
        Texts,
        option(
            "N", "Tokens of a context, 4k is 4096 and 1M 1048576; repeatable. By default 1k, 4k."
        ),
    ] = None,
    ratio: Annotated[
        Counts, option("R", "Repeatable; by default 4, 8, 16.", "--ratio", "-r", min=1)
    ] = None,
    method: Annotated[
        Texts,
        option(
            "METHOD",
            "raw, octavo, or of kvpress: expected-attention, snapkv, knorm, streaming-llm, tova; "
            "repeatable. By default raw, octavo.",
        ),
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
    attention: Annotated[
        str | None, option("NAME", "sdpa, eager, flash_attention_2, …; by default sdpa.")
    ] = None,
    repeats: Annotated[int, option("N", "Counted rounds; one more warms up.", min=1)] = 3,
    new_tokens: Annotated[
        int, option("N", "Tokens of the answer to the first question.", min=2)
    ] = 32,
    questions: Annotated[int, option("N", "Questions about each context.", min=2)] = 3,
    batch: Annotated[int, option("N", "Also time so many questions in one call.", min=0)] = 0,
    question_tokens: Annotated[int, option("N", "Tokens of a question.", min=1)] = 64,
    chunk: Annotated[int, option("N", "Positions the decoder reads at once.", min=1)] = 8192,
    encode_batch: Annotated[
        int | None, option("N", "Tokens the encoder reads at once; by device.", min=1)
    ] = None,
    peak_tflops: Annotated[
        float | None, option("X", "What the device could do; known for H100, H200.", min=0.0)
    ] = None,
    peak_gbps: Annotated[
        float | None, option("X", "Its memory bandwidth in GB/s; likewise.", min=0.0)
    ] = None,
    seed: Annotated[int, option("SEED", "Draws weights and ids.")] = 0,
    out: Annotated[
        Path | None,
        option("ROWS.jsonl", "Where rows go; a run goes on where it ended.", "--output", "-o"),
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
        echo(report_of(found, rows[0], peaks))
    echo(json.dumps(speedups(found)))


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
            header = ("method", *(header for header, _, _ in columns))
            cells = [(one.label, *(show(one, name) for _, show, name in columns)) for one in rows]
            lines += _aligned([header, *cells])
        lines += [f"{one.label} was skipped: {one.skipped}" for one in own if one.skipped]
    return "\n".join([*lines, "", _LEGEND])


def _tables(batch: int, peaks: "Peaks") -> dict[str, list[_Column]]:
    """Return title -> columns: a header, what shows a summary's value, and the value's name."""
    in_one_call: list[_Column] = [
        ("one call s", _spread, "batch"), ("one by one s", _spread, "alone"),
        ("x of raw's", _gain, "batch"),
    ]  # fmt: skip
    return {
        "times": [
            ("first s", _spread, "first"), ("x", _gain, "first"), ("next s", _spread, "next"),
            ("x", _gain, "next"), ("tok/s", _median, "decode"), ("compress", _median, "compress"),
        ],
        **({f"{batch} questions, answers included": in_one_call} if batch else {}),
        "memory, and questions until it has paid off": [
            ("KV cache", _size, "cache_bytes"), ("latents", _size, "context_bytes"),
            ("peak", _size, "peak_bytes"), ("anew", _even, "break_even"),
            ("kept", _even, "break_even_kept"),
        ],
        "the least it must cost, against the peak": [
            ("TFLOP", lambda one, name: f"{one.count(name) / 1e12:.3g}", "flops"),
            ("TFLOP/s", _rate, "tflops"), ("of peak", partial(_share, peaks), "tflops"),
            ("GB/token", lambda one, name: f"{one.count(name) / 1e9:.3g}", "decode_bytes"),
            ("GB/s", _rate, "gbps"), ("of peak", partial(_share, peaks), "gbps"),
        ],
    }  # fmt: skip


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


def _median(one: "BenchSummary", name: str) -> str:
    return _short(one.median(name)) if one.spread(name) else "-"


def _rate(one: "BenchSummary", name: str) -> str:
    return f"{getattr(one.rates, name):.3g}"


def _share(peaks: "Peaks", one: "BenchSummary", name: str) -> str:
    rate, peak = getattr(one.rates, name), getattr(peaks, name)
    return f"{rate / peak:.1%}" if rate and peak else "-"


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Pad the cells of a table: the method to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = ([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in lines)
    return ["  ".join(cells).rstrip() for cells in padded]
