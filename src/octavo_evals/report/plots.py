"""Draw the pictures of a report, each as PNG and as an SVG that follows a dark page."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from octavo.files import write_file, write_text
from octavo_evals.methods import METHODS, Entry, find_entry, sort_labels, split_label
from octavo_evals.report.numbers import SUBJECT, Findings
from octavo_evals.report.tables import seconds, size

INK, FAINT, GRID, BACK = "#1f2328", "#656d76", "#e3e6ea", "#ffffff"
DARK = {INK: "#e6e8eb", FAINT: "#9aa3ad", GRID: "#30363d", BACK: "#15181c"} | dict(
    entry.colours for entry in (*METHODS.values(), Entry(place=""))
)
"""What each colour becomes on a dark page."""
STYLE = {
    "font.family": "DejaVu Sans", "font.size": 10, "axes.titlesize": 10, "axes.grid": True,
    "axes.titlelocation": "left", "axes.titleweight": "bold", "axes.edgecolor": FAINT,
    "axes.labelcolor": INK, "axes.spines.top": False, "axes.spines.right": False,
    "grid.color": GRID, "axes.axisbelow": True, "xtick.color": INK, "ytick.color": INK,
    "text.color": INK, "legend.frameon": False, "svg.hashsalt": "octavo", "text.parse_math": False,
}  # fmt: skip
WIDTH = 7.0
"""Inches: at 700 pixels, 10-point type is 14 pixels high."""
_BETTER = (
    "Up and to the left is better. Lines join the ratios of a method, marks shrink as the ratio "
    "rises, and bars are 95% intervals and quartiles."
)
_COSTS = (
    ("first_ttft_seconds", "ttft", "time to the first token", seconds,
     "seconds to the first token of a first question, compressing included (median, log scale)"),
    ("cache_bytes", "bytes", "memory", size,
     "KV cache held for the next question (median, log scale)"),
)  # fmt: skip


class Picture(NamedTuple):
    """A picture of the report, and the name of its files."""

    stem: str
    title: str
    caption: str
    figure: Any


def draw(findings: Findings, folder: Path, prefix: str = "") -> list[Picture]:
    """Draw every picture that the numbers allow; stems begin with `prefix`."""
    import matplotlib

    pictures: list[Picture] = []
    if findings.frames["means"].empty:  # every row was skipped
        return pictures
    with matplotlib.rc_context(STYLE):
        for picture in (*_frontiers(findings), *_curves(findings)):
            stem = re.sub(r"[^A-Za-z0-9.]+", "-", prefix + picture.stem).strip("-.")
            _save(picture.figure, folder / stem)
            pictures.append(picture._replace(stem=stem))
    return pictures


def _save(figure: Any, stem: Path) -> None:
    """Write a figure with nothing that varies between runs."""
    png = partial(figure.savefig, format="png", dpi=150, metadata={"Software": None})
    write_file(stem.with_name(f"{stem.name}.png"), png)
    text = StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    light = "".join(f"--{one[1:]}:{one};" for one in DARK)
    dark = "".join(f"--{one[1:]}:{other};" for one, other in DARK.items())
    sheet = f":root{{{light}}}@media(prefers-color-scheme:dark){{:root{{{dark}}}}}"
    drawing = re.sub("|".join(DARK), lambda found: f"var(--{found[0][1:]})", text.getvalue())
    drawing = drawing.replace("*{stroke-linejoin", f"{sheet}*{{stroke-linejoin", 1)
    write_text(stem.with_name(f"{stem.name}.svg"), drawing)


def _figure(height: float) -> Any:
    """Return an empty figure that belongs to no window."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _look(method: str) -> dict[str, Any]:
    entry, is_ours = find_entry(method), method == SUBJECT
    width, order = (2.4, 5) if is_ours else (1.3, 3)
    look = {"color": entry.colours[0], "marker": entry.marker, "lw": width, "zorder": order}
    return {**look, "markersize": 6, "markeredgecolor": BACK, "markeredgewidth": 0.5}


