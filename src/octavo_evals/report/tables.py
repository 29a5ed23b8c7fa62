"""Lay numbers out as tables, once for Markdown and the page, and write the Markdown report."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from octavo_evals.report.costs import Cost
from octavo_evals.report.statistics import Estimate, Spread
from octavo_evals.report.summary import Board, Cell, Extra, Summary, sort_labels, split_label

NOTHING = "—"
MASKED = "masks only: holds the full cache"
MINUS = "−"


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """What stands in a cell of a table."""

    text: str
    detail: str = ""
    """In small type below, or in brackets."""
    tone: str = ""
    """`gain` or `loss` where a difference is clear; such cells are bold."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A table to show."""

    title: str
    note: str = ""
    header: Sequence[str]
    rows: Sequence[Sequence[Text]]
    is_wide: bool = False
    """Whether Markdown leaves out the details of all cells but the last two, to stay readable."""
    is_folded: bool = False
    """Whether it is shown only when asked for."""


def make_tables(summary: Summary, paper: Mapping[str, Any]) -> list[Table]:
    """Return every table of a model's report, in order."""
    boards = summary.boards
    tables = [_overview(summary), *(_tasks(summary, b) for b in boards if len(b.tasks) > 1)]
    if any(share for board in boards for share in board.retention.values()):
        tables.append(_retention(summary))
    tables += _differences(summary)
    tables += [_costs(summary, b, is_folded=at > 0) for at, b in enumerate(_timed(boards))]
    tables += _extras(summary)
    reference = _paper(summary, paper)
    return [*tables, reference] if reference else tables


def to_markdown(table: Table) -> str:
    """Return the table as Markdown."""
    last = len(table.header) - 2
    lines = [f"### {table.title}", ""]
    lines += [table.note, ""] if table.note else []
    lines.append("| " + " | ".join(_escape(cell) for cell in table.header) + " |")
    lines.append("|" + "|".join([":--", *["--:"] * (len(table.header) - 1)]) + "|")
    for row in table.rows:
        cells = []
        for place, cell in enumerate(row):
            text = f"**{_escape(cell.text)}**" if cell.tone else _escape(cell.text)
            if cell.detail and (not table.is_wide or place == 0 or place >= last):
                text += f" ({_escape(cell.detail)})"
            cells.append(text)
        lines.append("| " + " | ".join(cells) + " |")
    if table.is_folded:
        body = "\n".join(lines[2:])
        return f"<details><summary>{_escape(table.title)}</summary>\n\n{body}\n\n</details>\n"
    return "\n".join(lines) + "\n"


def _escape(text: str) -> str:
    return re.sub(r"([|*_<>`])", r"\\\1", " ".join(text.split()))


def _name(summary: Summary, label: str) -> Text:
    return Text(text=label, detail=MASKED if label in summary.masked else "")


def percent(estimate: Estimate | None, *, is_signed: bool = False) -> Text:
    """Return an estimate with its interval."""
    if estimate is None:
        return Text(text=NOTHING)
    low, high = (_number(end, is_signed) for end in (estimate.low, estimate.high))
    between = " to " if is_signed or (estimate.low or 0) < 0 else "–"
    detail = f"{low}{between}{high}" if estimate.low is not None else ""
    return Text(text=_number(estimate.value, is_signed), detail=detail)


def _number(value: float | None, is_signed: bool = False) -> str:
    if value is None:
        return NOTHING
    rounded = round(value, 1) + 0.0  # no negative zero
    return f"{rounded:{'+' if is_signed and rounded else ''}.1f}".replace("-", MINUS)


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


def _spread(found: Spread | None, show: Callable[[float], str]) -> Text:
    if found is None:
        return Text(text=NOTHING)
    low, median, high = (show(value) for value in (found.low, found.median, found.high))
    return Text(text=median, detail=f"{low}–{high}" if low != high else "")


