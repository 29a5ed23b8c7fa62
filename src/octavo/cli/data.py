"""`octavo data prepare`: turn the texts of a recipe into packed rows, before training."""

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from octavo.cli.inputs import echo, format_bytes
from octavo.cli.options import bars
from octavo.cli.training import load_recipe

_LINES_A_MIXTURE = 10
"""How often a mixture reports where stderr is no terminal."""
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
    out: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where the rows go.")
    ],
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
    folder. The same command continues where an interrupted one stopped.
    """
    chosen = overrides or []
    config = load_recipe(recipe, chosen, "data.row_tokens=512")
    from octavo.data.prepare import open_prompts
    from octavo.data.prepare import prepare as run

    try:
        prompts = open_prompts(config, Path.cwd())
        with bars(_LINES_A_MIXTURE) as show:
            manifest = run(
                config,
                Path.cwd(),
                out.expanduser(),
                prompts,
                processes=processes,
                on_rows=lambda *rows: show(*rows, "rows"),
            )
    except KeyboardInterrupt:
        line = ["octavo", "data", "prepare", recipe, "-o", str(out)]
        for override in chosen:
            line += ["--set", override]
        line += ["--processes", str(processes)] if processes > 1 else []
        raise KeyboardInterrupt(
            f"interrupted; whole shards are kept, continue with: {shlex.join(line)}"
        ) from None
    echo(_table(manifest))


def _table(manifest: dict[str, Any]) -> str:
    """Return a line a mixture, and one for what is measured."""
    lines = [_HEADER]
    for name, about in manifest["mixtures"].items():
        kinds = about["by_kind"]
        lines.append(
            (
                name,
                f"{about['rows']:,}",
                ", ".join(f"{kind} {counts['examples']:,}" for kind, counts in kinds.items()),
                f"{sum(counts['positions'] for counts in kinds.values()):,}",
                f"{sum(counts['source_tokens'] for counts in kinds.values()):,}",
                format_bytes(sum(shard["bytes"] for shard in about["shards"])),
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
        f"{name}: {about['rows']:,} of {about['wanted_rows']:,} rows; its kinds are at their caps"
        for name, about in manifest["mixtures"].items()
        if about["rows"] < about["wanted_rows"]
    ]
    return "\n".join([*padded, *notes])
