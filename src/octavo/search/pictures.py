"""Draw what a search found: the curves, and loss against what compressing costs."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from octavo.errors import MissingExtraError
from octavo.files import write_file

STYLE = {
    "font.size": 9, "axes.grid": True, "grid.color": "#e3e6ea", "axes.spines.top": False,
    "axes.spines.right": False, "legend.frameon": False, "legend.fontsize": 7,
}  # fmt: skip
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

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for row in rows:
        curve = row["curve"]
        smooth = [
            sum(part := curve[max(0, at - SMOOTHED + 1) : at + 1]) / len(part)
            for at in range(len(curve))
        ]
        share = row["steps"] / max(1, len(curve))
        axes.plot([share * (at + 1) for at in range(len(curve))], smooth, label=row["variant"])
    axes.set_xlabel("step")
    axes.set_ylabel("training loss (mean over seeds, smoothed)")
    axes.legend()
    return figure


def _pareto(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Show loss against the encoder's FLOPs and against latents; what nothing beats is joined."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    for place, (key, label) in enumerate(
        (("encoder_gflops", "encoder GFLOPs for 4,096 tokens"), ("latents", "latents")), 1
    ):
        axes = figure.add_subplot(1, 2, place)
        points = sorted((row[key], row["loss"][0]) for row in rows)
        for row in rows:
            mean, low, high = row["loss"]
            bars = None if low is None else [[mean - low], [high - mean]]
            axes.errorbar([row[key]], [mean], yerr=bars, fmt="o", label=row["variant"])
        front = [
            point
            for at, point in enumerate(points)
            if all(point[1] < other[1] for other in points[:at])
        ]
        axes.plot(*zip(*front, strict=True), color="#656d76", linewidth=1, zorder=0)
        axes.set_xlabel(label)
        axes.set_ylabel("held-out loss")
    figure.axes[0].legend()
    return figure