def _overview(summary: Summary) -> Table:
    rows = []
    for label in summary.labels:
        cells = [_name(summary, label)]
        for board in summary.boards:
            cells.append(_mean(board, label))
        held = [board.cells[task].get(label) for board in summary.boards for task in board.tasks]
        counts = [
            (c.score.n if c.score else 0, c.num_skipped, c.num_empty) for c in held if c is not None
        ]
        n, skipped, empty = (sum(part) for part in zip(*counts, strict=True))
        rows.append([*cells, *(Text(text=f"{count:,}") for count in (n, skipped, empty))])
    heads = [f"{board.title} ({board.metric})" for board in summary.boards]
    return Table(
        title="Scores",
        note="Mean score in percent with its 95% interval; a benchmark's tasks weigh the same.",
        header=["method", *heads, "answers", "skipped", "empty"],
        rows=rows,
    )


def _mean(board: Board, label: str) -> Text:
    mean = board.means.get(label)
    if mean is None:
        return Text(text=NOTHING)
    shown = percent(mean.score)
    if mean.num_tasks == len(board.tasks):
        return shown
    part = f"{mean.num_tasks} of {len(board.tasks)} tasks"
    return Text(text=shown.text, detail=f"{part}; {shown.detail}" if shown.detail else part)


def _score(cell: Cell | None) -> Text:
    """Return a cell's score; — without one, and how many rows were skipped."""
    shown = percent(cell.score if cell else None)
    if cell is None or not cell.num_skipped:
        return shown
    skipped = f"{cell.num_skipped:,} skipped"
    return Text(text=shown.text, detail=f"{shown.detail}; {skipped}" if shown.detail else skipped)


def short_task(task: str) -> str:
    """Return a task's name within its benchmark."""
    return task.rpartition("/")[2].removeprefix("niah_")


def _tasks(summary: Summary, board: Board) -> Table:
    rows = []
    for label in board.labels:
        cells = [board.cells[task].get(label) for task in board.tasks]
        scores = [_score(cell) for cell in cells]
        n = sum(cell.score.n for cell in cells if cell and cell.score)
        rows.append(
            [_name(summary, label), *scores, Text(text=f"{n:,}"), _mean(board, label)],
        )
    header = ["method", *(short_task(task) for task in board.tasks), "answers", "mean"]
    return Table(title=f"{board.title}, by task", header=header, rows=rows, is_wide=True)


def _retention(summary: Summary) -> Table:
    boards = [board for board in summary.boards if any(board.retention.values())]
    labels = sort_labels({label for board in boards for label in board.retention})
    return Table(
        title="Retention",
        note="The share, in percent, of what the context is worth that a method keeps: "
        "(method − none) / (full − none), on the items all three answered. "
        f"{NOTHING}: full is not clearly above none there, so there is nothing to keep.",
        header=["method", *(board.title for board in boards)],
        rows=[
            [_name(summary, label), *(percent(board.retention.get(label)) for board in boards)]
            for label in labels
        ],
    )


def _differences(summary: Summary) -> list[Table]:
    tables = []
    for ratio in sorted({one.ratio for one in summary.differences}):
        found = {(o.rival, o.board): o for o in summary.differences if o.ratio == ratio}
        ours = next(iter(found.values())).ours
        boards = [b.title for b in summary.boards if any((r, b.title) in found for r, _ in found)]
        boards += ["all"] if any(board == "all" for _, board in found) else []
        rows = []
        for rival in sort_labels({rival for rival, _ in found}):
            cells = [_name(summary, rival)]
            for board in boards:
                one = found.get((rival, board))
                cell = percent(one.points if one else None, is_signed=True)
                tone = "gain" if one and one.points.value > 0 else "loss"
                is_clear = one is not None and one.is_clear
                cells.append(
                    Text(text=cell.text, detail=cell.detail, tone=tone if is_clear else "")
                )
            rows.append(cells)
        tables.append(
            Table(
                title=f"{ours} minus its rivals",
                note="Points of score on the items both answered, with the 95% interval. Bold: "
                "the interval excludes 0 and at least 6 items differ. “all” is the mean over the "
                "columns, likelihoods left out.",
                header=["minus", *boards],
                rows=rows,
            )
        )
    return tables


