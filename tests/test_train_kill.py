"""Runs that are killed at random moments and resumed end as if nothing had happened."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from training import assert_same_run, recipe, write_recipe

from octavo.data.prepare import open_prompts, prepare
from octavo.data.rows import Rows
from octavo.train.stages import train

pytestmark = pytest.mark.slow

DRIVER = Path(__file__).parent / "drivers" / "kills.py"
KILLS = 20
STAGES = {
    "adapter": {"steps": 5, "lr": {"adapter": 1e-2, "memory_rows": 1e-2}},
    "decoder": {"steps": 7, "lr": {"adapter": 1e-2, "encoder": 1e-2, "decoder": 1e-2}},
}


def kill(folder: Path, seed: int, what: str, **changes: Any) -> dict[str, Any]:
    """Run the driver in `folder` and return its report."""
    file = write_recipe(recipe(folder, **changes), folder / "recipe.toml")
    done = subprocess.run(
        [sys.executable, str(DRIVER), str(file), str(folder), str(seed), str(KILLS), what],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=450,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@pytest.mark.parametrize(("save_every", "rank"), [(1, 0), (2, 2)])
def test_a_run_killed_twenty_times_ends_as_the_one_that_was_left_alone(
    tmp_path: Path, save_every: int, rank: int
) -> None:
    stages = {**STAGES}
    if rank:
        rates = {**STAGES["decoder"]["lr"], "memory_rows": 1e-2}  # type: ignore[dict-item]
        stages["decoder"] = {**STAGES["decoder"], "lr": rates}
    changes = {
        "stages": stages, "lora__rank": rank, "save_every": save_every, "measure_every": 2,
        "keep_best": True, "keep_checkpoints": 2, "data__root": str(tmp_path / "texts"),
    }  # fmt: skip
    recipe(tmp_path / "texts")  # all runs read the same texts
    train(recipe(tmp_path / "whole", **changes), tmp_path / "whole")
    report = kill(tmp_path, 7 + save_every, "train", **changes)
    phases = Counter(hit["phase"] for hit in report["hit"])
    where = f"killed in {dict(phases)} of {report['runs']} runs"
    assert len(report["hit"]) == KILLS, where
    assert len(phases) >= 4, where
    assert phases["save"] + phases["clean"] > 0, where
    assert {0, 2} <= {hit["stage"] for hit in report["hit"]}, where  # both stages
    for hit in report["hit"]:
        stage, step = hit["resumed"]
        if hit["stage"] == stage:
            assert hit["step"] - step <= save_every, f"{hit}; {where}"
    for number in range(report["runs"]):
        out = tmp_path / str(number) / "out"
        assert_same_run(tmp_path / "whole" / "out", out)
        left = [path for path in out.rglob(".*") if path.parent.name != "rows"]
        assert left == [], where


def test_preparing_rows_that_is_killed_goes_on_with_the_same_rows(tmp_path: Path) -> None:
    changes = {
        "stages": {"adapter": {"steps": 30, "lr": {"adapter": 1e-2}}}, "data__rows_per_shard": 4,
        "data__root": str(tmp_path / "texts"), "data__held_out_examples": 8,
    }  # fmt: skip
    recipe(tmp_path / "texts")
    config = recipe(tmp_path, **changes)
    whole = tmp_path / "whole" / "rows"
    prepare(config, tmp_path, whole, open_prompts(config, tmp_path))
    report = kill(tmp_path, 3, "prepare", **changes)
    assert len(report["hit"]) == KILLS
    shards = sorted(hit["shards"] for hit in report["hit"])
    assert len({count for count in shards if 0 < count < 30}) >= 3, shards  # in the middle of it
    files = {path.relative_to(whole) for path in whole.rglob("*") if path.is_file()}
    assert len(files) == 30 + 3  # shards, held-out examples, plan and manifest
    for number in range(report["runs"]):
        rows = tmp_path / str(number) / "rows"
        Rows(rows, "main").verify()
        found = {path.relative_to(rows) for path in rows.rglob("[!.]*") if path.is_file()}
        assert found == files
        for file in files:
            assert (rows / file).read_bytes() == (whole / file).read_bytes(), file
