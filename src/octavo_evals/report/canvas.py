"""What the pictures share: a figure without global state, its size, and the lines to draw."""

from typing import Any

from octavo_evals.report.marks import FAINT, GRID, INK
from octavo_evals.report.statistics import Estimate
from octavo_evals.report.summary import Board, Summary, split_label

DPI = 160
WIDTH = 9.0
"""Inches; 900 pixels on a page are then 100 an inch, and 9-point type is 12 pixels high."""
STYLE = {
    "font.family": "DejaVu Sans", "font.size": 9, "axes.titlesize": 10, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "axes.edgecolor": FAINT, "axes.labelcolor": INK,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": GRID,
    "axes.axisbelow": True, "xtick.color": INK, "ytick.color": INK, "text.color": INK,
    "svg.hashsalt": "octavo", "figure.dpi": DPI, "legend.frameon": False,
}  # fmt: skip


def new_figure(width: float, height: float) -> Any:
    """Return an empty figure, in inches, that belongs to no window."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def settle(figure: Any) -> None:
    """Fix the layout, so that names can be placed by pixels."""
    figure.canvas.draw()
    figure.set_layout_engine("none")


def list_methods(summary: Summary) -> list[str]:
    """Return every method, in the order to show them."""
    return list(dict.fromkeys(split_label(label)[0] for label in summary.labels))


def find_series(board: Board) -> dict[str, list[tuple[float | None, str]]]:
    """Return each method's (ratio, label) with a whole mean, by rising ratio."""
    found: dict[str, list[tuple[float | None, str]]] = {}
    for label in board.labels:
        mean = board.means.get(label)
        if mean is not None and mean.num_tasks == len(board.tasks):
            method, ratio = split_label(label)
            found.setdefault(method, []).append((ratio, label))
    return found


def arms(estimate: Estimate) -> tuple[float, float]:
    """Return how far the interval reaches below and above."""
    if estimate.low is None or estimate.high is None:
        return 0.0, 0.0
    return max(0.0, estimate.value - estimate.low), max(0.0, estimate.high - estimate.value)


def name_method(summary: Summary, method: str) -> str:
    """Return a method's name, marked if it only masks keys."""
    is_masked = any(split_label(label)[0] == method for label in summary.masked)
    return f"{method} (masks)" if is_masked else method
