"""Means, differences and retention, each with the interval that resampling the items gives.

    strata      one list of scores per task and length; items are resampled within their own
    estimate    weighted mean over strata of the strata's means, 2.5th and 97.5th percentile

Methods that are compared are resampled together: one draw of items for all of them. The
percentile bootstrap is in Efron and Tibshirani, An Introduction to the Bootstrap (1993), ch. 13.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

Strata = Sequence[Sequence[float]]

SAMPLES = 2000
SEED = 0
QUANTILES = (0.025, 0.975)
MIN_DIFFERENT = 6
"""So many items must differ before a difference is called clear: were the methods equal, five all
on one side would come up in 1 of 16 cases (two-sided sign test), six in 1 of 32."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A number with its 95% interval."""

    value: float
    low: float | None
    """None where a stratum holds a single item: nothing can be said of its spread."""
    high: float | None
    n: int
    """Items behind it."""

    def times(self, factor: float) -> "Estimate":
        """Return the estimate in another unit."""
        low = None if self.low is None else self.low * factor
        high = None if self.high is None else self.high * factor
        return Estimate(value=self.value * factor, low=low, high=high, n=self.n)

    def excludes(self, value: float) -> bool:
        """Return whether the interval leaves a value out."""
        return self.low is not None and self.high is not None and not self.low <= value <= self.high


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """The median of measurements, and their quartiles."""

    median: float
    low: float
    high: float
    n: int


def mean_interval(strata: Strata, weights: Sequence[float] | None = None) -> Estimate:
    """Return the mean; by default every stratum weighs the same, whatever it holds."""
    points, samples = _resample([strata], weights)
    return _estimate(points[0], samples[0], strata)


def paired_difference(
    ours: Strata, theirs: Strata, weights: Sequence[float] | None = None
) -> Estimate:
    """Return ours minus theirs; both hold the same items in the same order."""
    points, samples = _resample([ours, theirs], weights)
    return _estimate(points[0] - points[1], samples[0] - samples[1], ours)


def retention(method: Strata, none: Strata, full: Strata) -> Estimate | None:
    """Return how much of what the context is worth a method keeps: (method - none)/(full - none).

    None where full is not above none in every single sample: there is nothing to keep a share of.
    """
    points, samples = _resample([method, none, full], None)
    worth = samples[2] - samples[1]
    if not points[2] > points[1] or not bool((worth > 0).all()):
        return None
    share = (points[0] - points[1]) / (points[2] - points[1])
    return _estimate(share, (samples[0] - samples[1]) / worth, method)


def spread(values: Sequence[float]) -> Spread | None:
    """Return the median and quartiles, None of nothing."""
    if not values:
        return None
    low, median, high = np.quantile(np.asarray(values, dtype=float), (0.25, 0.5, 0.75))
    return Spread(median=float(median), low=float(low), high=float(high), n=len(values))


def count_different(ours: Strata, theirs: Strata) -> int:
    """Return how many items two methods score differently."""
    return sum(a != b for x, y in zip(ours, theirs, strict=True) for a, b in zip(x, y, strict=True))


def _resample(columns: Sequence[Strata], weights: Sequence[float] | None) -> tuple[Any, Any]:
    """Return each column's weighted mean, and its means over resampled items: (k,), (k, samples).

    Every column has the same number of items in each stratum.
    """
    num_strata = len(columns[0])
    shares = np.asarray([1.0] * num_strata if weights is None else weights, dtype=float)
    shares /= shares.sum()
    points = np.zeros(len(columns))
    samples = np.zeros((len(columns), SAMPLES))
    for index in range(num_strata):
        values = np.asarray([column[index] for column in columns], dtype=float)
        num_items = values.shape[1]
        points += shares[index] * values.mean(axis=1)
        counts = _counts(num_items, index)
        samples += shares[index] * (values @ counts.T.astype(float)) / num_items
    return points, samples


@lru_cache(maxsize=64)
def _counts(num_items: int, stratum: int) -> Any:
    """Return how often each item is drawn in each sample; a stratum has draws of its own."""
    generator = np.random.default_rng((SEED, stratum))
    drawn = generator.integers(num_items, size=(SAMPLES, num_items))
    drawn += np.arange(SAMPLES)[:, None] * num_items
    counts = np.bincount(drawn.ravel(), minlength=SAMPLES * num_items)
    return counts.reshape(SAMPLES, num_items).astype(np.uint16)


def _estimate(value: Any, samples: Any, strata: Strata) -> Estimate:
    low: float | None = None
    high: float | None = None
    if min(map(len, strata)) > 1:
        low, high = (float(x) for x in np.quantile(samples, QUANTILES))
    return Estimate(value=float(value), low=low, high=high, n=sum(map(len, strata)))
