"""Stopping and going on: signals, full disks, damaged files, steps that are not finite."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TEXT
from training import (
    ADAPTER,
    DECODER,
    assert_same_run,
    interrupt_at,
    losses_of,
    measured_steps,
    moments_of,
    one_stage,
    recipe,
    rows_of,
    tensors_of,
    weights_of,
    write_recipe,
)

from octavo.errors import TrainingError
from octavo.files import WriteError
from octavo.nn import LCLM
from octavo.train import checkpoints
from octavo.train.loop import Interrupted, Stage
from octavo.train.signals import Stop
from octavo.train.stages import train


def checkpoints_in(folder: Path) -> list[str]:
    """Return everything in a stage's folder, leftovers included."""
    return sorted(path.name for path in folder.iterdir())


def in_forward(monkeypatch: pytest.MonkeyPatch, number: int, do: Callable[[], object]) -> None:
    """Do something in the middle of forward pass `number`, counted from 1."""
    score, calls = LCLM.score, [0]

    def watched(self: LCLM, *args: Any, **kwargs: Any) -> Any:
        calls[0] += bool(kwargs)  # the self-check gives its few inputs by position
        if calls[0] == number:
            do()
        return score(self, *args, **kwargs)

    monkeypatch.setattr(LCLM, "score", watched)


# -- interrupted and resumed ---------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 2])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, rank: int) -> None:
    decoder = {**DECODER, "lr": {**DECODER["lr"], "memory_rows": 1e-2}} if rank else DECODER
    stages = {"adapter": {**ADAPTER, "steps": 3}, "decoder": {**decoder, "steps": 4}}
    changes = {"stages": stages, "lora__rank": rank, "keep_best": rank == 0, "measure_every": 2}
    changes |= {"model__ratios": [], "data__held_out_examples": 2}
    whole = recipe(tmp_path / "whole", **changes)
    train(whole, tmp_path / "whole")
    broken = recipe(tmp_path / "broken", **changes)
    for place in (("adapter", 1), ("decoder", 3)):
        with pytest.raises(Interrupted):
            train(broken, tmp_path / "broken", resume=True, on_step=interrupt_at(*place))
    train(broken, tmp_path / "broken", resume=True)
    # Both saved last at steps 2 and 4: the other saved once more there after its breaks.
    assert_same_run(tmp_path / "whole" / "out", tmp_path / "broken" / "out")


@pytest.mark.slow
def test_rows_of_steps_after_the_checkpoint_are_not_logged_twice(tmp_path: Path) -> None:
    config = recipe(tmp_path, save_every=2, stages={"adapter": {**ADAPTER, "steps": 6}})

    def die(stage: str, step: int, steps: int, loss: float) -> None:
        if step == 5:
            raise RuntimeError("as if killed: nothing is saved")

    with pytest.raises(RuntimeError):
        train(config, tmp_path, on_step=die)
    with (tmp_path / "out" / "log.jsonl").open("a") as file:
        file.write('{"stage": "adapter", "st')  # and in the middle of a line
    train(config, tmp_path, resume=True)
    steps = [row["step"] for row in rows_of(tmp_path / "out") if "loss" in row]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_a_finished_run_resumes_to_its_model_without_a_step(tmp_path: Path) -> None:
    config = recipe(tmp_path, stages={"adapter": {**ADAPTER, "steps": 1}})
    export = train(config, tmp_path)
    before = (tmp_path / "out" / "log.jsonl").read_text()
    assert train(config, tmp_path, resume=True) == export
    assert (tmp_path / "out" / "log.jsonl").read_text() == before