def _timed(boards: Sequence[Board]) -> list[Board]:
    return [b for b in boards if any(cost.first_ttft_seconds for cost in b.costs.values())]


def _costs(summary: Summary, board: Board, *, is_folded: bool) -> Table:
    def row(label: str, cost: Cost) -> list[Text]:
        return [
            _name(summary, label),
            _spread(cost.compress_seconds, seconds),
            _spread(cost.first_ttft_seconds, seconds),
            _spread(cost.next_ttft_seconds, seconds),
            _spread(cost.speed_up, lambda value: f"{value:.2f}x"),
            Text(text=cost.break_even or NOTHING),
            _spread(cost.decode_tokens_per_second, seconds),
            _spread(cost.prompt_tokens, lambda value: f"{value:,.0f}"),
            _spread(cost.cache_bytes, size),
            _spread(cost.context_bytes, size),
            _spread(cost.peak_bytes, size),
        ]

    return Table(
        title=f"Costs of {board.title}",
        note="Medians with quartiles. The first token of the first question counts compression; "
        "that of the next question finds the context compressed. Faster is against full in the "
        "same folder, item by item. It pays from the question at which the waiting for first "
        "tokens, summed over questions on one context, is no longer than full's; "
        f"{NOTHING} where no context was asked twice.",
        header=[
            "method", "compress, s", "first token, s", "next question, s", "faster", "pays from",
            "decode, tokens/s", "positions read", "cache held", "latents held", "peak memory",
        ],
        rows=[row(label, board.costs[label]) for label in board.labels],
        is_folded=is_folded,
    )  # fmt: skip


def _extras(summary: Summary) -> list[Table]:
    by_names: dict[tuple[str, ...], list[Extra]] = {}
    for extra in summary.extras:
        by_names.setdefault(tuple(sorted(extra.metrics)), []).append(extra)
    tables = []
    for names, extras in by_names.items():
        rows = []
        for one in extras:
            task = one.task if one.length is None else f"{one.task} at {one.length:,}"
            numbers = [Text(text=f"{one.metrics[name]:.3f}") for name in names]
            rows.append([Text(text=one.label), Text(text=task), *numbers, Text(text=f"{one.n:,}")])
        tasks = ", ".join(dict.fromkeys(extra.task for extra in extras))
        tables.append(
            Table(
                title=f"Other metrics of {tasks}",
                note="Means, each in its own unit.",
                header=["method", "task", *names, "answers"],
                rows=rows,
                is_folded=True,
            )
        )
    return tables


PAPER_TITLES = {
    "ruler@4096": "RULER 4K", "ruler@8192": "RULER 8K", "ruler@16384": "RULER 16K",
    "longbench-en": "LongBench English", "longbench-zh": "LongBench Chinese",
    "longhealth": "LongHealth", "gsm8k/whole": "GSM8K",
}  # fmt: skip


def _paper(summary: Summary, paper: Mapping[str, Any]) -> Table | None:
    """Return the paper's scores on the benchmarks that this report has, at its nearest lengths."""
    names = {board.name for board in summary.boards}
    columns = [
        key
        for key in PAPER_TITLES
        if key.split("@")[0] in names or (key.startswith("longbench") and "longbench" in names)
    ]
    if not columns:
        return None
    labels = sorted(paper["scores"], key=lambda label: (split_label(label)[1] or 0, label))
    setup = paper["setup"]
    return Table(
        title="What the paper reports",
        note=f"Percent, from Table 6 of arXiv {paper['source']['arxiv']}: {setup['decoder']} as "
        "the decoder, longer contexts, 500 items a task: another scale, not a rival of the rows "
        "above. lclm is the paper's compressor.",
        header=["method", *(PAPER_TITLES[key] for key in columns)],
        rows=[
            [
                Text(text=label),
                *(Text(text=f"{paper['scores'][label][key]:.1f}") for key in columns),
            ]
            for label in labels
        ],
        is_folded=True,
    )
