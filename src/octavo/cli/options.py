"""The options that several verbs share, and what they lead to: a loaded model, bars on stderr."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from octavo.cli.inputs import Misuse

if TYPE_CHECKING:
    from octavo.model import Model

Report = Callable[[str, int, int], None]
"""Called as `report(what, done, total)`; a total of 0 is not known."""

ModelName = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", metavar="MODEL",
        help="A checkpoint folder, a hub id, or a shipped name; by default the shipped model.",
    ),
]  # fmt: skip
Revision = Annotated[
    str | None,
    typer.Option(metavar="REVISION", help="Branch, tag or commit of a hub id."),
]
Device = Annotated[
    str | None,
    typer.Option(metavar="DEVICE", help="cuda, mps or cpu; by default the best that is there."),
]
Dtype = Annotated[
    str | None,
    typer.Option(metavar="DTYPE", help="float32, bfloat16 or float16; by default by device."),
]
Base = Annotated[
    Path | None,
    typer.Option(
        metavar="PATH",
        help="A copy of the base model's wheel or GGUF, for machines without a network.",
    ),
]
EngineName = Annotated[
    str, typer.Option(metavar="ENGINE", hidden=True, help="local, or fake for tests.")
]
Ratio = Annotated[
    int | None,
    typer.Option(
        "--ratio", "-r", min=1, metavar="R",
        help="Source tokens per latent; one that the model was trained for.",
    ),
]  # fmt: skip
Contexts = Annotated[
    list[Path] | None,
    typer.Option("--context", "-c", metavar="C.safetensors", help="A saved context; repeatable."),
]
Files = Annotated[
    list[str] | None,
    typer.Option(
        "--file", "-f", metavar="FILE",
        help="A text to compress on the way, - for stdin; repeatable. Files follow contexts.",
    ),
]  # fmt: skip
MaxNewTokens = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Longest answer; by default 256.")
]
Temperature = Annotated[
    float, typer.Option(min=0.0, metavar="T", help="0 always takes the likeliest token.")
]
Seed = Annotated[int | None, typer.Option(metavar="SEED", help="Makes sampling repeatable.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelChoice:
    """Which model to load, and how: the shared options of one command line."""

    model: str | None
    revision: str | None = None
    device: str | None = None
    dtype: str | None = None
    base: Path | None = None
    engine: str = "local"


def check_revision(model: str | None, revision: str | None) -> None:
    """Refuse a revision that nothing would look at."""
    is_hub_id = model is not None and "/" in model and not Path(model).expanduser().is_dir()
    if revision is not None and not is_hub_id:
        raise Misuse("--revision is for hub ids only; drop it, or give --model a hub id")


def open_model(choice: ModelChoice, report: Report) -> "Model":
    """Load the chosen model, showing what takes time."""
    check_revision(choice.model, choice.revision)
    report("loading the model", 0, 0)
    from octavo.loading import load

    hush_bars()
    engine: Any = choice.engine  # `load` refuses an unknown one
    return load(
        choice.model,
        choice.device,
        choice.dtype,
        engine,
        choice.revision,
        base=choice.base,
        progress=report,
    )


def hush_bars() -> None:
    """Turn off transformers' own progress bars; the hub's stay where a person can see them."""
    from huggingface_hub.utils import enable_progress_bars
    from transformers.utils import logging

    logging.disable_progress_bar()
    if sys.stderr.isatty():
        enable_progress_bars()


@contextlib.contextmanager
def bars() -> Iterator[Report]:
    """Yield a `Report` that draws bars on stderr while the block runs, if it is a terminal."""
    if not sys.stderr.isatty():
        yield lambda what, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        tasks: dict[str, Any] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                for task in tasks.values():  # one thing at a time: the last one is over
                    progress.update(task, visible=False)
                tasks[what] = progress.add_task(what, total=total or None)
            progress.update(tasks[what], completed=done, total=total or None, visible=True)

        yield report
