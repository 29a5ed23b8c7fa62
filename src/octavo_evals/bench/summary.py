"""Turn the rows of a bench into medians, their spread, speed-ups over raw, and break-even points.

A speed-up compares medians that were measured side by side, at one length in one run.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from octavo.costs import Peaks
from octavo_evals.rows import Row

_RATES = {"decode": "decode_tokens", "compress": "source_tokens"}
"""Measurements that are read as tokens per second, and the tokens; all others are seconds."""


class Quartiles(NamedTuple):
    """The median of some measurements, and their quartiles."""

    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class BenchSummary:
    """One method at one ratio and length: what was measured, or why not."""

    shape: str
    length: int
    method: str
    ratio: int | None
    rows: tuple[Row, ...]
    """Of what was measured; what is counted, not timed, is the same in all."""
    skipped: str | None
    raw: "BenchSummary | None"
    """Raw text of the same shape and length, if this is another method."""

    @property
    def label(self) -> str:
        """Method, and ratio where there is one: `octavo@8`."""
        return self.method if self.ratio is None else f"{self.method}@{self.ratio}"

    def spread(self, name: str) -> Quartiles | None:
        """Return what the repeats came to; None where something was not measured."""
        seconds = f"{name}_seconds"
        if name in _RATES:
            values = [row[_RATES[name]] / row[seconds] for row in self.rows if row[seconds]]
        else:
            values = [row[seconds] for row in self.rows if row.get(seconds) is not None]
        if not values:
            return None
        values *= 2 if len(values) == 1 else 1  # `quantiles` wants two
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return Quartiles(median, low, high)

    def median(self, name: str) -> float:
        """Return the median of something that every row has."""
        spread = self.spread(name)
        assert spread is not None, name
        return spread.median

    def count(self, name: str) -> int:
        """Return the largest count of a column; 0 where it was not taken."""
        return max((row[name] for row in self.rows if row.get(name) is not None), default=0)

    @property
    def rates(self) -> Peaks:
        """How fast the least work was done: of the first question, and of decoding."""
        return Peaks(
            tflops=self.count("flops") / self.median("first") / 1e12,
            gbps=self.count("decode_bytes") * self.median("decode") / 1e9,
        )

    @property
    def speedups(self) -> dict[str, Any]:
        """Compare with raw; a question costs its first token and the rest of its answer."""
        raw = self.raw
        if raw is None or not raw.rows or not self.rows:
            return {}
        gains = {
            name: raw.median(name) / self.median(name)
            for name in ("first", "next", "batch")
            if self.spread(name) and raw.spread(name)
        }
        gains["decode"] = self.median("decode") / raw.median("decode")
        gains["cache"] = raw.count("cache_bytes") / self.count("cache_bytes")
        (own_first, own_next), (raw_first, raw_next) = (
            (one.median("first") + rest, one.median("next") + rest)
            for one in (self, raw)
            for rest in [one.count("decode_tokens") / one.median("decode")]
        )
        return {
            **{name: round(gain, 2) for name, gain in gains.items()},
            "break_even": break_even(own_first, own_next, raw_first, raw_first),
            "break_even_kept": break_even(own_first, own_next, raw_first, raw_next),
        }


def summarise(rows: Sequence[Row]) -> list[BenchSummary]:
    """Return a summary per shape, length, method and ratio: raw first, then as in the rows."""
    groups: dict[tuple[str, int, str, int | None], list[Row]] = {}
    for row in rows:
        key = (row["shape"], row["length"], row["method"], row["ratio"])
        groups.setdefault(key, []).append(row)
    raws: dict[tuple[str, int], BenchSummary] = {}
    found = []
    # Rows of what does not fit come before those of what was measured.
    for key in sorted(groups, key=lambda key: (key[1], key[2] != "raw")):
        measured = tuple(row for row in groups[key] if not row["skipped"])
        skipped = next((row["skipped"] for row in groups[key] if row["skipped"]), None)
        one = BenchSummary(*key, measured, skipped, raws.get(key[:2]))
        if one.method == "raw":
            raws[key[:2]] = one
        found.append(one)
    return found


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
        if gains := one.speedups:
            found.setdefault(one.shape, {}).setdefault(str(one.length), {})[one.label] = gains
    return found
