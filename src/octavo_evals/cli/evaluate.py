"""`octavo eval`: run methods on tasks, and keep a row for every answer."""

import dataclasses
import importlib.util
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from octavo.cli.inputs import Misuse, echo
from octavo.cli.options import (
    SHIPPED,
    ModelChoice,
    bars,
    chooses_model,
    open_model,
)
from octavo_evals.cli import Counts, Texts, option

if TYPE_CHECKING:
    from octavo_evals.run import Account


@chooses_model
def evaluate(
    context: typer.Context,
    tasks: Annotated[
        list[str],
        typer.Argument(
            metavar="TASK...",
            help="ruler, longbench, squad, ruler/vt, …; an unknown one lists all.",
        ),
    ],
    out: Annotated[Path, option("DIR", "Where the rows go.", "--output", "-o")],
    methods: Annotated[
        Texts,
        option(
            "METHOD",
            "octavo, raw, none, truncate-left, bm25, snapkv, …, or octavo@4; repeatable. "
            "By default octavo, raw and none.",
            "--method",
        ),
    ] = None,
    ratios: Annotated[
        Counts,
        option(
            "R",
            "Context tokens per position left; repeatable. By default the model's own.",
            "--ratio",
            "-r",
        ),
    ] = None,
    lengths: Annotated[
        Counts,
        option(
            "N",
            "Tokens of the whole prompt, for tasks that make their items; repeatable.",
            "--length",
            min=1,
        ),
    ] = None,
    limit: Annotated[int | None, option("N", "At most N items a task and length.", min=1)] = None,
    seed: Annotated[int, option("SEED", "Which items are made.")] = 42,
    data: Annotated[
        Texts,
        option(
            "NAME=PATH",
            "Where a task's data lies: a file, a folder, or hf:DATASET:SPLIT; repeatable.",
        ),
    ] = None,
    python: Annotated[
        Path | None,
        option("PATH", "The Python of an environment with kvpress, for methods that need it."),
    ] = None,
    choice: ModelChoice = SHIPPED,
) -> None:
    """Evaluate methods of reading a long context, all on the same items.

    Rows are appended to DIR/rows.jsonl. Interrupt at will: the same command goes on, and several
    may run on one DIR at once. `octavo report DIR` shows the results.
    """  # fmt: skip
    from octavo_evals.methods import METHODS, choose
    from octavo_evals.runner import LINES, Job, run, run_by
    from octavo_evals.task import DataFiles
    from octavo_evals.tasks import find_tasks

    find_tasks(tasks)  # a wrong name is an error before a model is loaded
    DataFiles(data or ())
    names = methods or ["octavo", "raw", "none"]
    choose(names, ratios or [2])
    if python is not None and not python.expanduser().is_file():
        raise Misuse(f"--python {python} is no file; give the bin/python of an environment")
    with bars(LINES) as show:
        loaded = open_model(choice, show)
        chosen = choose(names, ratios or [loaded.config.compression_ratio])
        elsewhere = [
            one for one in chosen if METHODS[one[0]].needs_kvpress and python and not _has_kvpress()
        ]
        job = Job(
            model=choice,
            tasks=tuple(tasks),
            methods=tuple(one for one in chosen if one not in elsewhere),
            folder=out.expanduser(),
            lengths=tuple(lengths or ()),
            limit=limit,
            seed=seed,
            data=tuple(data or ()),
            command=shlex.join(["octavo", *context.find_root().obj]),
        )
        try:
            if job.methods:
                _say(run(job, loaded, show), out)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"interrupted; the rows in {out} are kept, the same command goes on"
            ) from None
    if elsewhere:
        assert python is not None
        _say(run_by(python, dataclasses.replace(job, methods=tuple(elsewhere))), out)
    echo(str(out / "rows.jsonl"))


def _has_kvpress() -> bool:
    return importlib.util.find_spec("kvpress") is not None


def _say(account: "Account", out: Path) -> None:
    """Say what was done."""
    echo(f"{account.written:,} rows written to {out}, {account.found:,} were there", err=True)
    for name, why in account.left_out.items():
        echo(f"{name} was left out: {why}", err=True)
    for name, why in account.skipped.items():
        echo(f"{name} could not serve some items: {why}", err=True)
