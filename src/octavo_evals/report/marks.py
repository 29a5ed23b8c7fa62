"""How methods look in every picture, and where their names go without covering anything.

Colours are told apart with every common kind of colour blindness: most are Paul Tol's "muted"
scheme (https://sronpersonalpages.nl/~pault/, note SRON/EPS/TN/09-002); shapes differ as well.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from octavo_evals.report.summary import SUBJECT, sort_labels

INK = "#1f2328"
FAINT = "#8a9099"
GRID = "#e6e8eb"
PAPER = "#c3c7cd"
STYLES: Mapping[str, tuple[str, str]] = {
    "full": ("#1f2328", "s"),
    "none": ("#6e7781", "X"),
    "truncate-left": ("#8a6642", "<"),
    "truncate-middle": ("#b8946a", "d"),
    SUBJECT: ("#d9480f", "o"),
    "octavo-agent": ("#f08c00", "*"),
    "identity": ("#868e96", "p"),
    "shuffled": ("#adb5bd", "8"),
    "bm25": ("#117733", "P"),
    "llmlingua2": ("#999933", "X"),
    "snapkv-question": ("#56a8d8", "v"),
    "snapkv": ("#332288", "^"),
    "expected-attention": ("#2f9e8f", "D"),
    "kvzip": ("#aa4499", "h"),
    "fast-kvzip": ("#882255", "H"),
    "streaming-llm": ("#c2a83e", ">"),
    "knorm": ("#6699cc", "p"),
    "tova": ("#661100", "8"),
}
"""Method -> colour and marker."""
_SPARE = (("#cc6677", "o"), ("#44aa99", "s"), ("#88ccee", "^"), ("#ddcc77", "v"), ("#999933", "D"))


def find_style(method: str, methods: Iterable[str]) -> tuple[str, str]:
    """Return a method's colour and marker; one that octavo does not know gets a spare one."""
    if method in STYLES:
        return STYLES[method]
    others = [one for one in sort_labels(set(methods)) if one not in STYLES]
    return _SPARE[others.index(method) % len(_SPARE)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Name:
    """A text to place near any of some points, given in data coordinates."""

    text: str
    points: Sequence[tuple[float, float]]
    """The best one first."""
    colour: str
    is_strong: bool = False
    size: float = 8.5


Line = Sequence[tuple[float, float]]
Box = tuple[float, float, float, float]
"""Left, bottom, right, top, in pixels."""


def place_names(
    axes: Any,
    names: Sequence[Name],
    lines: Sequence[Line],
    bars: Sequence[Line] = (),
) -> list[Box]:
    """Write each name where it covers no mark, no other name and as little line as can be.

    `lines` are drawn lines in data coordinates, whose vertices carry marks; `bars` carry none. The
    figure's layout must be final. Returns the boxes of the names.
    """
    figure = axes.figure
    renderer = figure.canvas.get_renderer()
    to_pixels = axes.transData.transform
    paths = [[tuple(map(float, p)) for p in to_pixels(line)] for line in lines if len(line)]
    unit = figure.dpi / 72  # pixels a point
    strokes = [tuple(map(tuple, to_pixels(bar).tolist())) for bar in bars]
    marks = [_around(x, y, 4.5 * unit) for path in paths for x, y in path]
    inside = axes.get_window_extent(renderer)
    frame = (inside.x0 + 2, inside.y0 + 2, inside.x1 - 2, inside.y1 - 2)
    placed: list[Box] = []
    for name in names:
        weight = "bold" if name.is_strong else "normal"
        text = axes.text(0, 0, name.text, fontsize=name.size, color=name.colour, weight=weight)
        extent = text.get_window_extent(renderer)
        text.remove()
        width, height = extent.width + 3 * unit, extent.height
        best: tuple[float, Box, int, tuple[float, float]] | None = None
        for rank, point in enumerate(name.points):
            x, y = map(float, to_pixels(point))
            for reach in (6, 10, 16, 24, 34, 48):
                for box in _boxes_around(x, y, width, height, reach * unit):
                    cost = float(reach + rank * 5)
                    cost += 4000 * sum(_overlap(box, other) for other in placed)
                    cost += 900 * sum(_overlap(box, mark) for mark in marks)
                    cost += 5000 * (not _is_within(box, frame))
                    cost += 25 * sum(
                        _crosses(box, a, b)
                        for path in (*paths, *strokes)
                        for a, b in pairwise(path)
                    )
                    if best is None or cost < best[0]:
                        best = (cost, box, reach, point)
        if best is None:
            continue
        _, chosen, distance, spot = best
        x, y = map(float, to_pixels(spot))
        leader = {
            "arrowstyle": "-",
            "color": name.colour,
            "lw": 0.6,
            "alpha": 0.6,
            "shrinkA": 0,
            "shrinkB": 4,
        }
        axes.annotate(
            name.text,
            xy=spot,
            xytext=((chosen[0] - x) / unit + 1.5, (chosen[1] - y) / unit),
            textcoords="offset points",
            fontsize=name.size,
            color=name.colour,
            weight=weight,
            ha="left",
            va="bottom",
            arrowprops=leader if distance > 10 else None,
            zorder=6,
        )
        placed.append(chosen)
    return placed


def _boxes_around(x: float, y: float, width: float, height: float, reach: float) -> list[Box]:
    """Return boxes to the right, left, above and below, and at the corners."""
    near = reach * 0.72
    corners = [
        (x + reach, y - height / 2), (x - reach - width, y - height / 2),
        (x - width / 2, y + reach), (x - width / 2, y - reach - height),
        (x + near, y + near), (x + near, y - near - height),
        (x - near - width, y + near), (x - near - width, y - near - height),
    ]  # fmt: skip
    return [(left, bottom, left + width, bottom + height) for left, bottom in corners]


def _around(x: float, y: float, radius: float) -> Box:
    return x - radius, y - radius, x + radius, y + radius


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _is_within(box: Box, frame: Box) -> bool:
    return box[0] >= frame[0] and box[1] >= frame[1] and box[2] <= frame[2] and box[3] <= frame[3]


def _crosses(box: Box, start: Sequence[float], end: Sequence[float]) -> bool:
    """Return whether a segment enters a box (Liang and Barsky's clipping, 1984)."""
    enter, leave = 0.0, 1.0
    for axis in (0, 1):
        step = end[axis] - start[axis]
        low, high = box[axis] - start[axis], box[axis + 2] - start[axis]
        if step == 0:
            if low > 0 or high < 0:
                return False
            continue
        near, far = sorted((low / step, high / step))
        enter, leave = max(enter, near), min(leave, far)
    return enter <= leave