@pytest.mark.slow
def test_a_run_is_not_overwritten_and_not_resumed_by_another_recipe(tmp_path: Path) -> None:
    stages = {"adapter": {**ADAPTER, "steps": 2}, "decoder": {**DECODER, "steps": 1}}
    with pytest.raises(KeyboardInterrupt):
        train(recipe(tmp_path, stages=stages), tmp_path, on_step=interrupt_at("adapter", 1))
    with pytest.raises(TrainingError, match="already holds a run; add --resume"):
        train(recipe(tmp_path, stages=stages), tmp_path)
    with pytest.raises(TrainingError, match=r"seed is 3, but the run in .* began with 0"):
        train(recipe(tmp_path, stages=stages, seed=3), tmp_path, resume=True)
    other = {**stages, "adapter": {**ADAPTER, "steps": 9}}
    with pytest.raises(TrainingError, match=r"stages\.adapter\.steps is 9"):
        train(recipe(tmp_path, stages=other), tmp_path, resume=True)
    betas = {**stages, "adapter": {**stages["adapter"], "betas": {"adapter": [0.8, 0.9]}}}
    with pytest.raises(TrainingError, match=r"stages\.adapter\.betas\.adapter is \[0\.8, 0\.9\]"):
        train(recipe(tmp_path, stages=betas), tmp_path, resume=True)
    later = {**stages, "decoder": {**stages["decoder"], "steps": 2}}  # has not begun
    config = recipe(tmp_path, stages=later, save_every=1, keep_best=True, log_every=2)
    (tmp_path / "a.txt").write_text(TEXT * 9, encoding="utf-8")  # its rows are made already
    assert train(config, tmp_path, resume=True).parent.name == "decoder"


def test_a_run_does_not_go_on_with_rows_of_other_texts(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(recipe(tmp_path), tmp_path, on_step=interrupt_at("adapter", 1))
    config = recipe(tmp_path)
    shutil.rmtree(tmp_path / "out" / "rows")
    (tmp_path / "a.txt").write_text(TEXT * 9, encoding="utf-8")
    with pytest.raises(TrainingError, match=r"rows are not those that the run in .* began with"):
        train(config, tmp_path, resume=True)


# -- signals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_a_step_finishes_it_and_saves(
    tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = one_stage(tmp_path, stop=Stop(), save_every=99)
    in_forward(monkeypatch, 3, lambda: signal.raise_signal(number))  # the first half of step 2
    before = signal.getsignal(number)
    with stage.stop, pytest.raises(Interrupted, match="stage adapter, step 2"):
        stage.run()
    assert signal.getsignal(number) is before
    assert checkpoints_in(tmp_path / "stage") == ["checkpoint-00000002"]
    again = one_stage(tmp_path)
    assert again.resume()
    assert again.step == 2
    ours, theirs = weights_of(stage.model), weights_of(again.model)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    ours, theirs = moments_of(stage), moments_of(again)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.slow
def test_ctrl_c_is_acknowledged_before_the_step_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[tuple[str, str]] = []

    def interrupt() -> None:
        signal.raise_signal(signal.SIGINT)
        assert notes.pop() == ("", "stopping")

    in_forward(monkeypatch, 3, interrupt)
    config = recipe(tmp_path, stages={"adapter": {**ADAPTER, "steps": 3}})
    with pytest.raises(Interrupted):
        train(config, tmp_path, on_note=lambda *note: notes.append(note))
    assert notes == []
    train(config, tmp_path, resume=True, on_note=lambda *note: notes.append(note))
    doing = ["measuring", "writing the model", "done"]
    assert notes == [("adapter", one) for one in doing]


@pytest.mark.slow
def test_a_second_ctrl_c_stops_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def twice() -> None:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # impatient schedulers repeat themselves
        signal.raise_signal(signal.SIGINT)

    in_forward(monkeypatch, 6, twice)
    with pytest.raises(KeyboardInterrupt) as caught:
        train(recipe(tmp_path), tmp_path)
    assert not isinstance(caught.value, Interrupted)
    assert "checkpoint-00000002" in checkpoints_in(tmp_path / "out" / "adapter")
    assert len(losses_of(tmp_path / "out")) == 2
    monkeypatch.undo()
    train(recipe(tmp_path), tmp_path, resume=True)
    assert len(losses_of(tmp_path / "out")) == 4


@pytest.mark.slow
def test_ctrl_c_during_a_measurement_does_not_lose_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two forward passes a step, so the seventh is the first of the measurement after step 3.
    in_forward(monkeypatch, 7, lambda: signal.raise_signal(signal.SIGINT))
    stages = {"adapter": {**ADAPTER, "steps": 5}}
    config = recipe(tmp_path, stages=stages, measure_every=3)
    with pytest.raises(Interrupted, match="step 4"):
        train(config, tmp_path)
    train(config, tmp_path, resume=True)
    assert measured_steps(tmp_path / "out") == [3, 5]


@pytest.mark.slow
def test_ctrl_c_while_rows_are_prepared_keeps_the_whole_shards(tmp_path: Path) -> None:
    stages = {"adapter": {**ADAPTER, "steps": 8}}  # four shards
    config = recipe(tmp_path, stages=stages)

    def on_rows(mixture: str, rows: int, of: int) -> None:
        if rows == 16:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted, match="preparing rows"):
        train(config, tmp_path, on_rows=on_rows)
    shards = tmp_path / "out" / "rows" / "main"
    before = {path.name: path.stat().st_mtime_ns for path in shards.iterdir()}
    assert before.keys() == {"00000.safetensors", "00001.safetensors"}
    train(config, tmp_path, resume=True)
    after = {path.name: path.stat().st_mtime_ns for path in shards.iterdir()}
    assert len(after) == 4
    assert {name: after[name] for name in before} == before  # not made again


