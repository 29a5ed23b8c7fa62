"""Lay the numbers of a model out as tables, once for Markdown and for the page."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from octavo_evals.methods import sort_labels
from octavo_evals.report.numbers import MIN_DIFFERENT, Findings

MASKED = "masks only: holds the whole cache"
_PAPER = {
    "ruler@4096": "RULER 4K", "ruler@8192": "RULER 8K", "ruler@16384": "RULER 16K",
    "longbench-en": "LongBench English", "longbench-zh": "LongBench Chinese",
    "longhealth": "LongHealth", "gsm8k/whole": "GSM8K",
}  # fmt: skip
"""Columns of the paper's table of scores."""


class Cell(NamedTuple):
    """What stands in a cell of a table."""

    text: str = "—"
    detail: str = ""
    """In small type below, or in brackets."""
    tone: str = ""
    """`gain` or `loss` where a difference is clear."""
    heat: float | None = None
    """A share of 100 to colour the cell by."""


Cells = dict[tuple[str, str], Cell]
"""By label and column."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A table to show, with a row a method."""

    title: str
    note: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    is_folded: bool
    """Whether it is shown only when asked for."""


def make_tables(
    findings: Findings, paper: Mapping[str, Any], others: Mapping[str, Any]
) -> list[Table]:
    """Return every table of a model's report, in order.

    `others` are how it differs from each other model, by that one's title.
    """
    makers = (_tasks, _retention, _differences, _costs, _extras)
    tables = [table for make in makers for table in make(findings)]
    beside = [t for title, frame in others.items() for t in _models(findings, title, frame)]
    return [*_overview(findings), *beside, *tables, *_paper(findings, paper)]


def percent(row: Any, *, is_signed: bool = False) -> Cell:
    """Return the value of a row of numbers, with its interval."""
    low, high = (_number(end, is_signed) for end in (row.low, row.high))
    between = " to " if is_signed or row.low < 0 else "–"
    return Cell(_number(row.value, is_signed), f"{low}{between}{high}" if low else "")


def _number(value: float, is_signed: bool = False) -> str:
    if value != value:
        return ""
    rounded = round(value, 1) + 0.0  # no negative zero
    return f"{rounded:{'+' if is_signed and rounded else ''}.1f}".replace("-", "−")


