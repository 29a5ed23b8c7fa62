"""What answers cost: seconds, tokens a second and bytes, as medians with their quartiles.

Speed against `full` is the median over items of both: each item's time against its own, within
one folder, machine, device and number format, because times of different days do not compare.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from octavo_evals.report.read import Row
from octavo_evals.report.statistics import Spread, spread


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """The costs of a method; None is what was not measured."""

    compress_seconds: Spread | None
    first_ttft_seconds: Spread | None
    """From the raw context to the first token: compression and prefill."""
    next_ttft_seconds: Spread | None
    """To the first token of a later question on a context already compressed."""
    speed_up: Spread | None
    """How many times sooner than `full` the first token of the first question comes."""
    break_even: str | None
    """From which question on one context the seconds waited for first tokens, summed, are fewer
    than `full`'s; None where no context was asked a second question."""
    decode_tokens_per_second: Spread | None
    prompt_tokens: Spread | None
    cache_bytes: Spread | None
    context_bytes: Spread | None
    peak_bytes: Spread | None


def measure_costs(rows: Mapping[str, Sequence[Row]]) -> dict[str, Cost]:
    """Return the costs of each label of a board."""
    done = {label: [row for row in some if not row.skipped] for label, some in rows.items()}
    found: dict[str, Cost] = {}
    for label, some in done.items():
        first = [row for row in some if not row.content.get("is_reused")]
        later = [row for row in some if row.content.get("is_reused")]
        found[label] = Cost(
            compress_seconds=_spread(first, lambda row: row.number("compress_seconds")),
            first_ttft_seconds=_spread(first, first_ttft),
            next_ttft_seconds=_spread(later, lambda row: row.number("ttft_seconds")),
            speed_up=_speed_up(done.get("full", ()), some) if label != "full" else None,
            break_even=None,
            decode_tokens_per_second=_spread(some, _decode_speed),
            prompt_tokens=_spread(some, lambda row: row.number("prompt_tokens")),
            cache_bytes=_spread(some, lambda row: row.number("cache_bytes")),
            context_bytes=_spread(some, lambda row: row.number("context_bytes")),
            peak_bytes=_spread(some, lambda row: row.number("peak_bytes")),
        )
    full = found.get("full")
    if full is None or not any(cost.next_ttft_seconds for cost in found.values()):
        return found
    return {
        label: cost if cost.speed_up is None else _with_break_even(cost, full)
        for label, cost in found.items()
    }


def first_ttft(row: Row) -> float | None:
    """Return the seconds from the raw context to the first token."""
    ttft = row.number("ttft_seconds")
    return None if ttft is None else ttft + (row.number("compress_seconds") or 0.0)


def break_even(
    ours: tuple[float, float], full: tuple[float, float]
) -> tuple[int | None, int | None]:
    """Return the first and the last question at which the summed seconds are at most full's.

    Each pair is (seconds of the first question, of every later one). (None, None) is never, and
    (k, None) is from k on.
    """
    behind, gain = ours[0] - full[0], full[1] - ours[1]
    if behind <= 0:
        return (1, None) if gain >= 0 else (1, 1 + math.floor(behind / gain))
    return (None, None) if gain <= 0 else (1 + math.ceil(behind / gain), None)


def _with_break_even(cost: Cost, full: Cost) -> Cost:
    """Return the cost with its break-even; a method that never reuses reads anew each time."""
    seconds: list[tuple[float, float]] = []
    for one in (cost, full):
        if one.first_ttft_seconds is None:
            return cost
        later = one.next_ttft_seconds or one.first_ttft_seconds
        seconds.append((one.first_ttft_seconds.median, later.median))
    start, end = break_even(*seconds)
    text = "never" if start is None else f"question {start}"
    if end is not None:
        text = f"question 1 to {end} only" if end > 1 else "question 1 only"
    return replace(cost, break_even=text)


def _speed_up(full: Iterable[Row], ours: Iterable[Row]) -> Spread | None:
    """Compare first questions item by item."""
    theirs = {_circumstances(row): first_ttft(row) for row in full if _is_first(row)}
    ratios = []
    for row in ours:
        mine = first_ttft(row)
        reference = theirs.get(_circumstances(row))
        if _is_first(row) and mine and reference:
            ratios.append(reference / mine)
    return spread(ratios)


def _is_first(row: Row) -> bool:
    return not row.content.get("is_reused")


def _circumstances(row: Row) -> tuple[object, ...]:
    """Return what must be the same for two times to compare."""
    where = (row.content.get(name) for name in ("machine", "device", "dtype"))
    return row.task, row.length, row.id, row.run, *where


def _decode_speed(row: Row) -> float | None:
    """Return tokens a second after the first token."""
    seconds, tokens = row.number("decode_seconds"), row.number("new_tokens")
    return (tokens - 1) / seconds if seconds and tokens and tokens > 1 else None


def _spread(rows: Iterable[Row], measure: Callable[[Row], float | None]) -> Spread | None:
    return spread([value for row in rows if (value := measure(row)) is not None])
