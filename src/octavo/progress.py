"""How long work says how far it has come: plain callbacks, which the command line draws as bars."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called as `progress(what, done, total)`; a total of 0 is not known."""

OnStep = Callable[[str, int, int, float], None]
"""Called as `on_step(stage, step, steps, loss)` after a step of training."""


def ignore(what: str, done: int, total: int) -> None:
    """Report to nobody."""
