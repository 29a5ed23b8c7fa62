"""Say how sure a number is: means, differences and shares with the intervals of resampling.

    unit       what is drawn as a whole: an example, or a context with every item that shares it
    stratum    a table with a row a unit: sums of each quantity, and last the sum they are divided
               by; strata are resampled apart, and their means are averaged

Quantities that are compared are resampled together: one draw of units for all of them. The
percentile bootstrap is in Efron and Tibshirani, An Introduction to the Bootstrap (1993), ch. 13.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

SAMPLES = 2000
"""Drawn for an interval: its ends are then good to two digits."""
SEED = 0
ENDS = (0.025, 0.975)


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A number with its 95% interval."""

    value: float
    low: float | None = None
    """None where a stratum holds a single unit: nothing can be said of its spread."""
    high: float | None = None

    def excludes(self, value: float) -> bool:
        """Return whether the interval leaves a value out."""
        return self.low is not None and self.high is not None and not self.low <= value <= self.high


def estimate(
    strata: Sequence[Any],
    number: Callable[..., Any] = lambda mean: mean,
    weights: Sequence[float] | None = None,
) -> Estimate:
    """Return what `number` makes of the means of the quantities, in the order of the columns.

    Every stratum weighs the same unless weights are given. Samples in which the divisor is not
    positive, or the number is not finite, have no value and are left out.
    """
    shares = np.asarray([1.0] * len(strata) if weights is None else weights, dtype=float)
    shares /= shares.sum()
    points, drawn = 0.0, 0.0
    with np.errstate(divide="ignore", invalid="ignore"):
        for index, (share, stratum) in enumerate(zip(shares, strata, strict=True)):
            sums = np.asarray(stratum, dtype=float)
            points += share * _means(sums.sum(0))
            drawn += share * _means(_counts(len(sums), index) @ sums)
        value, samples = number(*np.asarray(points).T), number(*np.asarray(drawn).T)
    samples = samples[np.isfinite(samples)]
    if min(map(len, strata)) < 2 or not len(samples):
        return Estimate(value=float(value))
    low, high = (float(end) for end in np.quantile(samples, ENDS))
    return Estimate(value=float(value), low=low, high=high)


def retention(strata: Sequence[Any]) -> Estimate | None:
    """Return how much of what raw text gains over nothing a method keeps.

    The columns are the method, nothing and raw text. None where raw is not clearly above nothing:
    there is nothing to keep a share of.
    """
    worth = estimate(strata, lambda own, none, raw: raw - none)
    if (worth.value if worth.low is None else worth.low) <= 0:
        return None

    def share(own: Any, none: Any, raw: Any) -> Any:
        return (own - none) / np.where(raw > none, raw - none, np.nan)

    return estimate(strata, share)


def break_even(
    ours: tuple[float, float], other: tuple[float, float]
) -> tuple[int | None, int | None]:
    """Return the first and the last question at which our summed costs are at most the other's.

    Each pair is (cost of the first question on a context, of every later one). (None, None) is
    never, and (k, None) is from k on.
    """
    behind, gain = ours[0] - other[0], other[1] - ours[1]
    if behind <= 0:
        return (1, None) if gain >= 0 else (1, 1 + math.floor(behind / gain))
    return (None, None) if gain <= 0 else (1 + math.ceil(behind / gain), None)


def _means(sums: Any) -> Any:
    divisor = sums[..., -1:]
    return sums[..., :-1] / np.where(divisor > 0, divisor, np.nan)


@lru_cache(maxsize=64)
def _counts(num_units: int, stratum: int) -> Any:
    """Return how often each unit is drawn in each sample; a stratum has draws of its own."""
    generator = np.random.default_rng((SEED, stratum))
    drawn = generator.integers(num_units, size=(SAMPLES, num_units))
    drawn += np.arange(SAMPLES)[:, None] * num_units
    counts = np.bincount(drawn.ravel(), minlength=SAMPLES * num_units)
    return counts.reshape(SAMPLES, num_units).astype(float)
