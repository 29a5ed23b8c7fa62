"""Turn rows into every number that a report shows: scores, differences, retention, costs.

    board    tasks that are averaged: those of a benchmark at a length, or one task alone
    label    a method with its ratio: `octavo@4`

Scores are in percent from here on. Whatever compares methods takes the items that all of them
answered; whatever compares times takes rows of one folder, machine, device and number format.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from octavo.statistics import Estimate, break_even, estimate, retention
from octavo_evals.methods import sort_labels, split_label

SUBJECT = "octavo"
"""The method that others are compared with."""
MIN_DIFFERENT = 6
"""So many contexts must differ before a difference is called clear: were the methods equal, five
all on one side would come up in 1 of 16 cases (two-sided sign test), six in 1 of 32."""
QUARTILES = [0.25, 0.5, 0.75]
_TITLES = {"ruler": "RULER", "longbench": "LongBench"}


@dataclass(kw_only=True, slots=True)
class Board:
    """The tasks of a benchmark at a length, or one task alone."""

    title: str
    name: str
    length: int
    tasks: list[str]
    metric: str
    is_likelihood: bool
    wide: Any
    """The scores: a row an item (task, context, id), a column a label."""
    units: Any
    """The number of each item's context; they rise."""


@dataclass(kw_only=True, slots=True)
class Findings:
    """All numbers of one model."""

    model: str
    fingerprint: str
    boards: list[Board]
    masked: set[str]
    """Labels of methods that only mask keys, and hold the whole cache."""
    skipped: dict[str, int]
    """Reason -> rows."""
    settings: dict[str, list[str]]
    """What rows say of where they were made -> the different things they say."""
    frames: dict[str, Any]
    """`scores` of tasks, `means` of boards, `retention`, `differences`, `costs`, `pays`, `extras`:
    data frames, where `board` is a board's title."""

    def rows(self, name: str, **where: str) -> list[Any]:
        """Return the rows of a data frame whose columns have these values, as named tuples."""
        frame = self.frames[name]
        for column, value in where.items():
            frame = frame if frame.empty else frame[frame[column] == value]
        return list(frame.itertuples(index=False))


def summarise(rows: Any) -> list[Findings]:
    """Return the numbers of each model, sorted by name."""
    return [_findings(part) for _, part in rows.groupby(["model", "fingerprint"])]


def compare_models(ours: Findings, other: Findings) -> Any:
    """Return by how much one model scores above another, method by method, on what both answered.

    A data frame like `differences`, where the label stands once.
    """
    import pandas as pd

    found = []
    boards = {board.title: board for board in other.boards}
    for board in (board for board in ours.boards if board.title in boards):
        theirs = boards[board.title].wide
        for label in board.wide.columns.intersection(theirs.columns, sort=False):
            wide = pd.concat([board.wide[label], theirs[label]], axis=1, keys=["ours", "other"])
            units = wide.groupby(level=["task", "context"]).ngroup().to_numpy()
            joined = replace(board, wide=wide, units=units)
            if strata := [*_strata(joined, "ours", "other").values()]:
                found.append({"board": board.title, "label": label, **_difference(strata)})
    return pd.DataFrame(found)


def _findings(rows: Any) -> Findings:
    import pandas as pd

    def place(board: Any) -> tuple[Any, ...]:
        (name, length, _), _ = board
        return name != "ruler", name != "longbench", name, length

    # Variants of one task stand alone: their mean says nothing.
    names = rows.task.where(rows.task.str.startswith("gsm8k/"), rows.task.str.partition("/")[0])
    lengths = rows.length.map(lambda length: f" at {length:,} tokens" if length else "")
    rows = rows.assign(name=names, board=names.replace(_TITLES) + lengths)
    parts = sorted(rows.groupby(["name", "length", "board"]), key=place)
    boards = [_board(name, length, title, part) for (name, length, title), part in parts]
    settings: dict[str, set[str]] = {}
    for row in rows[["machine", "device", "dtype", "versions"]].to_dict("records"):
        for name, value in (row | row.pop("versions")).items():
            if value:
                settings.setdefault(name, set()).add(str(value))
    costs = _costs(rows)
    return Findings(
        model=rows.model.iloc[0],
        fingerprint=rows.fingerprint.iloc[0],
        boards=boards,
        masked=set(rows.label[rows.is_masked]),
        skipped=rows.skipped[rows.skipped != ""].value_counts().sort_index().to_dict(),
        settings={name: sorted(values) for name, values in settings.items()},
        frames={
            "scores": _scores(boards, rows),
            "means": pd.DataFrame([row for board in boards for row in _means(board)]),
            "retention": pd.DataFrame([row for board in boards for row in _retention(board)]),
            "differences": pd.DataFrame(_differences(boards)),
            "costs": costs,
            "pays": pd.DataFrame(_pays(costs), dtype=object),  # None stays
            "extras": _extras(rows[rows.score.notna()]),
        },
    )