def run_cli(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    """Start `octavo train` in a folder."""
    command = [sys.executable, "-m", "octavo", "train", "recipe.toml", *arguments]
    return subprocess.Popen(
        command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signalled_octavo_train_exits_well_and_says_how_to_go_on(
    tmp_path: Path, number: signal.Signals
) -> None:
    stages = {"adapter": {**ADAPTER, "steps": 500}}
    write_recipe(
        recipe(tmp_path, stages=stages, save_every=1000, measure_every=1000, keep_best=False),
        tmp_path / "recipe.toml",
    )
    process = run_cli(tmp_path)
    log = tmp_path / "out" / "log.jsonl"
    deadline = time.monotonic() + 120
    while not log.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert out == ""
    assert "octavo train recipe.toml --resume" in err
    assert "Traceback" not in err
    (saved,) = checkpoints_in(tmp_path / "out" / "adapter")
    assert saved == f"checkpoint-{len(losses_of(tmp_path / 'out')):08d}"


# -- what is on disk -----------------------------------------------------------------------------


def full(*args: Any, **kwargs: Any) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.slow
@pytest.mark.parametrize("where", ["save_state", "os.fsync", "Path.write_text", "save_file"])
def test_a_full_disk_while_saving_leaves_the_last_checkpoint(
    tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = one_stage(tmp_path)
    stage.save()
    with monkeypatch.context() as patch:
        if where == "save_state":
            patch.setattr(checkpoints, "save_state", full)
        elif where == "os.fsync":
            patch.setattr("os.fsync", full)
        elif where == "Path.write_text":
            patch.setattr(Path, "write_text", full)
        else:  # deep inside torch's writer of the shards
            patch.setattr("safetensors.torch.save", full)
        with pytest.raises(WriteError, match=r"No space left on device.*and resume"):
            stage.run()
    assert checkpoints_in(tmp_path / "stage") == ["checkpoint-00000000"]
    again = one_stage(tmp_path)
    assert again.resume()
    assert again.step == 0


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["tear", "empty", "state", "no state", "no shard"])
def test_a_damaged_checkpoint_says_so(tmp_path: Path, damage: str) -> None:
    stage = one_stage(tmp_path)
    path = stage.save()
    shard = next(path.glob("*.safetensors"))
    if damage == "tear":
        shard.write_bytes(shard.read_bytes()[:-100])
    elif damage == "empty":
        shard.write_bytes(b"")
    elif damage == "no shard":
        shard.unlink()
    elif damage == "state":
        (path / "state.json").write_text('{"step"')
    else:
        (path / "state.json").unlink()
    with pytest.raises(TrainingError, match=rf"{path.name}.*is damaged.*remove it"):
        one_stage(tmp_path).resume()


def test_a_checkpoint_of_other_parameters_is_refused(tmp_path: Path) -> None:
    one_stage(tmp_path).save()
    other = one_stage(tmp_path, stages={"adapter": {"steps": 1, "lr": {"encoder": 1e-3}}})
    with pytest.raises(TrainingError, match="trained other parameters"):
        other.resume()


def test_nothing_in_a_checkpoint_is_pickled(tmp_path: Path) -> None:
    stage = one_stage(tmp_path, stages={"adapter": {**ADAPTER, "steps": 1}})
    stage.run()
    path = stage.save()
    assert {file.suffix for file in path.iterdir()} == {".safetensors", ".json"}
    for file in path.glob("*.json"):
        json.loads(file.read_text())


def test_a_half_written_checkpoint_is_not_taken_for_one(tmp_path: Path) -> None:
    stage = one_stage(tmp_path)
    stage.save()
    half = tmp_path / "stage" / ".checkpoint-00000002.part"
    half.mkdir()
    (half / "state.json").write_text("{}")
    again = one_stage(tmp_path)
    assert again.resume()
    assert again.step == 0
    again.run()
    assert checkpoints_in(tmp_path / "stage") == ["checkpoint-00000004"]


@pytest.mark.slow
@pytest.mark.parametrize(("keep", "kept"), [(1, [6]), (2, [4, 6]), (9, [2, 4, 6])])
def test_the_newest_checkpoints_are_kept(tmp_path: Path, keep: int, kept: list[int]) -> None:
    stages = {"adapter": {**ADAPTER, "steps": 7}}
    one_stage(tmp_path, stages=stages, keep_checkpoints=keep).run()
    assert checkpoints_in(tmp_path / "stage") == [f"checkpoint-{step:08d}" for step in kept]


@pytest.mark.slow
def test_an_older_checkpoint_can_be_gone_back_to(tmp_path: Path) -> None:
    stages = {"adapter": {**ADAPTER, "steps": 6}}
    stage = one_stage(tmp_path, stages=stages, keep_checkpoints=2)
    stage.run()
    newest = tmp_path / "stage" / "checkpoint-00000006"
    next(newest.glob("*.safetensors")).unlink()
    newest.rename(tmp_path / "aside")
    again = one_stage(tmp_path, stages=stages, keep_checkpoints=2)
    assert again.resume()
    assert again.step == 4
    again.run()
    ours, theirs = weights_of(stage.model), weights_of(again.model)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_best_export_is_the_one_with_the_lowest_held_out_loss(tmp_path: Path) -> None:
    losses, exported = iter([3.0, 1.0, 2.0, 0.5, 0.9]), []
    logged: list[dict[str, Any]] = []

    def measure(model: LCLM) -> dict[str, Any]:
        assert not model.training
        return {"made/4": {"latents": {"loss": [next(losses), 0.0, 9.0]}}}

    def export(stage: Stage, folder: Path) -> None:
        assert folder == tmp_path / "stage" / "best"
        exported.append(stage.step)

    doors = {"measure": measure, "export": export, "stages": {"adapter": {**ADAPTER, "steps": 5}}}
    stage = one_stage(tmp_path, log=logged.append, measure_every=1, keep_best=True, **doors)
    stage.settings.steps = 2
    stage.run()
    again = one_stage(tmp_path, log=logged.append, measure_every=1, keep_best=True, **doors)
    assert again.resume()  # and still knows which was the best
    again.run()
    assert exported == [1, 2, 4]
    best = [row["is_best"] for row in logged if "measured" in row]
    assert best == [True, True, False, True, False]
    without = one_stage(tmp_path / "b", measure_every=1, keep_best=False, **doors)
    losses = iter([1.0] * 9)
    without.run()
    assert exported == [1, 2, 4]


@pytest.mark.slow
def test_the_best_export_holds_the_weights_of_its_step(tmp_path: Path) -> None:
    stages = {"adapter": {**ADAPTER, "steps": 2}}
    config = recipe(tmp_path, measure_every=2, keep_best=True, stages=stages)
    train(config, tmp_path)
    tensors = tensors_of(tmp_path / "out" / "adapter")
    best = {name: t for name, t in tensors.items() if name.startswith("best/")}
    assert best
    for name, tensor in best.items():  # the only measurement was at the end
        assert torch.equal(tensor, tensors[name.replace("best/", "export/", 1)])
