"""Means, differences and shares with intervals, against their slow twins."""

import itertools
import random
import statistics
from collections.abc import Sequence
from typing import Any

import pytest

from octavo.statistics import Estimate, break_even, estimate, retention

Table = list[list[float]]
"""A row a unit: a sum of each quantity, and last the count of its items."""


def slow_interval(strata: Sequence[Table], number: Any) -> tuple[float, float]:
    """Resample unit by unit, in plain Python, with another generator."""
    rng = random.Random(1)
    found = []
    for _ in range(4000):
        means = [0.0] * (len(strata[0][0]) - 1)
        for stratum in strata:
            drawn = rng.choices(stratum, k=len(stratum))
            *sums, count = (sum(column) for column in zip(*drawn, strict=True))
            means = [mean + one / count for mean, one in zip(means, sums, strict=True)]
        found.append(number(*(mean / len(strata) for mean in means)))
    cuts = statistics.quantiles(found, n=40, method="inclusive")
    return cuts[0], cuts[-1]


def agree(found: Estimate | None, slow: tuple[float, float], within: float) -> None:
    assert found is not None
    assert found.low == pytest.approx(slow[0], abs=within)
    assert found.high == pytest.approx(slow[1], abs=within)


def items(*columns: Sequence[float]) -> Table:
    """Make a stratum in which every item is a unit of its own."""
    return [[*scores, 1.0] for scores in zip(*columns, strict=True)]


@pytest.fixture(scope="module")
def strata() -> list[Table]:
    """Three methods on two tasks, of 40 and 20 contexts with one to four items each."""
    rng = random.Random(3)

    def context() -> list[float]:
        ease, size = rng.random(), rng.randint(1, 4)
        skills = (0.7, 0.1, 0.9)
        return [sum(rng.random() < s * (0.4 + ease) for _ in range(size)) for s in skills] + [size]

    return [[context() for _ in range(size)] for size in (40, 20)]


def test_intervals_are_those_of_resampling_context_by_context(strata: list[Table]) -> None:
    ours = [[[row[0], row[-1]] for row in stratum] for stratum in strata]
    agree(estimate(ours), slow_interval(ours, lambda a: a), 0.02)
    agree(
        estimate(strata, lambda a, b, c: a - c), slow_interval(strata, lambda a, b, c: a - c), 0.02
    )
    agree(retention(strata), slow_interval(strata, lambda a, b, c: (a - b) / (c - b)), 0.03)


def test_an_interval_is_that_of_every_possible_resample_of_a_few_items() -> None:
    values = [0.1, 0.4, 0.5, 1.0]
    every = sorted(statistics.fmean(drawn) for drawn in itertools.product(values, repeat=4))
    cuts = statistics.quantiles(every, n=40, method="inclusive")
    agree(estimate([items(values)]), (cuts[0], cuts[-1]), 0.03)


def test_every_stratum_weighs_the_same_unless_weights_are_given() -> None:
    strata = [items([1.0] * 8), items([0.0, 0.0])]
    assert estimate(strata).value == 0.5
    assert estimate(strata, weights=[3, 1]).value == 0.75


def test_items_that_share_a_context_count_as_less_than_items_of_their_own() -> None:
    values = [float(i % 2) for i in range(40)]
    alone = estimate([items(values)])
    shared = estimate([[[4.0 * (i % 2), 4.0] for i in range(10)]])
    assert shared.value == alone.value
    assert alone.low is not None
    assert shared.low is not None
    assert 0.5 - shared.low == pytest.approx(2 * (0.5 - alone.low), rel=0.2)


def test_a_difference_uses_the_pairs() -> None:
    ease = [float(i % 2) for i in range(40)]
    found = estimate([items(ease, [max(0.0, one - 0.25) for one in ease])], lambda a, b: a - b)
    assert found.value == pytest.approx(0.125)
    assert found.low is not None
    assert found.low > 0.08  # unpaired, the interval would reach below 0
    assert found.excludes(0)


def test_strata_are_resampled_apart_from_one_another() -> None:
    stratum = items([float(i % 2) for i in range(50)])
    alone, both = estimate([stratum]), estimate([stratum, stratum])
    assert alone.low is not None
    assert both.low is not None
    assert 0.5 - both.low == pytest.approx((0.5 - alone.low) / 2**0.5, rel=0.15)


def test_retention_by_hand() -> None:
    raw, none = [1.0] * 30 + [0.0] * 10, [0.0] * 40
    half = [1.0] * 15 + [0.0] * 25
    found = retention([items(half, none, raw)])
    assert found is not None
    assert found.value == pytest.approx(0.5)
    assert retention([items(half, raw, raw)]) is None
    barely = [1.0] + [0.0] * 39
    assert retention([items(half, none, barely)]) is None  # many resamples have no worth at all


def test_one_unit_has_a_value_and_no_interval() -> None:
    found = estimate([items([0.5])])
    assert found == Estimate(value=0.5)
    assert not found.excludes(0)


@pytest.mark.parametrize(
    ("ours", "raw", "expected"),
    [
        ((5.0, 1.0), (2.0, 2.0), (4, None)),  # 5+1+1+1 = 2+2+2+2
        ((1.0, 1.0), (2.0, 2.0), (1, None)),
        ((3.0, 2.0), (2.0, 2.0), (None, None)),
        ((1.0, 1.0), (2.0, 0.5), (1, 3)),  # 1+1+1 = 2+.5+.5, and behind from the fourth on
        ((2.0, 2.0), (2.0, 2.0), (1, None)),
    ],
)
def test_break_even_is_where_the_sums_meet(
    ours: tuple[float, float], raw: tuple[float, float], expected: tuple[int | None, int | None]
) -> None:
    def total(pair: tuple[float, float], questions: int) -> float:
        return pair[0] + (questions - 1) * pair[1]

    assert break_even(ours, raw) == expected
    first, last = expected
    for questions in range(1, 30):
        is_in = first is not None and first <= questions <= (last or 30)
        assert (total(ours, questions) <= total(raw, questions)) is is_in