def _board(name: str, length: int, title: str, rows: Any) -> Board:
    answered = rows[rows.score.notna()]
    wide = answered.pivot(index=["task", "context", "id"], columns="label", values="score")
    return Board(
        title=title,
        name=name,
        length=length,
        tasks=sorted(rows.task.unique()),
        metric=", ".join(sorted({metric or "score" for metric in rows.metric})),
        is_likelihood=any("nats" in metrics for metrics in rows.metrics),
        wide=wide[sort_labels(wide.columns)],
        units=wide.groupby(level=["task", "context"]).ngroup().to_numpy(),
    )


def _strata(board: Board, *labels: str) -> dict[str, Any]:
    """Return, for each task, the summed scores and the count of items of every context.

    Only items that all the labels answered count; a task without any is left out.
    """
    values = board.wide.reindex(columns=labels).to_numpy()
    is_held = ~np.isnan(values).any(axis=1)
    if not is_held.any():
        return {}
    _, starts = np.unique(board.units[is_held], return_index=True)
    sums = np.add.reduceat(np.column_stack([values, np.ones(len(values))])[is_held], starts)
    tasks = board.wide.index.get_level_values("task")[is_held][starts]
    return {task: sums[tasks == task] for task in tasks.unique()}


def _percent(found: Estimate) -> dict[str, float]:
    ends = (found.value, found.low, found.high)
    scaled = (math.nan if end is None else 100 * end for end in ends)
    return dict(zip(("value", "low", "high"), scaled, strict=True))


def _scores(boards: Sequence[Board], rows: Any) -> Any:
    """Return the score of every label on every task, and what it left unanswered or empty."""
    import pandas as pd

    key = ["board", "task", "label"]
    is_silent = (rows.answer.str.strip() == "") & ~rows.metrics.map(lambda found: "nats" in found)
    is_answered = rows.score.notna()
    counts = rows[key].assign(n=is_answered, skipped=~is_answered, empty=is_silent & is_answered)
    scores = [
        {"board": board.title, "task": task, "label": label, **_percent(estimate([sums]))}
        for board in boards
        for label in board.wide.columns
        for task, sums in _strata(board, label).items()
    ]
    frame = pd.DataFrame(scores, columns=[*key, "value", "low", "high"])
    return counts.groupby(key, as_index=False).sum().merge(frame, how="left", on=key)


def _means(board: Board) -> Iterable[dict[str, Any]]:
    for label in board.wide.columns:
        strata = list(_strata(board, label).values())
        method, ratio = split_label(label)
        yield {
            "board": board.title, "name": board.name, "length": board.length, "label": label,
            "method": method, "ratio": ratio, "tasks": len(strata),
            "is_whole": len(strata) == len(board.tasks), **_percent(estimate(strata)),
        }  # fmt: skip


def _retention(board: Board) -> Iterable[dict[str, Any]]:
    for label in board.wide.columns.difference(["raw", "none"], sort=False):
        strata = list(_strata(board, label, "none", "raw").values())
        share = retention(strata) if strata else None
        if share is not None:
            yield {"board": board.title, "label": label, **_percent(share)}


