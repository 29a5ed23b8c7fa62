"""Run the stages of a recipe in order: adapter, encoder, decoder, sft.

OUT/config.json            the resolved recipe, the versions, what it ran with
OUT/log.jsonl              one line a step, plus measurements
OUT/rows/                  the packed rows, unless the recipe names a folder of prepared ones
OUT/STAGE/checkpoint-*     to resume from
OUT/STAGE/best             the model at its lowest held-out loss
OUT/STAGE/export           a finished stage in the published layout; the last one is the model
"""

import dataclasses
import os
from pathlib import Path
from typing import Any

import torch

from octavo.config import read_json
from octavo.errors import TrainingError
from octavo.machine import find_device, has_bf16
from octavo.progress import OnNote, OnStep, Progress
from octavo.recipe import STAGES, RunConfig
from octavo.settings import refuse_change
from octavo.train import parallel
from octavo.train.run import Run
from octavo.train.signals import Stop

HARMLESS = {
    *("output", "device", "data.root", "data.workers", "data.rows", "tensorboard", "peak_tflops"),
    *("save_every", "keep_checkpoints", "log_every", "measure_every", "keep_best"),
}
"""Keys that may change between an interruption and `--resume`: no weight depends on them."""


def train(
    config: RunConfig,
    root: Path,
    *,
    resume: bool = False,
    on_step: OnStep | None = None,
    on_rows: Progress | None = None,
    on_note: OnNote | None = None,
) -> Path:
    """Run every stage of a recipe and return the folder of the last export.

    `root` is where relative paths start. Under `torchrun` the run is spread over its processes, the
    first of which reports. Raises `TrainingError` (or another `OctavoError`) before the first step
    when anything in the recipe cannot work, and `Interrupted`, a `KeyboardInterrupt`, after a
    SIGINT or SIGTERM, when the run has been saved. An interrupted run continues with `resume`, bit
    for bit on as many ranks as before; without it, a folder that already holds a run is refused.
    """
    config.check()
    note = on_note if on_note and os.environ.get("RANK", "0") == "0" else lambda stage, doing: None
    with (
        Stop(lambda: note("", "stopping")) as stop,
        parallel.process_group(find_device(config.device)) as device,
    ):
        if config.precision == "auto":
            config = dataclasses.replace(config, precision="bf16" if has_bf16(device) else "fp32")
        if not parallel.is_main():
            on_step = on_rows = None
        return _train(config, root, device, resume, stop, on_step, on_rows, note)


def _train(
    config: RunConfig,
    root: Path,
    device: torch.device,
    resume: bool,
    stop: Stop,
    on_step: OnStep | None,
    on_rows: Progress | None,
    note: OnNote,
) -> Path:
    out = root / Path(config.output).expanduser()
    names = [name for name in STAGES if name in config.stages and config.stages[name].steps]
    finished: list[str] = []
    before: dict[str, Any] = {}
    if (out / "log.jsonl").exists():
        if not resume:
            raise TrainingError(
                f"{out} already holds a run; add --resume, or choose another output"
            )
        before = read_json(out / "config.json")
        _refuse_other_recipe(before.get("recipe", {}), config, out)
        finished = [name for name in names if (out / name / "export").is_dir()]
    todo = names[names.index(finished[-1]) + 1 :] if finished else names
    if not todo:
        return out / finished[-1] / "export"
    run = Run(config, root, device, stop, note)
    run.check(todo)  # before the rows, which may take hours
    run.open_rows(on_rows)
    if before and before.get("texts") != run.texts:
        raise TrainingError(
            f"the rows are not those that the run in {out} began with; bring them back, or choose "
            "another output"
        )
    with parallel.on_main("writing config.json") as is_main:
        if is_main:
            run.describe()
    export = out / finished[-1] / "export" if finished else None
    for name in todo:
        export = _stage(run, name, export, resume, on_step)
    assert export is not None
    return export


def _stage(run: Run, name: str, before: Path | None, resume: bool, on_step: OnStep | None) -> Path:
    """Train one stage and export it; return the export."""
    stage, steps = run.stage(name, before), run.config.stages[name].steps
    is_resumed = resume and stage.resume()
    with parallel.on_main("rewinding the log") as is_main:
        if is_main and resume:
            run.clear_leftovers(name)
            run.log.rewind(name, stage.step, stage.measured_step)
            if is_resumed:
                run.log({"stage": name, "step": stage.step, "resumed": True})
    stage.run(on_step and (lambda step, loss: on_step(name, step, steps, loss)))
    export = run.out / name / "export"
    run.export(stage, before, export)
    run.note(name, "done")
    if parallel.is_main():
        run.log({"stage": name, "step": stage.step, "exported": os.fspath(export)})
    return export


def _refuse_other_recipe(before: dict[str, Any], config: RunConfig, out: Path) -> None:
    """Refuse to resume by another recipe; stages that have not begun may still change."""
    waiting = tuple(f"stages.{name}." for name in STAGES if not (out / name).is_dir())
    refuse_change(
        before,
        config.to_dict(),
        TrainingError,
        what=f"the run in {out} began",
        cure="set it back to resume, or choose another output",
        may_change=lambda name: name in HARMLESS or name.startswith(waiting),
    )
