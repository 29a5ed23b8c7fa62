"""Draw a board: score against a cost, and score by task and method."""

from collections.abc import Callable, Sequence
from typing import Any

from octavo_evals.report.canvas import (
    WIDTH,
    arms,
    find_series,
    list_methods,
    name_method,
    new_figure,
    settle,
)
from octavo_evals.report.costs import Cost
from octavo_evals.report.marks import (
    FAINT,
    INK,
    PAPER,
    Line,
    Name,
    find_style,
    place_names,
)
from octavo_evals.report.statistics import Spread
from octavo_evals.report.summary import SUBJECT, Board, Summary, split_label
from octavo_evals.report.tables import short_task


def draw_frontier(
    summary: Summary,
    board: Board,
    measure: Callable[[Cost], Spread | None],
    axis: str,
    show: Callable[[float], str],
    paper: Sequence[tuple[str, Line]] = (),
) -> Any:
    """Return a figure of score against a cost, None if the cost was measured nowhere.

    `paper` are faint reference points: a name and its line.
    """
    figure = new_figure(WIDTH, 5.4)
    axes = figure.add_subplot()
    methods = list_methods(summary)
    names: list[Name] = []
    lines: list[Line] = []
    bars: list[Line] = []
    for method, steps in find_series(board).items():
        drawn = [
            (board.means[label].score, cost, label)
            for _, label in steps
            if method != "none" and (cost := measure(board.costs[label])) and cost.median > 0
        ]
        if not drawn:
            continue
        is_ours = method == SUBJECT
        colour, marker = find_style(method, methods)
        points = [(cost.median, score.value) for score, cost, _ in drawn]
        axes.plot(*zip(*points, strict=True), color=colour, lw=2.2 if is_ours else 1.2, zorder=3)
        for rank, (score, cost, label) in enumerate(drawn):
            x, y = points[rank]
            down, up = arms(score)
            bars += [[(x, y - down), (x, y + up)], [(cost.low, y), (cost.high, y)]]
            axes.plot(
                x, y, marker=marker, color=colour, ls="none", markeredgecolor="white",
                markersize=max(4.5, 9.5 - 2 * rank) + is_ours, markeredgewidth=0.7,
                zorder=5 if is_ours else 4,
            )  # fmt: skip
            ratio = split_label(label)[1]
            if is_ours and ratio is not None:
                text = f"{ratio:g}x"
                names.append(Name(text=text, points=[(x, y)], colour=colour, is_strong=True))
        for bar in bars[-2 * len(drawn) :]:
            axes.plot(*zip(*bar, strict=True), color=colour, lw=0.9, alpha=0.55, zorder=2)
        lines.append(points)
        size = 10 if is_ours else 8.5
        text = name_method(summary, method)
        names.append(Name(text=text, points=points, colour=colour, is_strong=is_ours, size=size))
    if not lines:
        return None
    for name, line in paper:
        axes.plot(*zip(*line, strict=True), color=PAPER, lw=0.9, marker="o", ms=3.5, zorder=1)
        lines.append(line)
        names.append(Name(text=name, points=list(line), colour=FAINT, size=6.5))
    axes.set_xscale("log")
    axes.set_ylim(0, min(106, 1.08 * max(y for line in (*lines, *bars) for _, y in line) + 3))
    axes.margins(x=0.1)
    axes.set_title("\u2196 better", fontsize=8.5, color=FAINT, fontweight="normal")
    _label_log_axis(axes, [x for line in lines for x, _ in line], show)
    axes.set_xlabel(f"{axis} (median, log scale)")
    axes.set_ylabel(f"{board.title}: mean score, %")
    settle(figure)
    left, right = axes.get_xlim()
    for method, look in (("full", (0, (5, 3))), ("none", (0, (1, 2)))):
        if method in board.means:
            colour, _ = find_style(method, methods)
            value = board.means[method].score.value
            axes.axhline(value, color=colour, lw=0.9, ls=look, zorder=1)
            bars.append([(left, value), (right, value)])
    if "none" in board.means:
        value = board.means["none"].score.value
        spots = [(left * (right / left) ** share, value) for share in (0.97, 0.75, 0.5, 0.25, 0.1)]
        names.append(Name(text=f"none {value:.1f}", points=spots, colour=FAINT, size=8))
    axes.set_xlim(left, right)
    names.sort(key=lambda name: (not name.is_strong, -name.size))
    place_names(axes, names, lines, bars)
    return figure


def _label_log_axis(axes: Any, values: Sequence[float], show: Callable[[float], str]) -> None:
    """Label round numbers of each decade in the unit of `show`, the fewer the more decades."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    span = max(values) / min(values)
    steps: tuple[float, ...] = (1, 2, 5) if span < 300 else (1,)
    if span < 12:
        steps = (1, 1.5, 2, 3, 4, 5, 7) if span > 3 else (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)
    ticks = [step * 10.0**power for power in range(-6, 15) for step in steps]
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: show(value)))
    axes.xaxis.set_minor_locator(NullLocator())


def draw_heatmap(summary: Summary, board: Board) -> Any:
    """Return a figure with a row a method: its mean, and its score at each task."""
    from matplotlib.colors import LinearSegmentedColormap

    labels, tasks = list(board.labels), list(board.tasks)
    figure = new_figure(WIDTH, 0.225 * len(labels) + 1.1)
    axes = figure.add_subplot()
    # Light to dark in lightness alone, so that it reads in grey and to every eye.
    ramp = LinearSegmentedColormap.from_list("ramp", ["#fbfaf7", "#bcd9e6", "#4a8fb8", "#12355b"])
    heights, height = [], 0.0
    for before, label in zip(["", *labels], labels, strict=False):
        height += 0.25 if before and split_label(before)[0] != split_label(label)[0] else 0
        heights.append(height + 0.5)
        values = [_find_mean(board, label), *(_find_score(board, task, label) for task in tasks)]
        for place, value in enumerate(values):
            left = place + 0.25 * (place > 0)
            colour = ramp((value or 0) / 100) if value is not None else "white"
            axes.barh(height + 0.5, 0.94, left=left, height=0.94, color=colour)
            axes.text(
                left + 0.47, height + 0.5, "—" if value is None else f"{value:.0f}",
                ha="center", va="center", fontsize=8, weight="normal" if place else "bold",
                color="white" if value is not None and value > 55 else INK,
            )  # fmt: skip
        height += 1
    marked = [label + ("*" if label in summary.masked else "") for label in labels]
    axes.set_yticks(heights, marked)
    for tick, label in zip(axes.get_yticklabels(), labels, strict=True):
        if split_label(label)[0] == SUBJECT:
            tick.set(color=find_style(SUBJECT, ())[0], weight="bold")
    axes.xaxis.tick_top()
    centres = [place + 0.47 + 0.25 * (place > 0) for place in range(len(tasks) + 1)]
    names = ["mean", *(short_task(task) for task in tasks)]
    axes.set_xticks(centres, names, rotation=35, ha="left", rotation_mode="anchor")
    axes.set(xlim=(0, len(tasks) + 1.25), ylim=(height, 0))
    axes.tick_params(length=0)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    if summary.masked:
        axes.set_xlabel("* masks only: holds the full cache", fontsize=8, loc="left")
    settle(figure)
    return figure


def _find_mean(board: Board, label: str) -> float | None:
    mean = board.means.get(label)
    return mean.score.value if mean and mean.num_tasks == len(board.tasks) else None


def _find_score(board: Board, task: str, label: str) -> float | None:
    cell = board.cells[task].get(label)
    return cell.score.value if cell and cell.score else None
