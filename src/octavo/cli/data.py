"""`octavo data prepare`: turn the texts of a recipe into packed rows, before training."""

import contextlib
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from octavo.cli.inputs import format_bytes
from octavo.cli.training import load_recipe

OnRows = Callable[[str, int, int], None]
_HEADER = ("mixture", "rows", "examples", "positions", "source tokens", "bytes")

data = typer.Typer(
    help="Prepare the rows that a recipe trains on.",
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@data.callback()
def _data() -> None:
    """Prepare the rows that a recipe trains on."""


@data.command()
def prepare(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE.toml", help="A recipe, or the name of a packaged one.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="Where the rows go.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="section.field=value", help="Overrides a field; repeatable."),
    ] = None,
    processes: Annotated[
        int, typer.Option(min=1, metavar="N", help="Processes to share the work; same rows.")
    ] = 1,
) -> None:
    """Cut examples from texts and pack them into rows.

    Point data.rows of a recipe at FOLDER to train on them. Paths in the recipe start at the current
    folder. The same command goes on where an interrupted one stopped.
    """
    chosen = overrides or []
    config = load_recipe(recipe, chosen, "data.row_tokens=512")
    from octavo.data.prepare import open_prompts
    from octavo.data.prepare import prepare as run

    try:
        prompts = open_prompts(config, Path.cwd())
        with row_bars() as show:
            here, place = Path.cwd(), out.expanduser()
            manifest = run(config, here, place, prompts, processes=processes, on_rows=show)
    except KeyboardInterrupt:
        line = ["octavo", "data", "prepare", recipe, "-o", str(out)]
        for override in chosen:
            line += ["--set", override]
        line += ["--processes", str(processes)] if processes > 1 else []
        raise KeyboardInterrupt(
            f"interrupted; whole shards are kept, go on with: {shlex.join(line)}"
        ) from None
    typer.echo(_table(manifest))


def _table(manifest: dict[str, Any]) -> str:
    """Return a line a mixture, and one for what is measured."""
    lines = [_HEADER]
    for name, told in manifest["mixtures"].items():
        kinds = told["by_kind"]
        lines.append(
            (
                name,
                f"{told['rows']:,}",
                ", ".join(f"{kind} {counts['examples']:,}" for kind, counts in kinds.items()),
                f"{sum(counts['positions'] for counts in kinds.values()):,}",
                f"{sum(counts['source_tokens'] for counts in kinds.values()):,}",
                format_bytes(sum(shard["bytes"] for shard in told["shards"])),
            )
        )
    held_out = manifest["held_out"]
    examples = ", ".join(f"{kind} {count:,}" for kind, count in held_out["examples"].items())
    lines.append(("held out", "", examples, "", "", format_bytes(held_out["bytes"])))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    notes = [
        f"{name}: {told['rows']:,} of {told['wanted_rows']:,} rows; all its kinds are at their caps"
        for name, told in manifest["mixtures"].items()
        if told["rows"] < told["wanted_rows"]
    ]
    return "\n".join([*padded, *notes])


@contextlib.contextmanager
def row_bars() -> Iterator[OnRows]:
    """Show a bar per mixture on a terminal, and a line now and then elsewhere, on stderr."""
    if not sys.stderr.isatty():
        yield _Lines()
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
        TextColumn("rows of {task.description}"), BarColumn(), MofNCompleteColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        tasks: dict[str, Any] = {}

        def on_rows(mixture: str, rows: int, of: int) -> None:
            if mixture not in tasks:
                tasks[mixture] = progress.add_task(mixture, total=of)
            progress.update(tasks[mixture], completed=rows)

        yield on_rows


class _Lines:
    """Echo a line for every tenth of a mixture."""

    def __init__(self) -> None:
        self._said: dict[str, int] = {}

    def __call__(self, mixture: str, rows: int, of: int) -> None:
        tenth = rows * 10 // max(1, of)
        if tenth > self._said.get(mixture, 0):
            self._said[mixture] = tenth
            typer.echo(f"{mixture}: {rows} of {of} rows", err=True)
