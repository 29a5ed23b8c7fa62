"""Draw scores over ratio, over length and over position in the text."""

from collections.abc import Callable, Mapping, Sequence
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
from octavo_evals.report.marks import FAINT, PAPER, Name, find_style, place_names
from octavo_evals.report.statistics import Estimate
from octavo_evals.report.summary import SUBJECT, Board, Extra, Summary, split_label
from octavo_evals.report.tables import PAPER_TITLES

PAPER_METHODS = {
    "lclm": "LCLM",
    "kvzip": "KVzip",
    "expected-attention": "Exp. Attention",
    "snapkv": "SnapKV",
}
SMALL: dict[str, Any] = {"fontsize": 6.5, "color": FAINT, "fontweight": "normal"}
_ROOM = 3.6
"""Times the last ratio: where the axis ends, with room for the paper's names."""
_NAME_HEIGHT = 6.5
"""Of one of those names, in points of score."""


def draw_over_ratio(summary: Summary, paper: Mapping[str, Any]) -> Any:
    """Return a figure with a panel a board, None if no method has a ratio."""
    series = [(board, find_series(board)) for board in summary.boards]
    series = [(b, one) for b, one in series if any(r for steps in one.values() for r, _ in steps)]
    ratios = sorted({r for _, one in series for steps in one.values() for r, _ in steps if r})
    if not series:
        return None
    figure, panels = _panels(len(series))
    methods = list_methods(summary)
    keys = [_nearest_in_paper(board) for board, _ in series]
    for axes, key, (board, one) in zip(panels, keys, series, strict=True):
        curved = [method for method, steps in one.items() if steps[0][0] is not None]
        for method, steps in one.items():
            scores = [board.means[label].score for _, label in steps]
            name = name_method(summary, method)
            if method not in curved:
                look: Any = {"full": (0, (5, 3)), "none": (0, (1, 2))}.get(method, "-.")
                colour, _ = find_style(method, methods)
                axes.axhline(scores[0].value, color=colour, lw=1.2, ls=look, label=name, zorder=2)
                continue
            # A little to the side of one another, so that no bar hides another.
            step = min(0.05, 0.3 / len(curved))
            aside = 2 ** (step * (curved.index(method) - (len(curved) - 1) / 2))
            x = [ratio * aside for ratio, _ in steps if ratio is not None]
            _draw_curve(axes, method, name, methods, x, scores)
        axes.set_title(board.title, fontsize=9, pad=15 if any(keys) else 6)
        _set_log2_axis(axes, ratios, lambda value: f"{value:g}x")
        axes.set_ylim(-3, 103)
        axes.set_ylabel(f"{board.metric}, %")
        if key is not None:
            _draw_paper(axes, key, ratios, paper)
    _draw_legend(figure, panels)
    settle(figure)
    return figure


def _panels(count: int, height: float = 2.9) -> tuple[Any, list[Any]]:
    num_columns = min(count, 2 if count in (2, 4) else 3)
    num_rows = -(-count // num_columns)
    figure = new_figure(WIDTH, height * num_rows + 0.6)
    grid = figure.subplots(num_rows, num_columns, squeeze=False)
    flat = list(grid.ravel())
    for spare in flat[count:]:
        spare.remove()
    return figure, flat[:count]


def _draw_legend(figure: Any, axes: Sequence[Any]) -> None:
    found: dict[str, Any] = {}
    for one in axes:
        handles, labels = one.get_legend_handles_labels()
        found |= {k: v for k, v in zip(labels, handles, strict=True) if k not in found}
    figure.legend(
        found.values(), found.keys(), loc="outside lower center", ncols=min(5, len(found)),
        handlelength=2.4, columnspacing=1.6,
    )  # fmt: skip


def _draw_curve(
    axes: Any,
    method: str,
    name: str,
    methods: Sequence[str],
    x: Sequence[float],
    y: Sequence[Estimate],
) -> None:
    colour, marker = find_style(method, methods)
    is_ours = method == SUBJECT
    values = [one.value for one in y]
    axes.plot(
        x, values, color=colour, marker=marker, label=name, lw=2.4 if is_ours else 1.2,
        markersize=6.5 if is_ours else 5.5, markeredgecolor="white", markeredgewidth=0.6,
        zorder=5 if is_ours else 3,
    )  # fmt: skip
    for at, value, one in zip(x, values, y, strict=True):
        down, up = arms(one)
        axes.plot((at, at), (value - down, value + up), color=colour, lw=0.9, alpha=0.5, zorder=2)


def _set_log2_axis(axes: Any, values: Sequence[float], show: Callable[[float], str]) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(sorted(set(values))))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: show(value)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(min(values) / 1.3, max(values) * 1.3)


def _nearest_in_paper(board: Board) -> str | None:
    """Return the column of the paper's Table 6 that measures the same at the nearest length."""
    if board.name == "ruler" and board.length is not None:
        length = min((4096, 8192, 16384), key=lambda n: abs(n - (board.length or 0)))
        return f"ruler@{length}"
    return board.name if board.name in PAPER_TITLES else None


