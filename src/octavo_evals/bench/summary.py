"""Turn the rows of a bench into medians, their spread, speed-ups over raw, and break-even points.

A speed-up compares medians that were measured side by side, at one length in one run.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from octavo.costs import Peaks
from octavo_evals.rows import Row


@dataclass(frozen=True, slots=True)
class Quartiles:
    """The median of some measurements, and their quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Quartiles":
        """Summarise at least one value."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What the repeats of one cell came to."""

    first: Quartiles
    next: Quartiles
    decode: Quartiles
    """Tokens per second."""
    compress: Quartiles | None
    """Source tokens per second, for methods that compress."""
    batch: Quartiles | None
    """Seconds for several questions in one call."""
    alone: Quartiles | None
    """Seconds for the same questions one by one."""
    peak_bytes: int | None
    """The largest of all repeats."""
    row: Row
    """One of the rows: what is counted, not timed, is the same in all."""

    @property
    def answer_seconds(self) -> float:
        """What the tokens of an answer take after the first one."""
        return float(self.row["decode_tokens"] / self.decode.median)

    @property
    def first_tflops(self) -> float:
        """The rate at which the first question did the arithmetic it cannot do without."""
        return float(self.row["flops"] / self.first.median / 1e12)

    @property
    def decode_gbps(self) -> float:
        """The rate at which decoding read the bytes it cannot do without."""
        return float(self.row["decode_bytes"] * self.decode.median / 1e9)

    def of_peak(self, peaks: Peaks) -> tuple[float | None, float | None]:
        """Return the shares of the peaks that the first question and decoding reached."""
        return (
            self.first_tflops / peaks.tflops if peaks.tflops else None,
            self.decode_gbps / peaks.gbps if peaks.gbps else None,
        )


@dataclass(kw_only=True, slots=True)
class BenchSummary:
    """One method at one ratio and length: what was measured, or why not."""

    shape: str
    length: int
    method: str
    ratio: int | None
    skipped: str | None
    measured: Measured | None
    speedups: dict[str, Any] = field(default_factory=dict)
    """Over raw: `first`, `next`, `decode`, `cache`, `break_even`, `break_even_kept`, and `batch`
    where it was measured."""

    @property
    def label(self) -> str:
        """Method, and ratio where there is one: `octavo@8`."""
        return self.method if self.ratio is None else f"{self.method}@{self.ratio}"


def summarise(rows: Sequence[Row]) -> list[BenchSummary]:
    """Return a summary per shape, length, method and ratio: raw first, then as in the rows."""
    groups: dict[tuple[str, int, str, int | None], list[Row]] = {}
    for row in rows:
        key = (row["shape"], row["length"], row["method"], row["ratio"])
        groups.setdefault(key, []).append(row)
    # Rows of what does not fit come before those of what was measured.
    order = sorted(groups, key=lambda key: (key[1], key[2] != "raw"))
    found = [_summary(*key, groups[key]) for key in order]
    raws = {(one.shape, one.length): one.measured for one in found if one.method == "raw"}
    for one in found:
        raw = raws.get((one.shape, one.length))
        if one.method != "raw" and one.measured is not None and raw is not None:
            one.speedups = _speedups(one.measured, raw)
    return found


def _summary(
    shape: str, length: int, method: str, ratio: int | None, rows: Sequence[Row]
) -> BenchSummary:
    reason = next((row["skipped"] for row in rows if row["skipped"]), None)
    timed = [row for row in rows if not row["skipped"]]
    measured = _measured(timed) if timed else None
    return BenchSummary(
        shape=shape, length=length, method=method, ratio=ratio, skipped=reason, measured=measured
    )


def _measured(rows: Sequence[Row]) -> Measured:
    is_compressing = all(row["compress_seconds"] for row in rows)
    speeds = [row["source_tokens"] / row["compress_seconds"] for row in rows if is_compressing]
    peaks = [row["peak_bytes"] for row in rows if row["peak_bytes"] is not None]
    return Measured(
        first=Quartiles.of([row["first_seconds"] for row in rows]),
        next=Quartiles.of([row["next_seconds"] for row in rows]),
        decode=Quartiles.of([row["decode_tokens"] / row["decode_seconds"] for row in rows]),
        compress=Quartiles.of(speeds) if speeds else None,
        batch=_quartiles(rows, "batch_seconds"),
        alone=_quartiles(rows, "alone_seconds"),
        peak_bytes=max(peaks, default=None),
        row=rows[0],
    )


def _quartiles(rows: Sequence[Row], name: str) -> Quartiles | None:
    """Summarise a column that not every row has."""
    values = [row[name] for row in rows if row.get(name) is not None]
    return Quartiles.of(values) if values else None


def _speedups(own: Measured, raw: Measured) -> dict[str, Any]:
    """Compare with raw; a question costs its first token and the rest of its answer."""
    own_first, own_next = (one.median + own.answer_seconds for one in (own.first, own.next))
    raw_first, raw_next = (one.median + raw.answer_seconds for one in (raw.first, raw.next))
    batch = {}
    if own.batch and raw.batch:
        batch = {"batch": round(raw.batch.median / own.batch.median, 2)}
    return {
        "first": round(raw.first.median / own.first.median, 2),
        "next": round(raw.next.median / own.next.median, 2),
        "decode": round(own.decode.median / raw.decode.median, 2),
        "cache": round(raw.row["cache_bytes"] / own.row["cache_bytes"], 2),
        "break_even": break_even(own_first, own_next, raw_first, raw_first),
        "break_even_kept": break_even(own_first, own_next, raw_first, raw_next),
        **batch,
    }


def break_even(
    own_first: float, own_next: float, other_first: float, other_next: float
) -> int | None:
    """Return after how many questions about one context the own way has cost no more; or None.

    Each way costs its first question once and `next` for every later one. Against prefill anew
    for each question, the other's `next` is its `first`.
    """
    lead = own_first - other_first
    if lead <= 0:
        return 1
    gain = other_next - own_next
    return 1 + math.ceil(lead / gain) if gain > 0 else None


def speedups(summaries: Sequence[BenchSummary]) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the speed-ups by shape, length and label: `{"smol": {"4096": {"octavo@8": {…}}}}`."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for one in summaries:
        if one.speedups:
            of_shape = found.setdefault(one.shape, {})
            of_shape.setdefault(str(one.length), {})[one.label] = one.speedups
    return found
