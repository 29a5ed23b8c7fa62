"""Turn rows into every number that a report shows: scores, differences, retention, costs.

    cell     a task at a length
    board    cells that are averaged: the tasks of a benchmark at a length, or one task alone
    label    a method with its ratio: `octavo@4`

Scores are in percent from here on. Whatever compares methods takes the items that all of them
answered; whatever compares times takes rows of one folder, machine, device and number format.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from octavo_evals.report.costs import Cost, measure_costs
from octavo_evals.report.read import Reading, Row
from octavo_evals.report.statistics import (
    MIN_DIFFERENT,
    Estimate,
    count_different,
    mean_interval,
    paired_difference,
    retention,
)

SUBJECT = "octavo"
"""The method that others are compared with."""
METHODS = (
    "full", "none", "truncate-left", "truncate-middle", SUBJECT, "octavo-agent", "identity",
    "shuffled", "bm25", "llmlingua2", "snapkv-question", "snapkv", "expected-attention", "kvzip",
    "fast-kvzip", "streaming-llm", "knorm", "tova",
)  # fmt: skip
"""The order in which methods are shown; others follow by name."""
_APART = ("gsm8k",)
"""Names before a slash that hold variants of one task: their mean says nothing."""

ByItem = Mapping[str, Row]


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """What a method did at a task and length."""

    score: Estimate | None
    """None where every row was skipped."""
    num_skipped: int
    num_empty: int
    """Answers without a single visible character."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mean:
    """A method's mean over the tasks of a board, each weighing the same."""

    score: Estimate
    num_tasks: int
    """Fewer than the board has: not comparable with a whole mean."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Board:
    """The tasks of a benchmark at a length, or one task alone."""

    name: str
    length: int | None
    tasks: Sequence[str]
    labels: Sequence[str]
    metric: str
    is_likelihood: bool
    cells: Mapping[str, Mapping[str, Cell]]
    """By task, then label."""
    means: Mapping[str, Mean]
    retention: Mapping[str, Estimate | None]
    costs: Mapping[str, Cost]

    @property
    def title(self) -> str:
        """What a reader calls it."""
        name = {"ruler": "RULER", "longbench": "LongBench"}.get(self.name, self.name)
        return name if self.length is None else f"{name} at {self.length:,} tokens"

    @property
    def key(self) -> str:
        """A name for files and the paper's table: `ruler@4096`."""
        return self.name if self.length is None else f"{self.name}@{self.length}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """The subject minus a rival, on the items both answered."""

    board: str
    """A board's title, or `all`: the mean over boards, likelihoods left out."""
    ratio: float
    ours: str
    rival: str
    points: Estimate
    num_different: int
    """Items that the two score differently."""
    is_clear: bool
    """Whether the interval excludes 0 and enough items differ for that to mean something."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Extra:
    """The means of a task's other metrics, in their own units."""

    task: str
    length: int | None
    label: str
    n: int
    metrics: Mapping[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """All numbers of one model."""

    model: str
    fingerprint: str
    boards: Sequence[Board]
    differences: Sequence[Difference]
    extras: Sequence[Extra]
    masked: Sequence[str]
    """Labels of methods that only mask keys, and hold the full cache."""
    skipped: Mapping[str, int]
    """Reason -> rows."""
    settings: Mapping[str, Sequence[str]]
    """What rows say of where they were made -> the different things they say."""

    @property
    def labels(self) -> list[str]:
        """Every label, in the order to show them."""
        return sort_labels({label for board in self.boards for label in board.labels})


def summarise(reading: Reading) -> list[Summary]:
    """Return the numbers of each model, sorted by name."""
    return [_summarise(model, rows) for model, rows in reading.models.items()]


def split_label(label: str) -> tuple[str, float | None]:
    """Return a label's method and ratio."""
    method, _, ratio = label.partition("@")
    return method, float(ratio) if ratio else None


def sort_labels(labels: Iterable[str]) -> list[str]:
    """Return labels in the order to show them."""

    def place(label: str) -> tuple[int, str, float]:
        method, ratio = split_label(label)
        known = METHODS.index(method) if method in METHODS else len(METHODS)
        return known, method, ratio or 0.0

    return sorted(labels, key=place)


def _summarise(model: tuple[str, str], rows: Sequence[Row]) -> Summary:
    cells: dict[tuple[str, int | None], dict[str, list[Row]]] = {}
    for row in rows:
        cells.setdefault((row.task, row.length), {}).setdefault(row.label, []).append(row)
    boards: dict[tuple[str, int | None], list[str]] = {}
    for task, length in cells:
        group = task.partition("/")[0]
        boards.setdefault((task if group in _APART else group, length), []).append(task)
    made = [
        _board(name, length, tasks, {task: cells[task, length] for task in tasks})
        for (name, length), tasks in sorted(boards.items(), key=lambda b: _place(*b[0]))
    ]
    return Summary(
        model=model[0],
        fingerprint=model[1],
        boards=made,
        differences=_differences(made, cells),
        extras=_extras(cells),
        masked=sort_labels({row.label for row in rows if row.content.get("is_masked")}),
        skipped=dict(sorted(Counter(row.skipped for row in rows if row.skipped).items())),
        settings=_settings(rows),
    )


def _place(name: str, length: int | None) -> tuple[int, str, int]:
    """Put RULER first, then LongBench, then the others by name."""
    known = ("ruler", "longbench")
    return known.index(name) if name in known else len(known), name, length or 0


def _task_place(task: str) -> tuple[int, str]:
    """Put needles first, then tracking, counting and questions, as RULER's paper has them."""
    name = task.rpartition("/")[2]
    order = ("niah_single", "niah_multik", "niah_multiv", "niah", "vt", "cwe", "fwe", "qa")
    return next((i for i, start in enumerate(order) if name.startswith(start)), 9), name


def _board(
    name: str,
    length: int | None,
    tasks: Sequence[str],
    by_task: Mapping[str, Mapping[str, Sequence[Row]]],
) -> Board:
    tasks = sorted(tasks, key=_task_place)
    labels = sort_labels({label for task in tasks for label in by_task[task]})
    answered = {
        label: {task: _answered(by_task[task].get(label, ())) for task in tasks} for label in labels
    }
    means: dict[str, Mean] = {}
    kept: dict[str, Estimate | None] = {}
    for label in labels:
        strata = [_scores(items) for items in answered[label].values() if items]
        if strata:
            score = mean_interval(strata).times(100)
            means[label] = Mean(score=score, num_tasks=len(strata))
        if label not in ("none", "full") and {"none", "full"} <= answered.keys():
            columns = _common([answered[one] for one in (label, "none", "full")])
            share = retention(*columns) if columns[0] else None
            kept[label] = None if share is None else share.times(100)
    every = [row for task in tasks for some in by_task[task].values() for row in some]
    by_label = {label: [r for t in tasks for r in by_task[t].get(label, ())] for label in labels}
    return Board(
        name=name,
        length=length,
        tasks=tasks,
        labels=labels,
        metric=", ".join(sorted({row.content.get("metric") or "score" for row in every})),
        is_likelihood=any(row.is_likelihood for row in every),
        cells={
            task: {label: _cell(some) for label, some in by_task[task].items()} for task in tasks
        },
        means=means,
        retention=kept,
        costs=measure_costs(by_label),
    )


def _cell(rows: Sequence[Row]) -> Cell:
    answered = _answered(rows)
    return Cell(
        score=mean_interval([_scores(answered)]).times(100) if answered else None,
        num_skipped=sum(row.skipped is not None for row in rows),
        num_empty=sum(
            not row.is_likelihood and not (row.content.get("answer") or "").strip()
            for row in answered.values()
        ),
    )


def _answered(rows: Iterable[Row]) -> dict[str, Row]:
    return {row.id: row for row in rows if row.score is not None}


def _scores(items: ByItem) -> list[float]:
    return [row.score for row in items.values() if row.score is not None]


def _common(columns: Sequence[Mapping[str, ByItem]]) -> list[list[list[float]]]:
    """Return the scores of the items that all columns hold, by column and stratum, aligned."""
    aligned: list[list[list[float]]] = [[] for _ in columns]
    for stratum in columns[0]:
        held = [column.get(stratum, {}) for column in columns]
        shared = sorted(set(held[0]).intersection(*held[1:]))
        if shared:
            for scores, items in zip(aligned, held, strict=True):
                scores.append(_scores({one: items[one] for one in shared}))
    return aligned


def _differences(
    boards: Sequence[Board], cells: Mapping[tuple[str, int | None], Mapping[str, Sequence[Row]]]
) -> list[Difference]:
    """Compare the subject with every rival of its ratio, and with what has no ratio."""
    labels = sort_labels({label for board in boards for label in board.labels})
    found: list[Difference] = []
    for ours in labels:
        subject, ratio = split_label(ours)
        if subject != SUBJECT or ratio is None:
            continue
        rivals = [one for one in labels if one != ours and split_label(one)[1] in (ratio, None)]
        for rival in rivals:
            ours_all: list[list[float]] = []
            theirs_all: list[list[float]] = []
            weights: list[float] = []
            num_boards = 0
            for board in boards:
                pair = [
                    {t: _answered(cells[t, board.length].get(one, ())) for t in board.tasks}
                    for one in (ours, rival)
                ]
                mine, theirs = _common(pair)
                if not mine:
                    continue
                found.append(_difference(board.title, ratio, ours, rival, mine, theirs))
                if not board.is_likelihood:
                    num_boards += 1
                    ours_all += mine
                    theirs_all += theirs
                    weights += [1 / len(mine)] * len(mine)
            if num_boards > 1:
                everything = (ours_all, theirs_all, weights)
                found.append(_difference("all", ratio, ours, rival, *everything))
    return found


def _difference(
    board: str,
    ratio: float,
    ours: str,
    rival: str,
    mine: list[list[float]],
    theirs: list[list[float]],
    weights: list[float] | None = None,
) -> Difference:
    points = paired_difference(mine, theirs, weights).times(100)
    num_different = count_different(mine, theirs)
    return Difference(
        board=board,
        ratio=ratio,
        ours=ours,
        rival=rival,
        points=points,
        num_different=num_different,
        is_clear=num_different >= MIN_DIFFERENT and points.excludes(0),
    )


def _extras(
    cells: Mapping[tuple[str, int | None], Mapping[str, Sequence[Row]]],
) -> list[Extra]:
    found = []
    for (task, length), by_label in sorted(cells.items(), key=lambda c: _place(*c[0])):
        for label in sort_labels(by_label):
            rows = list(_answered(by_label[label]).values())
            names = dict.fromkeys(name for row in rows for name in row.metrics if name != "score")
            means = {n: fmean(r.metrics[n] for r in rows if n in r.metrics) for n in names}
            if means:
                found.append(
                    Extra(task=task, length=length, label=label, n=len(rows), metrics=means)
                )
    return found


def _settings(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Return what the rows say of where they were made, each thing once."""
    found: dict[str, set[str]] = {}
    for row in rows:
        told = {name: row.content.get(name) for name in ("machine", "device", "dtype")}
        for name, value in (told | dict(row.content.get("versions") or {})).items():
            if value is not None:
                found.setdefault(name, set()).add(str(value))
    return {name: sorted(values) for name, values in found.items()}
