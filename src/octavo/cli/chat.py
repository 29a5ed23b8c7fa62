"""`octavo chat`: a conversation about contexts and texts, a line a turn."""

import contextlib
import importlib
import sys
from typing import TYPE_CHECKING, Any

from octavo.cli.answer import gather
from octavo.cli.inputs import check_contexts_exist, check_single_stdin, echo, read_text
from octavo.cli.options import (
    SHIPPED,
    Contexts,
    Files,
    MaxNewTokens,
    ModelChoice,
    Quiet,
    Ratio,
    Seed,
    Temperature,
    bars,
    chooses_model,
    open_model,
    say_limits,
)
from octavo.errors import InputError, PromptError

if TYPE_CHECKING:
    from octavo.model import Model

COMMANDS = {
    "/help": "say what may be typed",
    "/new": "forget what was said; the texts stay",
    "/quit": "end, as Ctrl-D does",
}
"""What a line may be instead of a question."""


@chooses_model
def chat(
    context: Contexts = None,
    file: Files = None,
    ratio: Ratio = None,
    max_new_tokens: MaxNewTokens = None,
    temperature: Temperature = 0.0,
    seed: Seed = None,
    choice: ModelChoice = SHIPPED,
    quiet: Quiet = False,
) -> None:
    """Talk about contexts and texts, one line a turn.

    Lines come from stdin, so --file cannot be - here. /help tells what else may be said; /quit or
    Ctrl-D ends; Ctrl-C stops an answer, or clears the line.
    """
    places, files = context or [], file or []
    check_single_stdin("-", *files)
    check_contexts_exist(places)
    texts = [read_text(one) for one in files]
    with bars() as report:
        loaded = open_model(choice, report, ratio)
        contexts, _ = gather(loaded, places, texts, report, ratio)
    options: dict[str, Any] = {
        "ratio": ratio, "max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed
    }  # fmt: skip
    if not quiet:
        echo(_banner(loaded, contexts), err=True)
        say_limits(loaded, contexts)
    turns: list[dict[str, Any]] = []
    while True:
        is_asked = False
        try:
            line = _read_line()
            if line is None or line == "/quit":
                return
            if line in COMMANDS:
                if line == "/new":
                    turns.clear()
                echo(_help() if line == "/help" else "what was said is forgotten", err=True)
            elif line:
                is_asked = True
                _take_turn(loaded, turns, line, contexts, options)
        except KeyboardInterrupt:  # ends an answer, or the line that is being typed
            if is_asked:
                continue
            if not sys.stdin.isatty():
                raise
            echo(err=True)


def _take_turn(
    model: "Model",
    turns: list[dict[str, Any]],
    line: str,
    contexts: list[Any],
    options: dict[str, Any],
) -> None:
    """Show the answer as it is made; Ctrl-C ends only the answer, and what was shown was said."""
    shown = ""
    asked = [*turns, {"role": "user", "content": line}]
    try:
        stream = model.stream(messages=asked, context=contexts, **options)
        with contextlib.closing(stream):
            for piece in stream:
                echo(piece, nl=False, exact=True)
                shown += piece
        echo()
    except PromptError as error:
        echo(f"error: {error}", err=True)
    except KeyboardInterrupt:
        echo()
    finally:
        if shown:
            turns[:] = [*asked, {"role": "assistant", "content": shown}]


def _read_line() -> str | None:
    """Return what the user says next, without spaces around it; None at the end of stdin."""
    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):  # not on every system
            importlib.import_module("readline")  # `input` then edits lines and recalls them
        try:
            return input("> ").strip()
        except EOFError:
            echo(err=True)
            return None
    data = sys.stdin.buffer.readline()
    if not data:
        return None
    try:
        return data.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise InputError("stdin is not UTF-8; convert it with iconv first") from error


def _banner(model: "Model", contexts: list[Any]) -> str:
    """Say who is talking about what, and how to leave."""
    texts = [f"{len(one):,} latents ({one.ratio}x)" for one in contexts]
    about = f", about {' and '.join(texts)}" if texts else ""
    return f"{model.name}{about}; /help for help, /quit to leave"


def _help() -> str:
    return "\n".join(f"{command:<7} {says}" for command, says in COMMANDS.items())