def seconds(value: float) -> str:
    """Return a time, or any positive number, with three digits that count."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value >= 0.0001 or value == 0 else f"{value:.1e}"


def size(value: float) -> str:
    """Return bytes for people."""
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:,.3g} GB" if value < 1000 else f"{value:,.0f} GB"


def _table(
    findings: Findings,
    title: str,
    note: str,
    cells: Cells,
    heads: Mapping[str, str],
    is_folded: bool = False,
) -> Table:
    """Return a table of those columns of `heads` that have cells."""
    columns = [column for column in heads if any(column == other for _, other in cells)]
    rows = [
        [
            Cell(label, MASKED if label in findings.masked else ""),
            *(cells.get((label, column), Cell()) for column in columns),
        ]
        for label in sort_labels(label for label, _ in cells)
    ]
    header = ["method", *(heads[column] for column in columns)]
    return Table(title=title, note=note, header=header, rows=rows, is_folded=is_folded)


def _titles(findings: Findings, *more: str) -> dict[str, str]:
    titles = [board.title for board in findings.boards]
    return dict(zip([*titles, *more], [*titles, *more], strict=True))


def _overview(findings: Findings) -> Iterator[Table]:
    cells = {(row.label, row.board): _mean(findings, row) for row in findings.rows("means")}
    heads = {board.title: f"{board.title} ({board.metric})" for board in findings.boards}
    counts = findings.frames["scores"].groupby("label")[["n", "skipped", "empty"]].sum()
    for name, head in (("n", "answers"), ("skipped", "skipped"), ("empty", "empty")):
        heads[name] = head
        cells |= {(label, name): Cell(f"{count:,}") for label, count in counts[name].items()}
    note = "Mean score in percent with its 95% interval; a benchmark's tasks weigh the same."
    yield _table(findings, "Scores", note, cells, heads)


def _mean(findings: Findings, row: Any) -> Cell:
    shown = percent(row)
    if row.is_whole:
        return shown
    (num_tasks,) = {len(board.tasks) for board in findings.boards if board.title == row.board}
    part = f"{row.tasks} of {num_tasks} tasks"
    return shown._replace(detail=f"{part}; {shown.detail}" if shown.detail else part)


def _tasks(findings: Findings) -> Iterator[Table]:
    for board in findings.boards:
        cells = {}
        for row in findings.rows("scores", board=board.title):
            text, heat = (_number(row.value), row.value) if row.n else (Cell().text, None)
            detail = f"{row.skipped:,} skipped" if row.skipped else ""
            cells[row.label, row.task] = Cell(text, detail, heat=heat)
        for row in findings.rows("means", board=board.title):
            cells[row.label, "mean"] = _mean(findings, row)
        heads = {task: _short(task) for task in board.tasks} | {"mean": "mean"}
        note = f"Mean score in percent ({board.metric}); intervals are in tables.json."
        if len(board.tasks) > 1:
            yield _table(findings, f"{board.title}, by task", note, cells, heads)


def _short(task: str) -> str:
    return task.rpartition("/")[2].removeprefix("niah_")


def _retention(findings: Findings) -> Iterator[Table]:
    cells = {(row.label, row.board): percent(row) for row in findings.rows("retention")}
    note = (
        "The share, in percent, of what the context is worth that a method keeps: (method − none) "
        "/ (raw − none), on the items all three answered. Tasks where raw is not clearly above "
        "none are left out: there is nothing to keep."
    )
    if cells:
        yield _table(findings, "Retention", note, cells, _titles(findings))


_POINTS = (
    "Points of score on the items both answered, with the 95% interval. Bold: the interval "
    f"excludes 0 and at least {MIN_DIFFERENT} contexts differ."
)


def _models(findings: Findings, other: str, differences: Any) -> Iterator[Table]:
    cells = {(row.label, row.board): _signed(row) for row in differences.itertuples(index=False)}
    if cells:
        yield _table(findings, f"This model minus {other}", _POINTS, cells, _titles(findings))


def _signed(row: Any) -> Cell:
    tone = ("gain" if row.value > 0 else "loss") if row.is_clear else ""
    return percent(row, is_signed=True)._replace(tone=tone)


def _differences(findings: Findings) -> Iterator[Table]:
    note = f"{_POINTS} “all” is the mean over the columns, likelihoods left out."
    for ours in sort_labels(row.ours for row in findings.rows("differences")):
        rows = findings.rows("differences", ours=ours)
        cells = {(row.rival, row.board): _signed(row) for row in rows}
        yield _table(findings, f"{ours} minus its rivals", note, cells, _titles(findings, "all"))


_COSTS: Mapping[str, tuple[str, Callable[[float], str]]] = {
    "compress_seconds": ("compress, s", seconds),
    "first_ttft_seconds": ("first token, s", seconds),
    "next_ttft_seconds": ("next question, s", seconds),
    "speed_up": ("faster", lambda value: f"{value:.2f}x"),
    "pays": ("waits less from", str),
    "decode_tokens_per_second": ("decode, tokens/s", seconds),
    "prompt_tokens": ("positions read", lambda value: f"{value:,.0f}"),
    "cache_bytes": ("cache held", size),
    "context_bytes": ("latents held", size),
    "peak_bytes": ("peak memory", size),
}


def _costs(findings: Findings) -> Iterator[Table]:
    note = (
        "Medians with quartiles. The first token of the first question counts compression; that of "
        "the next finds the context compressed. Faster is against raw in the same folder, item by "
        "item. A method waits less from the question on a context at which its waiting for first "
        "tokens, summed, is no longer than raw's."
    )
    is_folded = False
    for board in findings.boards:
        cells = {}
        for row in findings.rows("costs", board=board.title):
            low, text, high = map(_COSTS[row.measure][1], (row.low, row.median, row.high))
            cells[row.label, row.measure] = Cell(text, f"{low}–{high}" if low != high else "")
        for row in findings.rows("pays", board=board.title):
            text = "never" if row.first is None else f"question {row.first:,}"
            if row.last is not None:
                text = f"question 1 to {row.last:,} only" if row.last > 1 else "question 1 only"
            cells[row.label, "pays"] = Cell(text)
        if any(measure == "first_ttft_seconds" for _, measure in cells):
            heads = {name: head for name, (head, _) in _COSTS.items()}
            yield _table(findings, f"Costs of {board.title}", note, cells, heads, is_folded)
            is_folded = True


def _extras(findings: Findings) -> Iterator[Table]:
    for board in findings.boards:
        cells, heads = {}, {}
        for row in findings.rows("extras", board=board.title):
            head = f"{_short(row.task)}: {row.metric}" if len(board.tasks) > 1 else row.metric
            heads[head] = head
            cells[row.label, head] = Cell(f"{row.value:.3f}")
        title, note = f"Other metrics of {board.title}", "Means, each in its own unit."
        if cells:
            yield _table(findings, title, note, cells, heads, is_folded=True)


def _paper(findings: Findings, paper: Mapping[str, Any]) -> Iterator[Table]:
    """Yield the paper's scores on the benchmarks that this report has."""
    names = {board.name for board in findings.boards}
    heads = {key: head for key, head in _PAPER.items() if re.split("@|-", key)[0] in names}
    setup = paper["setup"]
    note = (
        f"Percent, from Table 6 of arXiv {paper['source']['arxiv']}: {setup['decoder']} as the "
        "decoder, longer contexts, 500 items a task: another scale, not a rival of the rows above. "
        "lclm is the paper's compressor."
    )
    cells = {
        (label, key): Cell(f"{scores[key]:.1f}")
        for label, scores in paper["scores"].items()
        for key in heads
    }
    if cells:
        yield _table(findings, "What the paper reports", note, cells, heads, is_folded=True)