def _differences(boards: Sequence[Board]) -> Iterable[dict[str, Any]]:
    """Compare the subject with every rival of its ratio, and with what has no ratio."""
    labels = sort_labels(label for board in boards for label in board.wide.columns)
    for ours, rival in product(labels, labels):
        (method, ratio), (_, other) = split_label(ours), split_label(rival)
        if method != SUBJECT or ours == rival or other not in (ratio, 0):
            continue
        parts = {board.title: [*_strata(board, ours, rival).values()] for board in boards}
        parts = {title: strata for title, strata in parts.items() if strata}
        for title, strata in parts.items():
            yield {"board": title, "ours": ours, "rival": rival, **_difference(strata)}
        scored = [parts[b.title] for b in boards if b.title in parts and not b.is_likelihood]
        if len(scored) > 1:
            weights = [1 / len(strata) for strata in scored for _ in strata]
            every = _difference([sums for strata in scored for sums in strata], weights)
            yield {"board": "all", "ours": ours, "rival": rival, **every}


def _difference(strata: Sequence[Any], weights: Sequence[float] | None = None) -> dict[str, Any]:
    found = estimate(strata, lambda ours, rival: ours - rival, weights)
    num_different = sum(int((sums[:, 0] != sums[:, 1]).sum()) for sums in strata)
    is_clear = num_different >= MIN_DIFFERENT and found.excludes(0)
    return {**_percent(found), "different": num_different, "is_clear": is_clear}


def _costs(rows: Any) -> Any:
    """Return the median and quartiles of every measure of each label on each board.

    Speed against raw is the median over items of both: each item's time against its own.
    """
    import pandas as pd

    done = rows[rows.skipped == ""]
    is_first = ~done.is_reused
    first = (done.ttft_seconds + done.compress_seconds.fillna(0)).where(is_first)
    where = ["task", "length", "id", "run", "machine", "device", "dtype"]
    keys = pd.MultiIndex.from_frame(done[where])
    is_raw = (first.notna() & (done.label == "raw")).to_numpy()
    raw = pd.Series(first.to_numpy()[is_raw], index=keys[is_raw]).reindex(keys).to_numpy()
    is_timed = (done.new_tokens > 1) & (done.decode_seconds > 0)
    about = ["board", "label"]
    sizes = ["prompt_tokens", "cache_bytes", "context_bytes", "peak_bytes"]
    table = done[about + sizes].assign(
        compress_seconds=done.compress_seconds.where(is_first),
        first_ttft_seconds=first,
        next_ttft_seconds=done.ttft_seconds.where(~is_first),
        speed_up=(raw / first).where((first > 0) & (done.label != "raw")),
        decode_tokens_per_second=((done.new_tokens - 1) / done.decode_seconds).where(is_timed),
    )
    long = table.melt(id_vars=about, var_name="measure").dropna()
    quartiles = long.groupby([*about, "measure"]).value.quantile(QUARTILES).unstack()
    quartiles = quartiles.reindex(columns=QUARTILES)  # where every row was skipped, too
    return quartiles.set_axis(["low", "median", "high"], axis=1).reset_index()


def _pays(costs: Any) -> Iterable[dict[str, Any]]:
    """Yield from which question on a context a label has waited less than raw, and until when.

    A method that never finds a context held reads it anew each time.
    """
    wanted = ["first_ttft_seconds", "next_ttft_seconds", "speed_up"]
    medians = costs.pivot(index=["board", "label"], columns="measure", values="median")
    medians = medians.reindex(columns=wanted)
    for title, part in medians.groupby(level="board"):
        first, later, speed_up = (part.droplevel("board")[name] for name in wanted)
        for label in speed_up.index[speed_up.notna() & later.notna().any()]:
            ours, raw = ((first[one], later.fillna(first)[one]) for one in (label, "raw"))
            start, end = break_even(ours, raw)
            yield {"board": title, "label": label, "first": start, "last": end}


def _extras(answered: Any) -> Any:
    """Return the means of every metric but the score, each in its own unit."""
    import pandas as pd

    about = ["board", "task", "length", "label"]
    keys = pd.MultiIndex.from_frame(answered[about])
    wide = pd.DataFrame(list(answered.metrics), index=keys).drop(columns="score", errors="ignore")
    long = wide.apply(pd.to_numeric, errors="coerce").stack().dropna()
    means = long.groupby(level=[*range(5)]).agg(["mean", "size"]).reset_index()
    return means.set_axis([*about, "metric", "value", "n"], axis=1)
