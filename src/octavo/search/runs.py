"""Train the variants of a grid, each in a process of its own, some side by side.

A run is claimed by a lock that its process holds as long as it lives: whoever else searches the
same folder, or searches it again after a crash, leaves it alone until then. A run that fails keeps
what it said, stops no other, and is tried again by the next search.
"""

import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from octavo.config import read_json
from octavo.errors import OctavoError, TrainingError
from octavo.files import write_text
from octavo.recipe import RunConfig
from octavo.search.grid import Grid, Variant
from octavo.search.result import write_random_halves, write_result
from octavo.settings import refuse_change

POLL_SECONDS = 0.2
STOP_SECONDS = 120
"""How long a run may take to save itself once it is asked to."""
_ROW_KEYS = ("encoder", "decoder", "start", "encoder_layers", "compression_ratio", "ratios")

OnChange = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class GridRun:
    """One variant with one seed."""

    variant: Variant
    seed: int
    folder: Path

    @property
    def is_over(self) -> bool:
        """Whether it is trained and measured."""
        return (self.folder / "result.json").is_file()


def list_runs(grid: Grid, folder: Path) -> list[GridRun]:
    """Return every run of a grid, all variants with the first seed first."""
    return [
        GridRun(variant, seed, folder / "runs" / variant.slug(seed))
        for seed in grid.seeds
        for variant in grid.variants
    ]


def search(
    grid: Grid,
    folder: Path,
    *,
    processes: int = 1,
    part: tuple[int, int] = (1, 1),
    on_change: OnChange = lambda what, done, total: None,
) -> dict[str, str]:
    """Train what is not yet trained, and return what failed: the run's name -> its last line.

    `part` (k, n) takes every n-th run from the k-th on, for job arrays over one folder. Ctrl-C or
    SIGTERM asks the runs to save themselves, and the same call goes on. Raises `TrainingError`
    where a run of the same name has other settings.
    """
    runs = list_runs(grid, folder)[part[0] - 1 :: part[1]]
    for run in runs:
        _keep_settings(run, grid)
    failed: dict[str, str] = {}
    waiting, running = [run for run in runs if not run.is_over], list[tuple[GridRun, Any]]()
    before = None
    if threading.current_thread() is threading.main_thread():  # as job schedulers end a job
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        while waiting or running:
            on_change("runs", sum(run.is_over for run in runs), len(runs))
            while waiting and len(running) < processes:
                run = waiting.pop(0)
                try:
                    started = None if run.is_over else _start(run, grid, folder, processes)
                except OctavoError as error:
                    failed[run.folder.name] = str(error)
                    continue
                if started:
                    running.append((run, started))
                elif not run.is_over:  # another process has it
                    waiting.append(run)
                    break
            time.sleep(POLL_SECONDS)
            for run, process in [pair for pair in running if pair[1].poll() is not None]:
                running.remove((run, process))
                if why := _finish(run, process.returncode):
                    failed[run.folder.name] = why
        on_change("runs", sum(run.is_over for run in runs), len(runs))
    finally:
        _stop([process for _, process in running])
        if before is not None:
            signal.signal(signal.SIGTERM, before)
    return failed


def _keep_settings(run: GridRun, grid: Grid) -> None:
    """Write down what a run is made by, or refuse to take what was made by something else."""
    file = run.folder / "settings.json"
    now = {
        "recipe": hashlib.sha256(grid.recipe.read_bytes()).hexdigest()[:16],
        "scratch": dict(grid.scratch),
        "settings": dict(run.variant.settings),
    }
    if file.is_file():
        refuse_change(
            read_json(file),
            now,
            TrainingError,
            what=f"{run.folder} began",
            cure="set it back, rename the variant, or choose another folder",
        )
    else:
        run.folder.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(now, indent=2) + "\n")


def _start(run: GridRun, grid: Grid, folder: Path, processes: int) -> Any:
    """Start a run, its rows first where they are missing; None if another process has it."""
    overrides = run.variant.overrides(run.seed)
    if grid.scratch:
        halves = folder / "halves" / str(run.seed)
        with _claim(halves.with_suffix(".lock"), wait=True):
            write_random_halves(grid.scratch, halves, run.seed)
        overrides += [f"model.{half}={json.dumps(str(halves))}" for half in ("encoder", "decoder")]
    config = RunConfig.load(grid.recipe, overrides)
    python = [sys.executable, "-m", "octavo"]
    settings = [word for one in overrides for word in ("--set", one)]
    with _claim(run.folder / "lock") as lock:
        if lock is None:
            return None
        if config.data.rows is None and not config.data.stream:
            rows = folder / "rows" / _hash_of_rows(config)
            rows.parent.mkdir(exist_ok=True)
            with _claim(rows.with_suffix(".lock"), wait=True):
                line = [*python, "data", "prepare", str(grid.recipe), *settings, "-o", str(rows)]
                preparing = _spawn(line, run, processes, lock)
                try:
                    code = preparing.wait()
                finally:
                    _stop([preparing])
                if code:
                    raise TrainingError(_finish(run, code))
            settings += ["--set", f"data.rows={json.dumps(str(rows))}"]
        settings += ["--set", f"output={json.dumps(str(run.folder / 'out'))}"]
        line = [*python, "train", str(grid.recipe), *settings, "--resume"]
        return _spawn(line, run, processes, lock)


def _spawn(line: Sequence[str], run: GridRun, processes: int, lock: int) -> Any:
    """Start a process that holds the run's lock, with its share of the cores."""
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    with (run.folder / "stderr.txt").open("wb") as stderr:
        return subprocess.Popen(
            line,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            pass_fds=[lock],
            start_new_session=True,  # Ctrl-C of a terminal reaches the search, which passes it on
            env={"OMP_NUM_THREADS": threads, **os.environ},
        )


def _finish(run: GridRun, code: int) -> str:
    """Measure a run that ended well; return why one did not, or nothing."""
    said = (run.folder / "stderr.txt").read_text(encoding="utf-8", errors="replace")
    if code:
        lines = said.strip().splitlines()
        return lines[-1] if lines else f"ended with exit code {code}, saying nothing"
    try:
        write_result(run.folder / "out", run.folder / "result.json")
    except OctavoError as error:
        return str(error)
    return ""


def _stop(processes: Sequence[Any]) -> None:
    """Ask runs to save themselves, and wait for them."""
    for process in processes:
        process.terminate()  # does nothing to one that is over
    for process in processes:
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()


def _hash_of_rows(config: RunConfig) -> str:
    """Return what tells rows apart: the settings that they are made by."""
    model = asdict(config.model)
    stages = {name: config.num_rows(name) for name in {s.mixture for s in config.stages.values()}}
    made_by = {
        "model": {key: model[key] for key in _ROW_KEYS},
        **{"data": asdict(config.data), "rows": stages, "seed": config.seed},
    }
    return hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()[:16]


@contextmanager
def _claim(file: Path, *, wait: bool = False) -> Iterator[int | None]:
    """Hold a file's lock, which processes that are started meanwhile go on holding.

    Yields None where another process holds it, unless told to wait.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield None
        else:
            yield descriptor
    finally:
        os.close(descriptor)
