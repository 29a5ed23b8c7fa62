"""`octavo chat`: a conversation about contexts and texts, a line a turn."""

import contextlib
import importlib
import sys
from collections.abc import Iterator
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
    for line in _lines():
        if line in COMMANDS:
            if line == "/quit":
                return
            if line == "/new":
                turns.clear()
            echo(_help() if line == "/help" else "what was said is forgotten", err=True)
            continue
        turns.append({"role": "user", "content": line})
        try:
            answer = _say(loaded, turns, contexts, options)
        except PromptError as error:
            echo(f"error: {error}", err=True)
            answer = ""
        if answer:
            turns.append({"role": "assistant", "content": answer})
        else:
            turns.pop()


def _say(
    model: "Model", turns: list[dict[str, Any]], contexts: list[Any], options: dict[str, Any]
) -> str:
    """Show the answer as it is made, and return what was shown; Ctrl-C ends only the answer."""
    stream = model.stream(messages=turns, context=contexts, **options)
    shown = ""
    try:
        for piece in stream:
            echo(piece, nl=False, exact=True)
            shown += piece
    except KeyboardInterrupt:
        stream.close()
    echo()
    return shown


def _lines() -> Iterator[str]:
    """Yield what the user says, until the end of stdin."""
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        with contextlib.suppress(ImportError):  # not on every system
            importlib.import_module("readline")  # `input` then edits lines and recalls them
    while True:
        if is_terminal:
            try:
                line = input("> ")
            except EOFError:
                echo(err=True)
                return
            except KeyboardInterrupt:
                echo(err=True)
                continue
        else:
            data = sys.stdin.buffer.readline()
            if not data:
                return
            try:
                line = data.decode("utf-8")
            except UnicodeDecodeError as error:
                raise InputError("stdin is not UTF-8; convert it with iconv first") from error
        if line.strip():
            yield line.strip()


def _banner(model: "Model", contexts: list[Any]) -> str:
    """Say who is talking about what, and how to leave."""
    texts = [f"{len(one):,} latents ({one.ratio}x)" for one in contexts]
    about = f", about {' and '.join(texts)}" if texts else ""
    return f"{model.name}{about}; /help for help, /quit to leave"


def _help() -> str:
    return "\n".join(f"{command:<7} {says}" for command, says in COMMANDS.items())
