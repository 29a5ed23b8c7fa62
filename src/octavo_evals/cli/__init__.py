"""The verbs of evaluation: `octavo eval`, `octavo report` and `octavo bench`."""

from typing import Any

import typer

Texts = list[str] | None
Counts = list[int] | None


def option(metavar: str, text: str, *names: str, **checks: Any) -> Any:
    """Return an option with its help."""
    return typer.Option(*names, metavar=metavar, help=text, **checks)
