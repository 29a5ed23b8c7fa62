"""`octavo serve` and `octavo mcp`: the same store over HTTP, and as tools of an assistant."""

import importlib
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from octavo.cli.inputs import Misuse, echo
from octavo.cli.options import (
    SHIPPED,
    ModelChoice,
    bars,
    chooses_model,
    open_model,
)
from octavo.errors import MissingExtraError

StoreFolder = Annotated[
    Path | None,
    typer.Option("--store", metavar="DIR", help="The store's folder; by default the user's own."),
]


def _needed(module: str, extra: str) -> Any:
    """Import a module that needs an extra; say which where it is missing."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"this needs {error.name}, which is not installed: pip install 'octavo[{extra}]'"
        ) from error


@chooses_model
def serve(
    choice: ModelChoice = SHIPPED,
    backend: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="A server that answers in place of a model here: http://HOST:PORT/v1.",
        ),
    ] = None,
    host: Annotated[str, typer.Option(metavar="HOST", help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, metavar="PORT")] = 8000,
    api_key_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Keys and their scopes (docs/server.md)."),
    ] = None,
    store: StoreFolder = None,
    compress_over: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="TOKENS", help="Fold every message that is longer, for every client."
        ),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Answers made at once.")] = 32,
    queue: Annotated[int, typer.Option(min=1, help="Requests at work or waiting.")] = 256,
    max_body: Annotated[int, typer.Option(min=1, metavar="MiB", help="Of one request.")] = 64,
    heartbeat: Annotated[
        bool, typer.Option(help="Send comments in streams while nothing comes.")
    ] = True,
) -> None:
    """Serve chat, responses, contexts and a page to look at, as OpenAI's clients know it.

    The key for --backend, if it wants one, is read from OCTAVO_BACKEND_KEY.
    """
    app = _needed("octavo.serve.app", "serve")
    from octavo.home import home
    from octavo.serve.backends.base import Backend
    from octavo.serve.backends.local import LocalBackend
    from octavo.serve.backends.remote import RemoteBackend
    from octavo.serve.limits import Keys, Limits
    from octavo.serve.requests import CompressPolicy
    from octavo.serve.service import Service

    if backend is not None and choice.model is not None:
        raise Misuse("--backend and --model are two ways to answer; give one")
    keys = Keys(api_key_file) if api_key_file is not None else None
    app.check_host(host, keys)
    limits = Limits(
        max_rows=rows, max_waiting=queue, max_body_bytes=max_body << 20, heartbeat=heartbeat
    )
    answers: Backend
    if backend is not None:
        answers = RemoteBackend(backend, limits, key=os.environ.get("OCTAVO_BACKEND_KEY"))
    else:
        with bars() as report:
            answers = LocalBackend(open_model(choice, report), limits)
    policy = None if compress_over is None else CompressPolicy(over_tokens=compress_over)
    service = Service(answers, store or home() / "store", limits, policy)
    app.run(
        service, host=host, port=port, keys=keys,
        on_ready=lambda: echo(f"{answers.name} at http://{host}:{port} (Ctrl-C ends)", err=True),
    )  # fmt: skip


@chooses_model
def mcp(
    store: StoreFolder = None,
    choice: ModelChoice = SHIPPED,
    fold: Annotated[bool, typer.Option(help="Fold texts with a model, or only index them.")] = True,
) -> None:
    """Offer the store to an assistant as tools, over stdin and stdout (Model Context Protocol)."""
    tools = _needed("octavo.serve.mcp", "mcp")
    from octavo.store import Store

    loaded = None
    if fold:
        with bars() as report:
            loaded = open_model(choice, report)
    tools.make_server(Store(store), loaded).run("stdio")
