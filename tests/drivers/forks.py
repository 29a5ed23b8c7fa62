"""Forks the ranks of training runs from one process, so that torch is imported once for all.

Reads one JSON request a line: `{"recipe": …, "folder": …, "ranks": 2, "resume": false, "hook": "",
"timeout": 60}`. Answers each with one line, `[[exit code, message], …]` by rank. A rank that runs
past the timeout is killed and has the code -9.
"""

import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import conftest  # noqa: F401  (sets what torch and the hub read when they are imported)
import torch

import octavo.train.run
from octavo.data.rows import Row
from octavo.errors import OctavoError
from octavo.nn import LCLM
from octavo.recipe import RunConfig
from octavo.train import checkpoints
from octavo.train.feed import RowSource
from octavo.train.loop import Interrupted, Stage
from octavo.train.stages import train

DONE, INTERRUPTED, REFUSED, CRASHED = 0, 3, 4, 1


def full(*args: Any, **kwargs: Any) -> None:
    raise OSError(28, "No space left on device")


def without_spans(rank: int) -> None:
    """Take the spans out of the second half of every step's rows: all that rank 1 of two reads."""
    made = Stage.__init__

    def make(
        stage: Stage, name: str, model: LCLM, rows: RowSource, *args: Any, **kwargs: Any
    ) -> None:
        made(stage, name, model, rows, *args, **kwargs)
        read, size, tags = rows.read, stage.config.batch_rows, set(model.config.memory_token_ids)

        def read_stripped(first: int, count: int) -> list[Row]:
            found = enumerate(read(first, count), first)
            return [stripped(row, tags) if i % size >= size // 2 else row for i, row in found]

        rows.read = read_stripped  # type: ignore[method-assign]

    Stage.__init__ = make  # type: ignore[method-assign]


def stripped(row: Row, tags: set[int]) -> Row:
    """Return a row without its spans and the ids that mark them."""
    examples = []
    for example in row.examples:
        pairs = [p for p in zip(example.ids, example.is_scored, strict=True) if p[0] not in tags]
        ids, is_scored = [p[0] for p in pairs], [p[1] for p in pairs]
        is_scored[0] = False
        examples.append(type(example)(example.kind, ids, is_scored, [], example.origin))
    return Row(row.id, row.ratio, examples)


def not_finite(rank: int) -> None:
    """Break the first row that rank 1 of two reads in step 2."""
    take, score = Stage._take_step, LCLM.score
    state = {"step": 0, "calls": 0}

    def take_step(stage: Stage, feed: Any) -> Any:
        state.update(step=stage.step + 1, calls=0)
        return take(stage, feed)

    def broken(model: LCLM, *args: Any, **kwargs: Any) -> Any:
        scores = score(model, *args, **kwargs)
        state["calls"] += 1
        if (rank, state["step"], state["calls"]) != (1, 2, 1):
            return scores
        factor = torch.where(scores.row_P == 0, float("nan"), 1.0)
        return scores._replace(loss_P=scores.loss_P * factor)

    Stage._take_step = take_step  # type: ignore[method-assign]
    LCLM.score = broken  # type: ignore[method-assign]


def signal_in_step_2(rank: int, of_rank: int = 1) -> None:
    """Send this process a SIGTERM in its second step."""
    take = Stage._take_step

    def watched(stage: Stage, feed: Any) -> Any:
        if stage.step == 1 and rank == of_rank:
            signal.raise_signal(signal.SIGTERM)
        return take(stage, feed)

    Stage._take_step = watched  # type: ignore[method-assign]


def signal_rank_0_in_step_2(rank: int) -> None:
    signal_in_step_2(rank, 0)


def export_fails(rank: int) -> None:
    if rank == 0:
        octavo.train.run.write = full  # type: ignore[assignment]


def state_fails(rank: int) -> None:
    if rank == 0:
        checkpoints.replace_folder = full  # type: ignore[assignment]


def shard_fails(rank: int) -> None:
    if rank == 1:
        import safetensors.torch

        safetensors.torch.save = full  # type: ignore[assignment]


HOOKS: dict[str, Callable[[int], None]] = {
    hook.__name__: hook
    for hook in (
        *(without_spans, not_finite, signal_in_step_2, signal_rank_0_in_step_2),
        *(export_fails, state_fails, shard_fails),
    )
}


def run_rank(request: dict[str, Any], rank: int, said: Path) -> int:
    """Be one rank of a run; return the exit code."""
    try:
        if request.get("hook"):
            HOOKS[request["hook"]](rank)
        config = RunConfig.load(Path(request["recipe"]))
        train(config, Path(request["folder"]), resume=bool(request.get("resume")))
    except Interrupted as interrupted:
        said.write_text(str(interrupted))
        return INTERRUPTED
    except OctavoError as error:
        said.write_text(f"{type(error).__name__}: {error}")
        return REFUSED
    except BaseException:
        said.write_text(traceback.format_exc())
        return CRASHED
    return DONE


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def answer(request: dict[str, Any]) -> list[list[Any]]:
    """Fork the ranks of one request and wait for them."""
    folder, ranks = Path(request["folder"]), int(request["ranks"])
    said = [folder / f"said-{rank}.txt" for rank in range(ranks)]
    port, children = free_port(), []
    for rank in range(ranks):
        said[rank].unlink(missing_ok=True)
        if pid := os.fork():
            children.append(pid)
            continue
        if ranks > 1:
            os.environ.update(
                RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks),
                MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
            )  # fmt: skip
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os._exit(run_rank(request, rank, said[rank]))
    deadline = time.monotonic() + float(request.get("timeout", 120))
    codes: dict[int, int] = {}
    while len(codes) < ranks:
        for rank, pid in enumerate(children):
            if rank not in codes:
                if time.monotonic() > deadline:
                    os.kill(pid, signal.SIGKILL)
                found, status = os.waitpid(pid, 0 if time.monotonic() > deadline else os.WNOHANG)
                if found:
                    codes[rank] = os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    return [[codes[r], said[r].read_text() if said[r].exists() else ""] for r in range(ranks)]


def main() -> None:
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
