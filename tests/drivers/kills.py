"""Kills runs of a recipe at random moments, and resumes them until they are done.

Called as `kills.py RECIPE FOLDER SEED KILLS {train,prepare}`; prints what it hit as JSON. Torch is
imported once: every run is a fork. A run tells what it is at through a page of shared memory, so
that rare moments are aimed at too. Runs are done in `FOLDER/0`, `FOLDER/1`, … until there were
enough kills.
"""

import json
import mmap
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import conftest  # noqa: F401  (sets what torch and the hub read when they are imported)

import octavo.train.run
import octavo.train.stages
from octavo.data.prepare import open_prompts, prepare
from octavo.recipe import STAGES, RunConfig
from octavo.train import checkpoints
from octavo.train.log import Log
from octavo.train.loop import Stage
from octavo.train.run import Run

PHASES = ("start", "prepare", "resume", "rewind", "step", "measure", "export", "save", "clean")
PHASE, STAGE, STEP, TAKEN = range(4)
"""Bytes of the shared page: what a run is at, its stage, its step, and steps it took by itself."""
LONGEST_SECONDS = 1.0
"""Before a kill that aims at nothing."""
MOST_TAKEN = 4
"""Steps a run is let take, at most, before a moment is aimed at."""
EARLY = ("prepare", "rewind")
BRIEF = ("save", "clean")
"""Phases of milliseconds, which a later kill would miss."""
NO_STAGE = 255
page = mmap.mmap(-1, 16)


def in_phase(owner: Any, name: str, phase: str) -> None:
    """Tell of every call of a function that the run is in a phase."""
    inner = getattr(owner, name)

    def watched(*args: Any, **kwargs: Any) -> Any:
        before, page[PHASE] = page[PHASE], PHASES.index(phase)
        try:
            return inner(*args, **kwargs)
        finally:
            page[PHASE] = before

    setattr(owner, name, watched)


def watch() -> None:
    """Let everything a run does tell of itself."""
    take, resume = Stage._take_step, Stage.resume

    def take_step(stage: Stage, feed: Any) -> Any:
        taken = take(stage, feed)
        page[STAGE], page[STEP] = STAGES.index(stage.name), stage.step
        page[TAKEN] += 1
        return taken

    def resume_stage(stage: Stage) -> bool:
        is_resumed = resume(stage)
        page[STAGE], page[STEP] = STAGES.index(stage.name), stage.step
        return is_resumed

    Stage._take_step, Stage.resume = take_step, resume_stage  # type: ignore[method-assign]
    in_phase(octavo.train.run, "prepare", "prepare")
    in_phase(Stage, "resume", "resume")
    in_phase(Stage, "_take_step", "step")
    in_phase(Stage, "save", "save")
    in_phase(Run, "measure", "measure")
    in_phase(Run, "export", "export")
    in_phase(Log, "rewind", "rewind")
    in_phase(checkpoints.shutil, "rmtree", "clean")


def begin(work: Callable[[], object]) -> int:
    """Fork a run; return its process id."""
    page[:] = bytes(16)
    page[STAGE] = NO_STAGE
    if pid := os.fork():
        return pid
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        work()
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def is_over(pid: int) -> bool:
    """Whether a run has ended by itself, which must have been well."""
    found, status = os.waitpid(pid, os.WNOHANG)
    if found and status:
        raise SystemExit(f"a run ended with {os.waitstatus_to_exitcode(status)}")
    return bool(found)


def wait_until_over(pid: int, until: Callable[[], bool]) -> bool:
    """Wait for a condition or the end of a run; return whether it ended."""
    while not until():
        if is_over(pid):
            return True
        time.sleep(0.0005)
    return is_over(pid)


def main(recipe: str, folder: str, seed: str, kills: str, what: str) -> None:
    draw, config = random.Random(seed), RunConfig.load(Path(recipe))
    if what == "train":
        watch()
        moments = ["any", "any", "step", "save", "clean", "measure", "export", "rewind", "prepare"]
    else:
        moments = ["shard"]
    hit: list[dict[str, Any]] = []
    number = 0
    while len(hit) < int(kills):
        root = Path(folder) / str(number)

        def work(root: Path = root) -> object:
            if what == "train":
                return octavo.train.stages.train(config, root, resume=True)
            return prepare(config, root, root / "rows", open_prompts(config, root))

        while True:
            started = time.monotonic()
            pid = begin(work)
            if len(hit) < int(kills):
                aim = draw.choice(moments)
                if aim == "any":
                    end = started + draw.uniform(0, LONGEST_SECONDS)
                    ended = wait_until_over(pid, lambda: time.monotonic() > end)  # noqa: B023
                elif aim == "shard":
                    least = shards_of(root) + draw.randint(0, 6)
                    ended = wait_until_over(pid, lambda: shards_of(root) >= least)  # noqa: B023
                    time.sleep(draw.uniform(0, 0.05))
                    ended = ended or is_over(pid)
                else:
                    wanted = PHASES.index(aim)
                    least = 0 if aim in EARLY else draw.randint(0, MOST_TAKEN)
                    ended = wait_until_over(
                        pid,
                        lambda: page[PHASE] == wanted and page[TAKEN] >= least,  # noqa: B023
                    )
                    time.sleep(draw.uniform(0, 0.002 if aim in BRIEF else 0.03))
                    ended = ended or is_over(pid)
            else:
                ended = wait_until_over(pid, lambda: False)
            if not ended:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            if ended:
                break
            hit.append({"phase": PHASES[page[PHASE]], "stage": page[STAGE], "step": page[STEP]})
            hit[-1]["resumed"] = resumed_steps(root, config)
            hit[-1]["shards"] = shards_of(root)
        number += 1
    print(json.dumps({"runs": number, "hit": hit}))


def shards_of(root: Path) -> int:
    """Return how many whole shards of rows there are."""
    # Not rglob: it looks into temporary folders, which vanish under it.
    places = (root / "rows" / "main", root / "out" / "rows" / "main")
    return sum(len(list(place.glob("[0-9]*.safetensors"))) for place in places)


def resumed_steps(root: Path, config: RunConfig) -> list[Any]:
    """Return the newest whole checkpoint: where a run resumed now would begin."""
    out = root / config.output
    for name in reversed(STAGES):
        if (out / name / "export").is_dir():
            return [STAGES.index(name), config.stages[name].steps]
        if found := checkpoints.find(out / name):
            return [STAGES.index(name), checkpoints.read_state(found[-1])["step"]]
    return [NO_STAGE, 0]


if __name__ == "__main__":
    main(*sys.argv[1:])
