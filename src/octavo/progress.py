"""How long work reports its progress: plain callbacks, which the command line draws as bars."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called as `progress(what, done, total)`; a total of 0 is not known."""

OnStep = Callable[[str, int, int, float], None]
"""Called as `on_step(stage, step, steps, loss)` after a step of training."""

OnNote = Callable[[str, str], None]
"""Called as `on_note(stage, doing)` when a stage turns to what takes time beside steps, and as
`on_note("", "stopping")` as soon as a run is asked to stop."""


def ignore(what: str, done: int, total: int) -> None:
    """Report nothing."""
