"""`octavo train`: run a recipe, from a file or from the package."""

import contextlib
import os
import shlex
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from octavo.cli.inputs import Misuse, echo
from octavo.errors import TrainingError

RECIPES = Path(__file__).parent.parent / "recipes"
_LINES_A_STAGE = 20
"""How often a stage reports where stderr is no terminal."""
_ALL = "all stages"


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
    from octavo.cli.options import bars
    from octavo.recipe import STAGES
    from octavo.train.loop import Interrupted
    from octavo.train.stages import train as run

    steps = {name: config.stages[name].steps for name in STAGES if name in config.stages}
    steps = {name: count for name, count in steps.items() if count}
    try:
        with bars(_LINES_A_STAGE, [*steps, _ALL]) as show:
            board = _Board(steps, show)
            export = run(
                config,
                Path.cwd(),
                resume=resume,
                on_step=board.step,
                on_rows=lambda name, *rows: show(f"rows of {name}", *rows, "rows"),
                on_note=board.note,
            )
    except Interrupted as interrupted:
        if is_first_rank():
            echo(
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
        echo(export)


class _Board:
    """Shows how far a run is: a line a stage, and one for all stages with the time that is left."""

    def __init__(self, steps: dict[str, int], show: Callable[..., None]) -> None:
        self._steps, self._show = steps, show
        self._done = dict.fromkeys(steps, 0)
        self._first: tuple[int, float] | None = None

    def step(self, stage: str, step: int, steps: int, loss: float) -> None:
        """Show a step; the stages before it are over, whether or not they ran now."""
        names = list(self._steps)
        self._done |= {name: self._steps[name] for name in names[: names.index(stage)]}
        self._done[stage] = step
        done, total, now = sum(self._done.values()), sum(self._steps.values()), time.monotonic()
        first, began = self._first = self._first or (done, now)
        seconds = (total - done) * (now - began) / max(1, done - first)
        left = f"{timedelta(seconds=round(seconds))} left" if seconds else ""
        self._show(stage, step, steps, "steps", f"loss {loss:.4f}")
        self._show(_ALL, done, total, "steps", left)

    def note(self, stage: str, doing: str) -> None:
        """Show what a stage does beside steps; acknowledge Ctrl-C, which arrives anywhere."""
        if stage:
            self._show(stage, self._done[stage], self._steps[stage], "steps", doing)
        else:
            with contextlib.suppress(RuntimeError):  # it came while stderr was being written
                sys.stderr.write(f"{doing} after this step; Ctrl-C again stops at once\n")


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
    """Return the command that continues an interrupted run."""
    line = ["octavo", "train", recipe]
    for override in overrides:
        line += ["--set", override]
    return shlex.join([*line, "--resume"])


def is_first_rank() -> bool:
    """Whether this process speaks for all that torchrun started."""
    return os.environ.get("RANK", "0") == "0"
