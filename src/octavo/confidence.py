"""How far an answer can be trusted: its likelihood, calibrated on answers whose truth is known.

    mean log-probability of the answer's tokens  --Curve-->  how likely the answer is right

A model has a curve of its own for each thing it may have read (`Reading`): what a likelihood is
worth depends on it, and from latents of a weak compressor it is worth nothing. Curves are logistic,
fitted with the smoothed targets of Platt (Probabilistic Outputs for Support Vector Machines, 1999).
What was measured of a model is kept in one small file, found by the fingerprint of its weights.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from octavo.errors import ConfigError
from octavo.files import write_text
from octavo.home import home, make_private

Reading = Literal["latents", "passages", "raw"]
"""What an answer was made from: latents, a few raw passages, or the whole raw text."""
THRESHOLD = 0.5
"""An answer that is likelier wrong than right is not presented as a fact."""
FORMAT_VERSION = 1
MIN_ITEMS = 8
"""Right and wrong answers together, below which no curve is fitted."""
_LEAST_LOGPROB = -50.0
_STEPS = 50
_MAX_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """The probability that an answer is right, by the mean log-probability of its tokens."""

    slope: float
    intercept: float
    num_items: int
    """Answers it was fitted on."""
    auc: float | None
    """How well the likelihood told right answers from wrong ones there; None where all agreed."""

    def __call__(self, logprob: float) -> float:
        """Return a probability."""
        return _logistic(self.slope * max(logprob, _LEAST_LOGPROB) + self.intercept)


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What was measured of a model: how to trust it, and how to let it expand passages."""

    fingerprint: str
    curves: Mapping[str, Curve] = field(default_factory=dict)
    """By reading."""
    policy: str | None = None
    """The agent's policy that answered most items right."""
    layout: str | None = None
    """Where expanded passages helped most (`octavo.expand.LAYOUTS`)."""
    accuracy: Mapping[str, float] = field(default_factory=dict)
    """By what was tried, `POLICY, LAYOUT`: the share of items that were answered right."""
    about: str = ""
    """On which items, for whoever reads the file."""

    def confidence(self, reading: Reading, logprob: float | None) -> float | None:
        """Return how likely an answer is right; None where nothing was measured or said."""
        curve = self.curves.get(reading)
        return None if curve is None or logprob is None else curve(logprob)


def fit(logprobs: Sequence[float], is_right: Sequence[bool]) -> Curve:
    """Fit a curve; raises `ConfigError` for fewer than `MIN_ITEMS` answers.

    Where all answers are right, or wrong, the curve is nearly flat. It never falls: a likelihood
    that misleads is ignored, and every answer is then as likely right as the others were.
    """
    if len(logprobs) < MIN_ITEMS:
        raise ConfigError(
            f"{len(logprobs)} answers are too few to calibrate on; give at least {MIN_ITEMS} items"
        )
    num_right = sum(is_right)
    high, low = (num_right + 1) / (num_right + 2), 1 / (len(is_right) - num_right + 2)
    points = [
        (max(logprob, _LEAST_LOGPROB), high if right else low)
        for logprob, right in zip(logprobs, is_right, strict=True)
    ]
    slope, intercept = _newton(points)
    if slope < 0:
        share = sum(target for _, target in points) / len(points)
        slope, intercept = 0.0, math.log(share / (1 - share))
    return Curve(
        slope=slope, intercept=intercept, num_items=len(points), auc=auc(logprobs, is_right)
    )


def roc(values: Sequence[float], is_right: Sequence[bool]) -> list[tuple[float, float, float]]:
    """Return `(threshold, share of wrong, share of right answers at or above it)`, falling."""
    num_right = sum(is_right)
    num_wrong = len(is_right) - num_right
    points = []
    for threshold in sorted(set(values), reverse=True):
        passed = [
            right for value, right in zip(values, is_right, strict=True) if value >= threshold
        ]
        wrong, right = len(passed) - sum(passed), sum(passed)
        points.append((threshold, wrong / max(1, num_wrong), right / max(1, num_right)))
    return points


def auc(values: Sequence[float], is_right: Sequence[bool]) -> float | None:
    """Return the area under the ROC: how often a right answer has the greater value; ties half.

    None where all answers are right, or all wrong.
    """
    return auc_within([(values, is_right)])


def auc_within(groups: Iterable[tuple[Sequence[float], Sequence[bool]]]) -> float | None:
    """Return the area under the ROC over pairs of answers to the same group, as to one task."""
    won, pairs = 0.0, 0
    for values, is_right in groups:
        right = [value for value, is_true in zip(values, is_right, strict=True) if is_true]
        wrong = [value for value, is_true in zip(values, is_right, strict=True) if not is_true]
        won += sum((one > other) + 0.5 * (one == other) for one in right for other in wrong)
        pairs += len(right) * len(wrong)
    return won / pairs if pairs else None


def read_measured(fingerprint: str) -> Measured:
    """Return what was measured of a model: on this machine, or by us; nothing where it was not.

    Raises `ConfigError` for a file that is damaged.
    """
    name = f"{fingerprint}.json"
    shipped = resources.files("octavo").joinpath("assets", "measured", name)
    for place in (home() / "measured" / name, shipped):
        if place.is_file():
            try:
                text = place.read_text(encoding="utf-8")
                return _of_json(json.loads(text[:_MAX_BYTES]), fingerprint)
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
                raise ConfigError(
                    f"{place} is damaged ({type(error).__name__}: {error}); remove it, or measure "
                    "the model again with octavo agent --calibrate"
                ) from error
    return Measured(fingerprint=fingerprint)


def write_measured(measured: Measured) -> Path:
    """Keep what was measured for `read_measured`, and return where."""
    folder = home() / "measured"
    make_private(home())
    make_private(folder)
    path = folder / f"{measured.fingerprint}.json"
    write_text(path, json.dumps({"format_version": FORMAT_VERSION, **asdict(measured)}, indent=1))
    return path


def _of_json(values: Any, fingerprint: str) -> Measured:
    """Build what a file holds; raises all kinds of errors for what it should not."""
    if values.pop("format_version") != FORMAT_VERSION or values["fingerprint"] != fingerprint:
        raise ValueError("it is of another octavo or another model")
    curves = {name: Curve(**curve) for name, curve in values.pop("curves").items()}
    for curve in curves.values():
        if not math.isfinite(float(curve.slope) + float(curve.intercept)):
            raise ValueError("a curve is not finite")
    return Measured(**values, curves=curves)


def _newton(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Fit a logistic curve to `(x, target)` by Newton's method with a slight ridge."""
    slope = intercept = 0.0
    for _ in range(_STEPS):
        gradient, hessian = [1e-3 * slope, 1e-3 * intercept], [1e-3, 0.0, 1e-3]
        for x, target in points:
            found = _logistic(slope * x + intercept)
            spread = found * (1 - found)
            gradient[0] += (found - target) * x
            gradient[1] += found - target
            hessian = [hessian[0] + spread * x * x, hessian[1] + spread * x, hessian[2] + spread]
        determinant = hessian[0] * hessian[2] - hessian[1] ** 2
        first = (hessian[2] * gradient[0] - hessian[1] * gradient[1]) / determinant
        second = (hessian[0] * gradient[1] - hessian[1] * gradient[0]) / determinant
        # A full step may overshoot where the curve is flat.
        scale = min(1.0, 2.0 / max(abs(first), abs(second), 1e-12))
        slope, intercept = slope - scale * first, intercept - scale * second
        if max(abs(first), abs(second)) < 1e-9:
            break
    return slope, intercept


def _logistic(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value > -700 else 0.0
