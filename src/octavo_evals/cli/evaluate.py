"""`octavo eval`: run methods on tasks, and keep a row for every answer."""

import contextlib
import importlib.util
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import octavo
from octavo.cli.inputs import Misuse
from octavo.cli.options import (
    Base,
    Device,
    Dtype,
    EngineName,
    ModelChoice,
    ModelName,
    Revision,
    bars,
    open_model,
)
from octavo.errors import EvaluationError, MissingExtraError

if TYPE_CHECKING:
    from octavo_evals.run import Account

_LINES = 20
"""How often a run reports where stderr is no terminal."""


def evaluate(
    context: typer.Context,
    tasks: Annotated[
        list[str],
        typer.Argument(
            metavar="TASK...",
            help="ruler, longbench, squad, ruler/vt, …; an unknown one lists all.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Where the rows go.")],
    methods: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            metavar="METHOD",
            help="octavo, full, none, truncate-left, bm25, snapkv, …, or octavo@4; repeatable. "
            "By default octavo, full and none.",
        ),
    ] = None,
    model: ModelName = None,
    ratios: Annotated[
        list[int] | None,
        typer.Option(
            "--ratio",
            "-r",
            metavar="R",
            help="Context tokens per position left; repeatable. By default the model's own.",
        ),
    ] = None,
    lengths: Annotated[
        list[int] | None,
        typer.Option(
            "--length",
            metavar="N",
            min=1,
            help="Tokens of the whole prompt, for tasks that make their items; repeatable.",
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="At most N items a task and length.")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="SEED", help="Which items are made.")] = 42,
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=PATH",
            help="Where a task's data lies: a file, a folder, or hf:DATASET:SPLIT; repeatable.",
        ),
    ] = None,
    python: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="The Python of an environment with kvpress, for methods that need it.",
        ),
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
    base: Base = None,
    revision: Revision = None,
    engine: EngineName = "local",
) -> None:
    """Evaluate methods of reading a long context, all on the same items.

    Rows are appended to DIR/rows.jsonl. Interrupt at will: the same command goes on, and several
    may run on one DIR at once. `octavo report DIR` shows the results.
    """  # fmt: skip
    from octavo_evals.methods import METHODS, choose
    from octavo_evals.task import DataFiles, find_tasks

    found, files = find_tasks(tasks), DataFiles(data or ())
    names = methods or ["octavo", "full", "none"]
    choose(names, ratios or [2])  # a wrong name is told before a model is loaded
    if python is not None and not python.expanduser().is_file():
        raise Misuse(f"--python {python} is no file; give the bin/python of an environment")
    opened = ModelChoice(
        model=model, revision=revision, device=device, dtype=dtype, base=base, engine=engine
    )
    with bars() as report:
        loaded = open_model(opened, report)
        chosen = choose(names, ratios or [loaded.config.compression_ratio])
    elsewhere = [
        one for one in chosen if METHODS[one[0]].needs_kvpress and python and not _has_kvpress()
    ]
    here = [one for one in chosen if one not in elsewhere]
    if here:
        from octavo_evals.run import evaluate as run

        with _rows() as show:
            try:
                account = run(
                    loaded,
                    found,
                    here,
                    out.expanduser(),
                    lengths=lengths or (),
                    limit=limit,
                    seed=seed,
                    data=files,
                    command=shlex.join(["octavo", *context.find_root().obj]),
                    on_row=show,
                )
            except KeyboardInterrupt:
                raise KeyboardInterrupt(
                    f"interrupted; the rows in {out} are kept, the same command goes on"
                ) from None
        typer.echo(_told(account, out), err=True)
    if elsewhere:
        assert python is not None
        _run_elsewhere(python, context.find_root().obj, elsewhere)
    typer.echo(str(out / "rows.jsonl"))


def _has_kvpress() -> bool:
    return importlib.util.find_spec("kvpress") is not None


def _run_elsewhere(
    python: Path, args: Sequence[str], methods: Sequence[tuple[str, int | None]]
) -> None:
    """Run this command line with other methods by another Python, on this very source tree."""
    line = _without_methods(args)
    for name, ratio in methods:
        line += ["--method", f"{name}@{ratio}"]
    paths = [str(Path(octavo.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    try:
        done = subprocess.run(
            [str(python.expanduser()), "-m", "octavo", *line],
            env=environment,
            stdout=subprocess.DEVNULL,
        )
    except OSError as error:
        raise MissingExtraError(
            f"cannot run {python}: {error}; make an environment with scripts/kvpress-env"
        ) from error
    if done.returncode:
        raise EvaluationError(f"the run by {python} failed, see above; its rows so far are kept")


def _without_methods(args: Sequence[str]) -> list[str]:
    """Return a command line without --method and --python."""
    kept, is_value = [], False
    for arg in args:
        if is_value:
            is_value = False
        elif arg in ("--method", "--python"):
            is_value = True
        elif not arg.startswith(("--method=", "--python=")):
            kept.append(arg)
    return kept


def _told(account: "Account", out: Path) -> str:
    """Say what was done."""
    lines = [f"{account.written:,} rows written to {out}, {account.found:,} were there"]
    lines += [f"{name} could not serve some items: {why}" for name, why in account.skipped.items()]
    return "\n".join(lines)


@contextlib.contextmanager
def _rows() -> Iterator[Callable[[str, int, int], None]]:
    """Show a bar on a terminal, and a line now and then elsewhere, on stderr."""
    if sys.stderr.isatty():
        with bars() as report:
            yield lambda what, done, total: report("rows", done, total)
        return
    said = 0

    def on_row(what: str, done: int, total: int) -> None:
        nonlocal said
        if (part := done * _LINES // max(1, total)) > said:
            said = part
            typer.echo(f"{done:,} of {total:,} rows ({what})", err=True)

    yield on_row
