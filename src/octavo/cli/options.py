"""The options that several verbs share, and what they lead to: a loaded model, bars on stderr."""

import contextlib
import functools
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from octavo.cli.inputs import Misuse, echo
from octavo.progress import Progress
from octavo.text import visible

if TYPE_CHECKING:
    from octavo.model import Model

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
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Say nothing on stderr but errors and progress.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelChoice:
    """Which model to load, and how: each field is an option of every verb that loads one."""

    model: ModelName = None
    revision: Revision = None
    device: Device = None
    dtype: Dtype = None
    base: Base = None
    engine: EngineName = "local"


SHIPPED = ModelChoice()
"""The model that is loaded where no option names another."""


def chooses_model(verb: Callable[..., None]) -> Callable[..., None]:
    """Give a verb the options of `ModelChoice` in the place of its parameter `choice`."""
    own = inspect.signature(verb).parameters
    options = {
        field.name: inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=getattr(SHIPPED, field.name),
            annotation=field.type,
        )
        for field in fields(ModelChoice)
    }

    @functools.wraps(verb)
    def with_options(**given: Any) -> None:
        verb(choice=ModelChoice(**{name: given.pop(name) for name in options}), **given)

    shown: list[inspect.Parameter] = []
    for name, parameter in own.items():
        keyword = parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        shown += options.values() if name == "choice" else [keyword]
    with_options.__dict__["__signature__"] = inspect.Signature(shown)
    with_options.__annotations__ = {one.name: one.annotation for one in shown}
    return with_options


def check_revision(model: str | None, revision: str | None) -> None:
    """Refuse a revision that nothing would look at."""
    is_hub_id = model is not None and "/" in model and not Path(model).expanduser().is_dir()
    if revision is not None and not is_hub_id:
        raise Misuse("--revision is for hub ids only; drop it, or give --model a hub id")


def open_model(choice: ModelChoice, report: Progress, ratio: int | None = None) -> "Model":
    """Load the chosen model, showing what takes time; refuse a ratio it does not serve before."""
    check_revision(choice.model, choice.revision)
    report("loading the model", 0, 0)
    from octavo.config import Extension, ModelConfig, resolve_ratio
    from octavo.loading import load
    from octavo.weights.layout import resolve

    hush_bars()
    folder = resolve(choice.model, choice.revision)
    resolve_ratio(ModelConfig.read(folder), Extension.read(folder), ratio)
    engine: Any = choice.engine  # `load` refuses an unknown one
    return load(
        folder,
        choice.device,
        choice.dtype,
        engine,
        base=choice.base,
        progress=report,
    )


def say_limits(model: "Model", contexts: Sequence[Any]) -> None:
    """Say what the model was measured to get wrong at the ratios of these contexts."""
    for ratio in sorted({one.ratio for one in contexts if not isinstance(one, str)}):
        if words := model.extension.limits.get(str(ratio)):
            line = f"{model.name} at {ratio}x {words}: see `octavo info {model.name}`"
            typer.echo(typer.style(visible(line), dim=True), err=True)


def hush_bars() -> None:
    """Turn off transformers' own progress bars; the hub's stay where a person can see them."""
    from huggingface_hub.utils import enable_progress_bars
    from transformers.utils import logging

    logging.disable_progress_bar()
    if sys.stderr.isatty():
        enable_progress_bars()


@contextlib.contextmanager
def bars(lines: int = 0, listed: Sequence[str] = ()) -> Iterator[Callable[..., None]]:
    """Yield a `Progress` that draws bars on stderr while the block runs, if it is a terminal.

    Elsewhere each thing counted gets so many `lines`. It also takes the `unit` counted in, and a
    `detail` worth showing. What is `listed` is shown from the start to the end, all else in turn.
    """
    if not sys.stderr.isatty():
        yield _Lines(lines)
        return
    from rich import progress as rich
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(),
        TextColumn("{task.fields[counted]}", markup=False),
        TimeElapsedColumn(),
    )  # fmt: skip
    with rich.Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        tasks = {what: progress.add_task(what, total=1, counted="waiting") for what in listed}
        waiting = set(listed)

        def show(what: str, done: int, total: int, unit: str = "", detail: str = "") -> None:
            what = visible(what)
            if what not in tasks:
                for other, task in tasks.items():  # one thing at a time: the last one is over
                    progress.update(task, visible=other in listed)
                tasks[what] = progress.add_task(what, total=total or None, counted="")
            if what in waiting:
                waiting.remove(what)
                progress.reset(tasks[what])  # its time begins now
            counted = _counted(done, total, unit, detail) if unit else ""
            progress.update(
                tasks[what], completed=done, total=total or None, visible=True, counted=counted
            )

        yield show


class _Lines:
    """Says now and then how far a thing has come, a line at a time."""

    def __init__(self, lines: int) -> None:
        self._lines = lines
        self._said: dict[str, int] = {}

    def __call__(self, what: str, done: int, total: int, unit: str = "", detail: str = "") -> None:
        part = done * self._lines // max(1, total)
        if part > self._said.get(what, 0):
            self._said[what] = part
            echo(f"{what}: {_counted(done, total, unit, detail)}", err=True)


def _counted(done: int, total: int, unit: str, detail: str) -> str:
    return f"{done:,} of {total:,} {unit}" + (f", {detail}" if detail else "")
