"""`octavo search`: train the variants of a grid, and rank them."""

import re
from pathlib import Path
from typing import Annotated

import typer

from octavo.cli.inputs import Misuse, echo
from octavo.cli.training import RECIPES

_LINES = 20


def search(
    grid: Annotated[
        str, typer.Argument(metavar="GRID.toml", help="A grid, or the name of a packaged one.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Where the runs go.")],
    processes: Annotated[int, typer.Option(min=1, metavar="N", help="Runs side by side.")] = 1,
    part: Annotated[
        str, typer.Option(metavar="K/N", help="The K-th of N parts of the runs, for job arrays.")
    ] = "1/1",
) -> None:
    """Train variants of a recipe, and rank them by their held-out loss.

    Prints the place of the table. Paths in the recipe start at the current folder. Interrupt or
    kill it at will: the same command goes on. A run that fails stops no other; the exit code is
    then 1, and the same command tries it again.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", part)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise Misuse(f"--part {part} is not K/N with K from 1 to N; write it as 1/8")
    from octavo.cli.options import bars, hush_bars
    from octavo.search import read_grid, write_table
    from octavo.search import search as run

    hush_bars()
    recipes, grids = (
        {file.stem: file for file in sorted(folder.glob("*.toml"))}
        for folder in (RECIPES, RECIPES / "grids")
    )
    chosen = read_grid(grids.get(grid) or Path(grid).expanduser(), recipes)
    folder = out.expanduser().resolve()
    failed: dict[str, str] = {}
    try:
        with bars(_LINES) as show:
            failed = run(
                chosen,
                folder,
                processes=processes,
                part=(int(found[1]), int(found[2])),
                on_change=lambda what, done, total: show(what, done, total, "runs"),
            )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            "interrupted; the runs are saved, the same command goes on"
        ) from None
    for name, why in failed.items():
        echo(f"{name} failed: {why}", err=True)
    echo(str(write_table(chosen, folder, failed)))
    if failed:
        raise typer.Exit(1)
