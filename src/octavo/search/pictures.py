"""Draw what a search found: the curves, and loss against what compressing costs."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from octavo.errors import MissingExtraError
from octavo.files import write_file

STYLE = {
    "font.size": 9, "axes.grid": True, "grid.color": "#e3e6ea", "axes.spines.top": False,
    "axes.spines.right": False, "legend.frameon": False, "legend.fontsize": 7,
}  # fmt: skip
FEWEST_SEEDS = 3
"""Of a variant whose interval is drawn."""
SMOOTHED = 9
"""Points of a curve that are averaged."""


def draw(rows: Sequence[Mapping[str, Any]], folder: Path) -> list[str]:
    """Write `curves.png` and `pareto.png`, if there is anything to show, and return their names.

    Raises `MissingExtraError` without matplotlib.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise MissingExtraError("pictures need matplotlib: pip install 'octavo[eval]'") from error
    rows = [row for row in rows if row["loss"]]
    if not rows:
        return []
    with matplotlib.rc_context(STYLE):
        for name, figure in (("curves", _curves(rows)), ("pareto", _pareto(rows))):
            png = partial(figure.savefig, format="png", dpi=130, metadata={"Software": None})
            write_file(folder / f"{name}.png", png)
    return ["curves", "pareto"]


def _curves(rows: Sequence[Mapping[str, Any]]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for row, look in zip(rows, _looks(), strict=False):
        curve = row["curve"]
        smooth = [
            sum(part := curve[max(0, at - SMOOTHED + 1) : at + 1]) / len(part)
            for at in range(len(curve))
        ]
        share = row["steps"] / max(1, len(curve))
        steps = [share * (at + 1) for at in range(len(curve))]
        axes.plot(steps, smooth, label=row["variant"], color=look.color, linestyle=look.line)
    axes.set_xlabel("step")
    axes.set_ylabel("training loss (mean over seeds, smoothed)")
    figure.legend(loc="outside right center")
    return figure


def _pareto(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Show loss against the encoder's FLOPs and against latents; what nothing beats is joined.

    What does not differ is not shown, and intervals are where there are seeds enough for one to be
    read: that of two is a dozen times their distance.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    labels = {"encoder_gflops": "encoder GFLOPs for 4,096 tokens", "latents": "latents"}
    shown = [key for key in labels if len({row[key] for row in rows}) > 1] or list(labels)[:1]
    for place, key in enumerate(shown, 1):
        axes = figure.add_subplot(1, len(shown), place)
        points = sorted((row[key], row["loss"][0]) for row in rows)
        for row, look in zip(rows, _looks(), strict=False):
            mean, low, high = row["loss"]
            bars = None if len(row["seeds"]) < FEWEST_SEEDS else [[mean - low], [high - mean]]
            label = row["variant"] if place == 1 else None
            axes.errorbar([row[key]], [mean], bars, fmt=look.mark, color=look.color, label=label)
        front = [
            point
            for at, point in enumerate(points)
            if all(point[1] < other[1] for other in points[:at])
        ]
        axes.plot(*zip(*front, strict=True), color="#656d76", linewidth=1, zorder=0)
        axes.set_xlabel(labels[key])
        axes.set_ylabel("held-out loss")
    figure.legend(loc="outside right center")
    return figure


class Look(NamedTuple):
    """How a variant is drawn, the same in both pictures."""

    color: str
    line: str
    mark: str


def _looks() -> Iterator[Look]:
    """Yield looks that differ: all colours, then all again with another line and mark."""
    for line, mark in itertools.cycle(zip(("-", "--", ":", "-."), "osD^", strict=True)):
        for number in range(10):
            yield Look(f"C{number}", line, mark)
