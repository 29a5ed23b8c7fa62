"""`octavo report`: tables, pictures and one page from the rows of evaluations."""

from pathlib import Path
from typing import Annotated

import typer

from octavo.cli.inputs import echo


def report(
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="DIR...", help="Folders of rows that `octavo eval` wrote."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            help="Where the report goes; by default `report` in the first DIR.",
        ),
    ] = None,
) -> None:
    """Show what evaluations found: what is lost, what is gained, against what.

    Writes report.md, report.html (one file, for any browser), tables.json with all the numbers,
    and each picture as PNG and SVG. The same rows give the same tables.
    """
    from octavo_evals.report import write

    place = (out or folders[0] / "report").expanduser()
    for line in write(folders, place):
        echo(line)
    echo(f"report: {place / 'report.html'}", err=True)
