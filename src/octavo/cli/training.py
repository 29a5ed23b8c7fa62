"""`octavo train`: run a recipe, from a file or from the package."""

import contextlib
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from octavo.cli.inputs import Misuse
from octavo.errors import TrainingError

RECIPES = Path(__file__).parent.parent / "recipes"
_LINES_A_STAGE = 20
"""How often a stage reports where stderr is no terminal."""

OnStep = Callable[[str, int, int, float], None]


def train(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE.toml", help="A recipe, or the name of a packaged one.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="section.field=value", help="Overrides a field; repeatable."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an interrupted run where it stopped.")
    ] = False,
) -> None:
    """Train a compressor by a recipe.

    Prints the folder of the finished model. Paths in the recipe start at the current folder. Ctrl-C
    or SIGTERM saves the run and ends it with exit code 0, and --resume continues it. Under torchrun
    the run is spread over its processes.
    """
    chosen = overrides or []
    config = load_recipe(recipe, chosen, "stages.sft.steps=9")
    from octavo.cli.data import row_bars
    from octavo.train.loop import Interrupted
    from octavo.train.stages import train as run

    try:
        with row_bars() as show_rows, _step_bars() as show_step:
            export = run(config, Path.cwd(), resume=resume, on_step=show_step, on_rows=show_rows)
    except Interrupted as interrupted:
        if is_first_rank():
            typer.echo(
                f"stopped at {interrupted}; the run is saved, continue it with: "
                + _resume_line(recipe, chosen),
                err=True,
            )
        return
    except KeyboardInterrupt:
        if not (Path(config.output).expanduser() / "log.jsonl").exists():
            raise KeyboardInterrupt(
                "interrupted before the first step; nothing was trained"
            ) from None
        raise KeyboardInterrupt(
            "interrupted; the run is as its last checkpoint has it, continue it with: "
            + _resume_line(recipe, chosen)
        ) from None
    if is_first_rank():
        typer.echo(export)


def load_recipe(recipe: str, overrides: list[str], example: str) -> Any:
    """Return a recipe with its overrides; `example` shows how one is written."""
    for override in overrides:
        if "=" not in override:
            raise Misuse(f"--set {override!r} is not section.field=value; write it as {example}")
    from octavo.cli.options import hush_bars
    from octavo.recipe import RunConfig

    config = RunConfig.load(find_recipe(recipe), overrides)
    hush_bars()
    return config


def find_recipe(name: str) -> Path:
    """Return a recipe's file; a name without a folder may be a packaged one."""
    path = Path(name).expanduser()
    packaged = {file.stem: file for file in sorted(RECIPES.glob("*.toml"))}
    if path.is_file():
        return path
    if name in packaged:
        return packaged[name]
    if path.is_dir():
        raise TrainingError(f"{name} is a folder; give a .toml recipe")
    raise TrainingError(
        f"no recipe {name!r}; give a .toml file or a packaged name ({', '.join(packaged)})"
    )


def _resume_line(recipe: str, overrides: list[str]) -> str:
    """Return the command that goes on with an interrupted run."""
    line = ["octavo", "train", recipe]
    for override in overrides:
        line += ["--set", override]
    return shlex.join([*line, "--resume"])


def is_first_rank() -> bool:
    """Whether this process speaks for all that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


@contextlib.contextmanager
def _step_bars() -> Iterator[OnStep]:
    """Show a bar per stage on a terminal, and a line now and then elsewhere, on stderr."""
    if not sys.stderr.isatty():
        yield _echo_step
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as progress:
        tasks: dict[str, Any] = {}

        def on_step(stage: str, step: int, steps: int, loss: float) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=steps, loss=loss)
            progress.update(tasks[stage], completed=step, loss=loss)

        yield on_step


def _echo_step(stage: str, step: int, steps: int, loss: float) -> None:
    if step == steps or step % max(1, steps // _LINES_A_STAGE) == 0:
        typer.echo(f"{stage}: step {step} of {steps}, loss {loss:.4f}", err=True)
