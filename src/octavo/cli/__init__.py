"""The command line: one table of verbs, one place where errors become exit codes.

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted. Results go to stdout, all else to
stderr. Importing this package imports neither torch nor transformers; a verb does, when it runs.
"""

import contextlib
import importlib
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, NoReturn

import typer

import octavo
from octavo.cli.inputs import Misuse, echo, one_line
from octavo.errors import OctavoError

VERBS = {
    "compress": "octavo.cli.answer:compress",
    "ask": "octavo.cli.ask:ask",
    "generate": "octavo.cli.answer:generate",
    "chat": "octavo.cli.chat:chat",
    "agent": "octavo.cli.agent:agent",
    "store": "octavo.cli.store:store",
    "serve": "octavo.cli.serving:serve",
    "mcp": "octavo.cli.serving:mcp",
    "info": "octavo.cli.models:info",
    "pull": "octavo.cli.models:pull",
    "export": "octavo.cli.models:export",
    "data": "octavo.cli.data:data",
    "train": "octavo.cli.training:train",
    "search": "octavo.cli.search:search",
    "eval": "octavo_evals.cli.evaluate:evaluate",
    "report": "octavo_evals.cli.report:report",
    "bench": "octavo_evals.cli.bench:bench",
}
"""Every command, and where it stands as `module:function`. A module is imported when its command is
asked for, so that none slows the others down, and `octavo` itself imports no evaluation."""
INTERRUPTED = 130
BROKEN_PIPE = 141
"""What a shell reports for a program that SIGPIPE ended."""


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        echo(f"octavo {octavo.__version__}")
        raise typer.Exit


def _octavo(
    debug: Annotated[
        bool,
        typer.Option("--debug", help="Show tracebacks and warnings; may also follow the command."),
    ] = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Learned context compression: fold a long text into latents once, and ask many times."""


def command_line(verbs: Iterable[str] = VERBS) -> typer.Typer:
    """Return the commands of some verbs, by default of all."""
    app = typer.Typer(
        name="octavo",
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_octavo)
    for verb in verbs:
        module, _, name = VERBS[verb].partition(":")
        command = getattr(importlib.import_module(module), name)
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=verb)
        else:
            app.command(verb)(command)
    return app


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run one command line (by default the process's own) and leave with its exit code."""
    args, is_debug = _take_debug(sys.argv[1:] if argv is None else argv)
    # A stream that the caller closed is None here: an empty stdin, a silent stderr.
    sys.stdin = sys.stdin or open(os.devnull, encoding="utf-8")
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")
    try:
        if sys.stdout is None:
            raise Misuse("stdout is closed, so results have no place; redirect it to a file")
        with contextlib.nullcontext() if is_debug else _quiet():
            code = _run(args or ["--help"])
    except (KeyboardInterrupt, typer.Abort) as stop:
        echo(str(stop) or "interrupted", err=True)
        code = INTERRUPTED
    except BrokenPipeError:  # the reader of our output left, as `head` does
        code = BROKEN_PIPE
    except Exception as error:
        if is_debug:
            traceback.print_exc()
        message, code = _describe(error)
        echo(f"error: {message}", err=True)
    _flush_stdout()
    raise SystemExit(code)


def _run(args: list[str]) -> int:
    """Parse and run; typer's own `main` would print its errors in its own way."""
    # One verb alone would be taken for the whole command line: there are always two.
    asked = {arg for arg in args[:1] if arg in VERBS}
    command = typer.main.get_command(command_line({*asked, "info"} if asked else VERBS))
    try:
        with command.make_context("octavo", list(args), obj=tuple(args)) as context:
            command.invoke(context)
    except typer.Exit as done:
        return done.exit_code
    finally:
        sys.stdout.flush()
    return 0


def _take_debug(args: Sequence[str]) -> tuple[list[str], bool]:
    """Take `--debug` out of the line wherever it stands, so that no verb has to declare it."""
    end = args.index("--") if "--" in args else len(args)
    is_debug = "--debug" in args[:end]
    return [*(arg for arg in args[:end] if arg != "--debug"), *args[end:]], is_debug


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the messages of other libraries off stderr."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _describe(error: Exception) -> tuple[str, int]:
    """Return an error as one line that says what to do, and its exit code."""
    if isinstance(error, OctavoError):
        return one_line(str(error)), 2 if isinstance(error, Misuse) else 1
    # The parser's errors live in click or inside typer, as typer's version has it.
    if hasattr(error, "format_message"):
        asked = getattr(error, "ctx", None)
        path = asked.command_path if asked is not None else "octavo"
        message = one_line(error.format_message()).rstrip(".")
        return f"{message}; see `{path} --help`", getattr(error, "exit_code", 2)
    if isinstance(error, RuntimeError) and "home directory" in str(error):  # of Path.expanduser
        return "a path begins with ~ but no such user has a home folder; write it out", 1
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return "out of memory; shorten the text, raise --ratio, or try --device cpu", 1
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{error.strerror}; check the place and the space there", 1
    what = one_line(str(error)) or "no message"
    return f"unexpected {type(error).__name__}: {what}; add --debug for the traceback", 1


def _flush_stdout() -> None:
    """Flush stdout; where that fails, let Python's own last flush go nowhere."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