def _frontiers(findings: Findings) -> Iterator[Picture]:
    """Yield a picture of each board's score against each cost."""
    means, costs = findings.frames["means"], findings.frames["costs"]
    many = [board for board in findings.boards if len(board.tasks) > 1]
    for board in many or [one for one in findings.boards if not one.is_likelihood]:
        key = f"{board.name}-{board.length}" if board.length else board.name
        scored = means[(means.board == board.title) & means.is_whole]
        for measure, name, what, show, axis in _COSTS:
            paid = costs[(costs.board == board.title) & (costs.measure == measure)]
            frame = scored[scored.label != "none"].merge(
                paid[paid["median"] > 0], on="label", suffixes=("", "_cost")
            )
            if len(frame):
                title = f"{board.title}: score against {what}"
                figure = _draw_frontier(frame, scored, findings.masked, axis, show)
                yield Picture(f"frontier-{name}-{key}", title, _BETTER, figure)


def _draw_frontier(
    frame: Any, scored: Any, masked: set[str], axis: str, show: Callable[[float], str]
) -> Any:
    """Return a figure of scores against a cost; raw and none are levels."""
    from adjustText import adjust_text
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    figure = _figure(5.2)
    axes = figure.add_subplot()
    for row in scored[scored.label.isin(("raw", "none"))].itertuples():
        colour, dashes = find_entry(row.label).colours[0], "--" if row.label == "raw" else ":"
        axes.axhline(row.value, color=colour, lw=1, ls=dashes, zorder=1)
        side = axes.get_yaxis_transform()
        axes.text(1.01, row.value, row.label, color=colour, va="center", transform=side)
    names, spots = [], []
    for method, part in frame.groupby("method", sort=False):
        part = part.sort_values("ratio")
        names += _draw_line(axes, method, part, bool(masked & set(part.label)))
        along, steps = np.linspace(0, len(part) - 1, 12), np.arange(len(part))
        spots.append([np.interp(along, steps, part[one]) for one in ("median", "value")])
    axes.set(xscale="log", xlabel=axis, ylabel="mean score, %")
    axes.set_ylim(0, min(104, 1.1 * frame[["value", "high"]].max().max() + 3))
    axes.margins(x=0.12)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: show(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    figure.canvas.draw()  # names are placed by pixels: the layout must stay as it is
    figure.set_layout_engine("none")
    arrows = {"arrowstyle": "-", "color": FAINT, "lw": 0.6}
    avoided = np.concatenate(spots, axis=1)
    adjust_text(names, *avoided, ax=axes, iter_lim=200, expand=(1.1, 1.3), arrowprops=arrows)
    return figure


def _draw_line(axes: Any, method: str, part: Any, is_masked: bool) -> list[Any]:
    """Draw a method's points, and return their names, yet to be moved apart."""
    from matplotlib.patheffects import withStroke

    look, is_ours = _look(method), method == SUBJECT
    x, y = part["median"].to_numpy(), part.value.to_numpy()
    bars = {
        "xerr": (x - part.low_cost, part.high_cost - x),
        "yerr": ((y - part.low).fillna(0), (part.high - y).fillna(0)),
    }
    axes.errorbar(x, y, **bars, fmt="none", alpha=0.35, elinewidth=1, ecolor=look["color"])
    axes.plot(x, y, **look | {"marker": ""})
    sizes = [95 / 1.5**rank for rank in range(len(x))]
    marks = {"marker": look["marker"], "zorder": look["zorder"], "edgecolor": BACK}
    axes.scatter(x, y, s=sizes, c=look["color"], linewidth=0.7, **marks)
    named = {int(y.argmax()): f"{method} (masks)" if is_masked else method}
    if is_ours:
        named = {at: f"{ratio:g}x" for at, ratio in enumerate(part.ratio)}
        named[0] = f"{method} {named[0]}"
    font = {"color": look["color"], "weight": "bold" if is_ours else "normal", "zorder": 6}
    halo = [withStroke(linewidth=2.5, foreground=BACK)]
    shown = named.items() if method != "raw" else ()  # named at its level
    return [axes.text(x[at], y[at], name, path_effects=halo, **font) for at, name in shown]


def _curves(findings: Findings) -> Iterator[Picture]:
    """Yield pictures of scores over ratio, over length and over position in the text."""
    import pandas as pd

    means, extras = findings.frames["means"], findings.frames["extras"]
    means = means[means.is_whole]
    means = means.assign(line=means.method)
    ratios = pd.DataFrame({"at": sorted({*means.ratio} - {0.0})})
    if len(ratios):  # what has no ratio is level over all of them
        level = means[means.ratio == 0].merge(ratios, how="cross")
        means = pd.concat([means[means.ratio > 0].assign(at=means.ratio), level])
        frame = means.assign(panel=means.board, x=means["at"])
        caption = (
            "A curve that stays high to the right keeps much in little room. The shade is octavo's "
            "95% interval; tasks in which all methods score 0 are left out."
        )
        yield Picture("ratio", "Score over ratio", caption, _draw_panels(frame, "ratio"))
    means = means[(means.length > 0) & (means.groupby("name").length.transform("nunique") > 1)]
    if len(means):
        at = means["at"].map(lambda ratio: f" at {ratio:g}x") if len(ratios) else ""
        frame = means.assign(panel=means.board.str.partition(" at ")[0] + at, x=means.length)
        caption = (
            "A level curve serves long contexts as well as short ones. The shade is octavo's 95% "
            "interval; methods without a ratio are in each panel."
        )
        yield Picture(
            "length", "Score over length", caption, _draw_panels(frame, "tokens of the prompt")
        )
    frame = extras[extras.metric.str.fullmatch("accuracy_q[1-4]")] if len(extras) else extras
    if len(frame):
        method, value = [split_label(one)[0] for one in frame.label], 100 * frame.value
        frame = frame.assign(panel=frame.board, line=frame.label, method=method, value=value)
        frame = frame.assign(x=frame.metric.str[-1].astype(int), low=np.nan, high=value)
        caption = (
            "Token accuracy in each quarter of the text to be written: a curve that falls has lost "
            "the end of it."
        )
        yield Picture("position", "Accuracy over position", caption, _draw_panels(frame, "quarter"))


def _draw_panels(frame: Any, axis: str) -> Any:
    """Return a figure with a panel for each value of `panel`, and a curve for each `line`."""
    seen = frame[frame.groupby("panel").value.transform("max") > 0]
    panels = list((seen if len(seen) else frame).groupby("panel", sort=False))
    num_rows = -(-len(panels) // 2)
    figure = _figure(2.6 * num_rows + 1.2)
    places = figure.subplots(num_rows, min(2, len(panels)), squeeze=False, sharey=True).ravel()
    handles: dict[str, Any] = {}
    for axes, (title, part) in zip(places, panels, strict=False):
        ranks: Counter[str] = Counter()
        for line in sort_labels(part.line):
            points = part[part.line == line].sort_values("x")
            method = points.method.iloc[0]
            look = _look(method) | {"ls": ("-", "--", ":", "-.")[ranks[method] % 4]}
            ranks[method] += 1
            (handles[line],) = axes.plot(points.x, points.value, **look)
            if method == SUBJECT and points.low.notna().all():
                shade = {"color": look["color"], "alpha": 0.2, "lw": 0}
                axes.fill_between(points.x, points.low, points.high, **shade)
        axes.set(title=title, xlabel=axis, xscale="linear" if axis == "quarter" else "log")
        ticks = sorted(set(part.x))
        axes.set_xticks(ticks, [f"{x:,.0f}{'x' if axis == 'ratio' else ''}" for x in ticks])
        axes.minorticks_off()
        axes.margins(x=0.1)
    top = frame[["value", "high"]].max().max()
    places[0].set(ylim=(-3, min(104, 1.08 * top + 3)))
    for axes in places[: len(panels) - 2]:
        axes.set_xlabel("")
    for axes in places[len(panels) :]:
        axes.remove()
    figure.supylabel("score, %", size=10)
    named = sort_labels(handles)
    figure.legend([handles[one] for one in named], named, loc="outside lower center", ncols=4)
    return figure
