"""Run an evaluation that stands in one JSON object: here, or by the Python of another environment.

`python -m octavo_evals.runner` reads the object from stdin, writes rows to the folder it names, and
prints one object: what was done, or `{"error": …}` with exit code 1. `octavo eval --python` so
reaches kvpress, which pins its own transformers.
"""

import dataclasses
import json
import logging
import os
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import octavo
from octavo.cli.options import ModelChoice, bars, open_model
from octavo.errors import EvaluationError, MissingExtraError, OctavoError
from octavo.model import Model
from octavo_evals.run import Account, evaluate
from octavo_evals.task import DataFiles
from octavo_evals.tasks import find_tasks, only_of_groups

LINES = 20
"""How often a run reports where stderr is no terminal."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """An evaluation in plain values: which model answers which tasks, read by which methods."""

    model: ModelChoice
    tasks: tuple[str, ...]
    methods: tuple[tuple[str, int | None], ...]
    folder: Path
    lengths: tuple[int, ...] = ()
    limit: int | None = None
    seed: int = 42
    data: tuple[str, ...] = ()
    """`NAME=PATH` each."""
    command: str = ""
    """Kept with the rows."""

    def to_json(self) -> str:
        """Return the object that `from_json` reads."""
        return json.dumps(dataclasses.asdict(self), default=os.fspath)

    @classmethod
    def from_json(cls, text: str) -> "Job":
        """Read a job; raises `EvaluationError` for anything else."""
        try:
            given = json.loads(text)
            base = given["model"].pop("base")
            given["model"] = ModelChoice(**given["model"], base=Path(base) if base else None)
            given["methods"] = map(tuple, given["methods"])
            lists = {name: tuple(given[name]) for name in ("tasks", "methods", "lengths", "data")}
            return cls(**{**given, **lists, "folder": Path(given["folder"])})
        except (ValueError, KeyError, TypeError) as error:
            raise EvaluationError(
                f"stdin holds no job ({error}); run octavo eval, which writes one"
            ) from error


def run(job: Job, model: Model, show: Any) -> Account:
    """Write the rows of a job that its folder does not hold yet, and `show` how far it is."""
    return evaluate(
        model,
        find_tasks(job.tasks),
        job.methods,
        job.folder,
        lengths=job.lengths,
        limit=job.limit,
        seed=job.seed,
        data=DataFiles(job.data),
        optional=only_of_groups(job.tasks),
        command=job.command,
        on_row=lambda what, done, total: show("evaluating", done, total, "rows", what),
    )


def run_by(python: Path, job: Job) -> Account:
    """Run a job by another Python, on this very source tree."""
    paths = [str(Path(octavo.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    try:
        done = subprocess.run(
            [str(python.expanduser()), "-m", __name__],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
            input=job.to_json(),
            stdout=subprocess.PIPE,
            text=True,
        )
    except OSError as error:
        raise MissingExtraError(
            f"cannot run {python}: {error}; make an environment with scripts/kvpress-env"
        ) from error
    try:
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        found = {"error": f"exit code {done.returncode}, see above"}
    if "error" in found:
        raise EvaluationError(
            f"the run by {python} failed, its rows so far are kept: {found['error']}"
        )
    return Account(**found)


def main() -> None:
    """Run the job on stdin."""
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    try:
        with bars(LINES) as show:
            job = Job.from_json(sys.stdin.read())
            found = dataclasses.asdict(run(job, open_model(job.model, show), show))
    except (OctavoError, KeyboardInterrupt) as error:
        found = {"error": str(error) or "interrupted"}
    sys.stdout.write(json.dumps(found) + "\n")
    raise SystemExit("error" in found)


if __name__ == "__main__":
    main()