def _draw_paper(axes: Any, key: str, ratios: Sequence[float], paper: Mapping[str, Any]) -> None:
    """Draw the paper's numbers in faint grey, named at the right from the top down."""
    note = f"grey: the paper, {PAPER_TITLES[key]}"
    axes.text(0, 1.025, note, transform=axes.transAxes, va="bottom", **SMALL)
    ends: list[tuple[float, str]] = []
    x: list[float] = []
    for method, name in PAPER_METHODS.items():
        x = [ratio for ratio in ratios if f"{method}@{ratio:g}" in paper["scores"]]
        y = [paper["scores"][f"{method}@{ratio:g}"][key] for ratio in x]
        if x:
            axes.plot(x, y, color=PAPER, lw=1, marker="o", markersize=3, zorder=1)
            ends.append((y[-1], name))
    axes.set_xlim(right=max(ratios) * _ROOM)
    height = 101.0
    for value, name in sorted(ends, reverse=True):
        lowest = _NAME_HEIGHT * (len(ends) - [n for _, n in sorted(ends, reverse=True)].index(name))
        height = max(min(value, height - _NAME_HEIGHT), lowest - _NAME_HEIGHT)
        axes.annotate(
            name, (x[-1], value), xytext=(x[-1] * 1.3, height), va="center", **SMALL,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
            arrowprops={"arrowstyle": "-", "color": PAPER, "lw": 0.5, "shrinkA": 0, "shrinkB": 2},
        )  # fmt: skip


def draw_over_length(summary: Summary) -> Any:
    """Return a figure with a panel a ratio, None if there is but one length."""
    lengths: dict[str, list[Board]] = {}
    for board in summary.boards:
        if board.length is not None:
            lengths.setdefault(board.name, []).append(board)
    curves = {name: boards for name, boards in lengths.items() if len(boards) > 1}
    drawn = [find_series(board) for boards in curves.values() for board in boards]
    ratios = sorted({r for one in drawn for steps in one.values() for r, _ in steps if r})
    every: list[float | None] = [*ratios] or [None]
    plots = [(name, ratio) for name in curves for ratio in every]
    if not plots:
        return None
    figure, panels = _panels(len(plots))
    methods = list_methods(summary)
    for axes, (name, ratio) in zip(panels, plots, strict=True):
        found: dict[str, list[tuple[float, Estimate]]] = {}
        for board in curves[name]:
            for method, steps in find_series(board).items():
                for own, label in steps:
                    if own in (None, ratio):
                        point = (float(board.length or 0), board.means[label].score)
                        found.setdefault(method, []).append(point)
        for method, points in found.items():
            shown = name_method(summary, method)
            x, y = [x for x, _ in points], [y for _, y in points]
            _draw_curve(axes, method, shown, methods, x, y)
        sizes = [float(board.length or 0) for board in curves[name]]
        _set_log2_axis(axes, sizes, lambda value: f"{value:,.0f}")
        axes.set_title(
            curves[name][0].title.split(" at ")[0] + (f" at {ratio:g}x" if ratio else "")
        )
        axes.set_ylim(-3, 103)
        axes.set_xlabel("tokens of the prompt")
        axes.set_ylabel("mean score, %")
    _draw_legend(figure, panels)
    settle(figure)
    return figure


def draw_over_position(summary: Summary) -> Any:
    """Return a figure with a panel a length of token accuracy by quarter, or None."""
    quarters = [f"accuracy_q{quarter}" for quarter in (1, 2, 3, 4)]
    by_length: dict[int | None, list[Extra]] = {}
    for extra in summary.extras:
        if extra.task == "reconstruction" and all(name in extra.metrics for name in quarters):
            by_length.setdefault(extra.length, []).append(extra)
    if not by_length:
        return None
    figure = new_figure(WIDTH, 4.4)
    panels = list(figure.subplots(1, len(by_length), squeeze=False)[0])
    methods = list_methods(summary)
    for axes, length in zip(panels, by_length, strict=True):
        if length is not None:
            axes.set_title(f"reconstruction at {length:,} tokens")
        axes.set_xticks([1, 2, 3, 4], ["first", "second", "third", "last quarter"])
        axes.set_xlim(0.7, 4.7)
        axes.set_ylim(-3, 106)
        axes.set_ylabel("token accuracy, %")
    settle(figure)
    for axes, extras in zip(panels, by_length.values(), strict=True):
        lines: list[list[tuple[float, float]]] = []
        names: list[Name] = []
        seen: dict[str, int] = {}
        for extra in extras:
            method, _ = split_label(extra.label)
            colour, marker = find_style(method, methods)
            rank = seen[method] = seen.get(method, -1) + 1
            is_ours = method == SUBJECT
            values = [100 * extra.metrics[name] for name in quarters]
            axes.plot(
                (1, 2, 3, 4), values, color=colour, marker=marker, lw=2.2 if is_ours else 1.2,
                ls=("-", "--", ":", "-.")[rank % 4], markeredgecolor="white", markersize=7,
            )  # fmt: skip
            points = list(zip((1.0, 2.0, 3.0, 4.0), values, strict=True))
            lines.append(points)
            spots = [points[at] for at in (3, 0, 2, 1)]
            names.append(Name(text=extra.label, points=spots, colour=colour, is_strong=is_ours))
        place_names(axes, names, lines)
    return figure
