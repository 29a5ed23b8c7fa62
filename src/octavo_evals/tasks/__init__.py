"""Every task by its name, and the groups that several of them make."""

import difflib
from collections.abc import Sequence

from octavo.errors import EvaluationError
from octavo_evals.task import Task
from octavo_evals.tasks import (
    choices,
    everyday,
    gsm8k,
    lclm_eval,
    likelihood,
    longbench,
    questions,
    ruler_documents,
    ruler_needles,
    ruler_words,
)

TASKS: dict[str, Task] = {
    task.name: task
    for module in (
        ruler_needles, ruler_words, ruler_documents, longbench, choices, gsm8k, questions,
        everyday, lclm_eval, likelihood,
    )
    for task in module.TASKS
}  # fmt: skip
GROUPS = {
    group: tuple(name for name in TASKS if name.startswith(f"{group}/"))
    for group in ("ruler", "longbench", "gsm8k")
}
GROUPS["ruler-offline"] = tuple(name for name in GROUPS["ruler"] if "/qa_" not in name)
"""The eleven that need no data."""


def only_of_groups(names: Sequence[str]) -> set[str]:
    """Return the tasks that a group brings and that nobody named."""
    return {one for name in names for one in GROUPS.get(name, ())} - set(names)


def find_tasks(names: Sequence[str]) -> list[Task]:
    """Return the named tasks, groups unfolded, each once and in the order asked for.

    Raises `EvaluationError` for an unknown name, with the nearest known ones.
    """
    wanted: dict[str, Task] = {}
    for name in names:
        if name not in TASKS and name not in GROUPS:
            known = [*GROUPS, *TASKS]
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
            raise EvaluationError(f"unknown task {name!r}; {hint}")
        wanted |= {one: TASKS[one] for one in GROUPS.get(name, (name,))}
    return list(wanted.values())
