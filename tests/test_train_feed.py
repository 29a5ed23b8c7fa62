"""A step reads the same rows whoever makes them: the trainer, other processes, or a stream."""

import json
from pathlib import Path
from typing import Any

import pytest
from training import (
    ADAPTER,
    DECODER,
    assert_same_run,
    interrupt_at,
    losses_of,
    measured_steps,
    recipe,
    rows_of,
)

from octavo.errors import TrainingError
from octavo.train.loop import Interrupted
from octavo.train.stages import train
from octavo.weights.layout import read

STAGES = {"decoder": {**DECODER, "steps": 3}}


def run(folder: Path, **changes: Any) -> Path:
    """Train in a folder and return what was left there."""
    train(recipe(folder, stages=STAGES, **changes), folder)
    return folder / "out"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes")  # one core
@pytest.mark.parametrize("stream", [False, True])
def test_rows_that_other_processes_bring_train_as_the_trainers_own(
    tmp_path: Path, stream: bool
) -> None:
    alone = run(tmp_path / "alone", data__stream=stream)
    helped = run(tmp_path / "helped", data__stream=stream, data__workers=2)
    assert_same_run(alone, helped)


@pytest.mark.slow
def test_a_streamed_run_keeps_no_rows_and_goes_on_bit_for_bit(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", data__stream=True)
    assert not (whole / "rows").exists()
    cut = recipe(tmp_path / "cut", stages=STAGES, data__stream=True)
    with pytest.raises(Interrupted):
        train(cut, tmp_path / "cut", on_step=interrupt_at("decoder", 1))
    train(cut, tmp_path / "cut", resume=True)
    assert_same_run(whole, tmp_path / "cut" / "out")


def test_no_two_steps_of_a_stream_read_the_same_rows(tmp_path: Path) -> None:
    logged = rows_of(run(tmp_path, data__stream=True, measure_every=0))
    assert len({(row["scored_tokens"], row["source_tokens"]) for row in logged}) == 3


def test_rows_are_streamed_or_prepared_but_not_both(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"data\.stream makes rows and data\.rows names some"):
        recipe(tmp_path, data__stream=True, data__rows="rows")


def test_a_stage_ends_when_its_time_is_over_and_its_rates_have_fallen(tmp_path: Path) -> None:
    stage = {**ADAPTER, "steps": 100_000, "seconds": 0.5, "min_lr_ratio": 0.0}
    changes: dict[str, Any] = {"save_every": 10**6, "data__stream": True}
    export = train(recipe(tmp_path, stages={"adapter": stage}, **changes), tmp_path)
    steps = [row for row in rows_of(tmp_path / "out") if "loss" in row]
    assert 0 < len(steps) < 100_000
    rates = [row["lr"]["adapter"] for row in steps]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < rates[0] or len(steps) == 1
    assert read(export).lclm.settings.compression_ratio == 4
    log = (tmp_path / "out" / "log.jsonl").read_text().splitlines()
    assert json.loads(log[-1])["step"] == len(steps)  # the steps taken, not those allowed


def test_a_run_that_never_measures_has_no_measurement_in_its_log(tmp_path: Path) -> None:
    out = run(tmp_path, measure_every=0)
    assert measured_steps(out) == []
    assert len(losses_of(out)) == 3
